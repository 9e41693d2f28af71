"""The families whose paths are known, so that no forward pass is needed to find them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from swcheck.lens.architecture.places import Place, Structure
from swcheck.lens.architecture.storage import is_plain

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """The module paths of one family of models.

    ``layers`` is the end of the path of the list of decoder layers. The other paths start at a decoder layer: ``down``
    is the down projection, ``attention_output`` the output projection of attention. ``down`` is empty for a model whose
    down projections were found in a forward pass.
    """

    name: str
    layers: str
    down: str
    attention_output: str


FAMILIES: Final = (
    Family("Llama-like", layers="layers", down="mlp.down_proj", attention_output="self_attn.o_proj"),
)  # fmt: skip

TRACED: Final = Family("found in a forward pass", layers="", down="", attention_output="self_attn.o_proj")


def structure_by_family(model: nn.Module) -> tuple[Family, Structure] | None:
    """Return the family whose paths fit each layer of exactly one list of ``model``, and the structure they give.

    None where none fits, where a layer has 3-D parameters besides, which may be experts, and where it has a module with
    matrices beside attention and MLP, which may mix several residual streams.
    """
    for family in FAMILIES:
        lists = [
            (path, layers)
            for path, layers in _module_lists(model, family.layers)
            if all(_has(layer, family.down) for layer in layers)
        ]
        if len(lists) == 1 and not any(_has_stacks(layer) or _has_more(layer, family) for layer in lists[0][1]):
            path, layers = lists[0]
            return family, Structure(path, ((Place(family.down),),) * len(layers))
    return None


def _module_lists(model: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the module lists whose qualified name is ``path`` or ends with it."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and (name == path or name.endswith("." + path)):
            yield name, module


def _has(layer: nn.Module, path: str) -> bool:
    try:
        layer.get_submodule(path)
    except AttributeError:
        return False
    return True


def _has_more(layer: nn.Module, family: Family) -> bool:
    usual = family.down.partition(".")[0]
    others = (one for name, one in layer.named_children() if name != usual and "attn" not in name)
    return any(any(one.children()) and any(weight.ndim > 1 for weight in one.parameters()) for one in others)


def _has_stacks(layer: nn.Module) -> bool:
    return any(
        parameter.ndim == 3 and is_plain(parameter) and min(parameter.shape) > 1 for parameter in layer.parameters()
    )
