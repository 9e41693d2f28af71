"""Finds the decoder layers and the down projections of a causal language model, whatever they are called.

A family of models is one row of ``FAMILIES``: the path of its decoder layers, and the path of the down projection in a
layer. No other module of swcheck knows these names. H residual width, F inner width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import ArchitectureError, CoordinateError, OptionError
from swcheck.base.records import SuperWeight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch
    from torch import nn


@dataclass(frozen=True)
class Family:
    """The module paths of one family of models.

    ``layers`` is the end of the path of the list of decoder layers. The other paths start at a decoder layer: ``down``
    is the down projection, ``attention_output`` the output projection of attention.
    """

    name: str
    layers: str
    down: str
    attention_output: str


FAMILIES: Final = (
    Family("Llama-like", layers="layers", down="mlp.down_proj", attention_output="self_attn.o_proj"),
)  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model.

    ``path`` is the qualified name of the list of decoder layers. ``hidden`` and ``inner`` are the widths H and F, None
    where neither the down projection nor the config gives them.
    """

    family: Family
    layers: tuple[nn.Module, ...]
    down_projections: tuple[nn.Module, ...]
    path: str
    hidden: int | None
    inner: int | None

    def down_name(self, layer: int) -> str:
        """Return the qualified name of one layer's down projection."""
        return f"{self.path}.{layer}.{self.family.down}"

    def check(self, super_weights: Iterable[SuperWeight]) -> None:
        """Raise ``CoordinateError`` for the first coordinate that lies outside the model."""
        check_inside(super_weights, len(self.layers), self.hidden, self.inner)

    def check_layers(self, layers: Iterable[int]) -> None:
        """Raise ``CoordinateError`` for the first layer that the model does not have."""
        for layer in layers:
            if _is_outside(layer, len(self.layers)):
                found = f"this model has layers 0 to {len(self.layers) - 1}"
                raise CoordinateError(f"layer {layer} was asked for", found, "layers count from 0")


def check_inside(super_weights: Iterable[SuperWeight], layers: int, hidden: int | None, inner: int | None) -> None:
    """Raise ``CoordinateError`` for the first coordinate outside a model of these sizes.

    A size of None is unknown and allows any number from 0 on. Raises ``OptionError`` for what is not a ``SuperWeight``.
    """
    for weight in super_weights:
        if not isinstance(weight, SuperWeight):
            raise OptionError("a SuperWeight", repr(weight), "SuperWeight(layer=2, row=3968, column=7003)")
        for name, size in {"layer": layers, "row": hidden, "column": inner}.items():
            index = getattr(weight, name)
            if _is_outside(index, size):
                raise CoordinateError(
                    f"{name} {index} was asked for (super weight at {weight})",
                    f"this model has {name}s 0 to {'?' if size is None else size - 1}",
                    "check that the coordinates belong to this model: (layer, row, column) counts from 0, "
                    "row is the output channel of down_proj",
                )


def check_module(model: Any) -> None:
    """Raise ``OptionError`` unless ``model`` is a torch module.

    A frequent mistake is to pass what ``load`` returns, which is a record with the module in ``.model``.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        attempt = "its .model" if hasattr(model, "model") else "load('tiny').model"
        raise OptionError("a torch module", f"{type(model).__name__}", attempt)


def anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of ``model``, also of a wrapped one (PEFT, a compiled model).

    Raises ``ArchitectureError`` where no row of ``FAMILIES`` fits, ``OptionError`` for what is not a module.
    """
    check_module(model)
    for family in FAMILIES:
        for path, layers in _module_lists_at(model, family.layers):
            downs = [_submodule(layer, family.down) for layer in layers]
            present = tuple(down for down in downs if down is not None)
            if present and len(present) == len(layers):
                hidden, inner = _widths(model, present[0])
                return Anatomy(family, tuple(layers), present, path, hidden, inner)
    lists = [f"{name} ({len(child)} x {type(child[0]).__name__})" for name, child in _module_lists(model)]
    known_paths = ", ".join(f"{family.layers}.N.{family.down}" for family in FAMILIES)
    raise ArchitectureError(
        f"a causal language model with its down projections at {known_paths} was expected",
        f"{type(model).__name__} with {', '.join(lists[:5]) or 'no list of layers'}",
        "a model built like Llama (Mistral, Qwen, OLMo, Gemma, Phi-3 are); another family is one more row in "
        "swcheck.lens.anatomy.FAMILIES",
    )


def input_width(module: nn.Module) -> int | None:
    """Return the number of inputs that a linear map declares, None where it declares none.

    The attribute is ``in_features``; AutoRound's kernels call it ``infeatures``.
    """
    return getattr(module, "in_features", None) or getattr(module, "infeatures", None)


def device_of(model: nn.Module) -> torch.device:
    """Return the device that inputs must be on: that of the first parameter or buffer that is not on ``meta``.

    Offloaded weights are on ``meta`` until their module runs. Where all are, the result is the CPU if ``forward`` was
    replaced on the model, because whatever loads the weights then moves the inputs as well; else it is ``meta``. The
    CPU for a module without tensors.
    """
    import torch

    meta = None
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
        meta = tensor.device
    return torch.device("cpu") if "forward" in vars(model) or meta is None else meta


def _is_outside(index: int, size: int | None) -> bool:
    return index < 0 or (size is not None and index >= size)


def _module_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            yield name, module


def _module_lists_at(model: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the module lists whose qualified name is ``path`` or ends with it."""
    for name, module in _module_lists(model):
        if name == path or name.endswith("." + path):
            yield name, module


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _widths(model: nn.Module, down: nn.Module) -> tuple[int | None, int | None]:
    """Return H and F as the down projection declares them, else as the config does.

    Packed modules have no readable shape.
    """
    config = getattr(model, "config", None)
    hidden = getattr(down, "out_features", None) or getattr(config, "hidden_size", None)
    inner = input_width(down) or getattr(config, "intermediate_size", None)
    return hidden, inner
