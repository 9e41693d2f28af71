"""Finds the decoder layers and the down projections of a causal language model, whatever they are called.

A family is one row of ``FAMILIES``: where its decoder layers are, and where a layer keeps its down projection. Nobody
else knows a module's name. B batch, T time, H residual width, F inner width.
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
    """Where one family of models keeps things: ``layers`` from the model, the others from a layer.

    ``down`` is the down projection, ``attention_output`` the linear map out of attention.
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
    """The parts of one model; ``hidden`` and ``inner`` are the widths H and F, None where no module tells."""

    family: Family
    layers: tuple[nn.Module, ...]
    down_projections: tuple[nn.Module, ...]
    path: str
    hidden: int | None
    inner: int | None

    def down_name(self, layer: int) -> str:
        """The qualified name of one layer's down projection."""
        return f"{self.path}.{layer}.{self.family.down}"

    def check(self, super_weights: Iterable[SuperWeight]) -> None:
        """Raise ``CoordinateError`` for the first coordinate that lies outside the model."""
        check_inside(super_weights, len(self.layers), self.hidden, self.inner)

    def check_layers(self, layers: Iterable[int]) -> None:
        """Raise ``CoordinateError`` for the first layer that the model does not have."""
        for layer in layers:
            if _outside(layer, len(self.layers)):
                found = f"this model has layers 0 to {len(self.layers) - 1}"
                raise CoordinateError(f"layer {layer} was asked for", found, "layers count from 0")


def check_inside(super_weights: Iterable[SuperWeight], layers: int, hidden: int | None, inner: int | None) -> None:
    """Raise ``CoordinateError`` for the first coordinate outside a model of these sizes; None is not known."""
    for weight in super_weights:
        if not isinstance(weight, SuperWeight):
            raise OptionError("a SuperWeight", repr(weight), "SuperWeight(layer=2, row=3968, column=7003)")
        for name, size in {"layer": layers, "row": hidden, "column": inner}.items():
            asked = getattr(weight, name)
            if _outside(asked, size):
                raise CoordinateError(
                    f"{name} {asked} was asked for (super weight at {weight})",
                    f"this model has {name}s 0 to {'?' if size is None else size - 1}",
                    "check that the coordinates belong to this model: (layer, row, column) counts from 0, "
                    "row is the output channel of down_proj",
                )


def check_module(model: Any) -> None:
    """Raise ``OptionError`` unless ``model`` is a torch module; what ``load`` returns is a record that holds one."""
    from torch import nn

    if not isinstance(model, nn.Module):
        attempt = "its .model" if hasattr(model, "model") else "load('tiny').model"
        raise OptionError("a torch module", f"{type(model).__name__}", attempt)


def anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of ``model``, wrapped (PEFT, a compiled model) or not.

    Raises ``ArchitectureError`` where no family of the table fits, ``OptionError`` for what is no module.
    """
    check_module(model)
    for family in FAMILIES:
        for path, layers in _lists_called(model, family.layers):
            downs = [_submodule(layer, family.down) for layer in layers]
            found = tuple(down for down in downs if down is not None)
            if found and len(found) == len(layers):
                hidden, inner = _widths(model, found[0])
                return Anatomy(family, tuple(layers), found, path, hidden, inner)
    lists = [f"{name} ({len(child)} x {type(child[0]).__name__})" for name, child in _module_lists(model)]
    table = ", ".join(f"{family.layers}.N.{family.down}" for family in FAMILIES)
    raise ArchitectureError(
        f"a causal language model with its down projections at {table} was expected",
        f"{type(model).__name__} with {', '.join(lists[:5]) or 'no list of layers'}",
        "a model built like Llama (Mistral, Qwen, OLMo, Gemma, Phi-3 are); another family is one more row in "
        "swcheck.lens.anatomy.FAMILIES",
    )


def input_width(module: nn.Module) -> int | None:
    """How many inputs a linear map says it takes, None where it does not say; AutoRound spells it without a line."""
    return getattr(module, "in_features", None) or getattr(module, "infeatures", None)


def device_of(model: nn.Module) -> torch.device:
    """The device that inputs have to be on: the one of the module's first parameter or buffer that holds numbers.

    Weights that wait elsewhere for their turn are on none; what hands them over (an exchanged ``forward``) moves the
    inputs as well.
    """
    import torch

    nowhere = None
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type != "meta":
            return tensor.device
        nowhere = tensor.device
    return torch.device("cpu") if "forward" in vars(model) or nowhere is None else nowhere


def _outside(asked: int, size: int | None) -> bool:
    return asked < 0 or (size is not None and asked >= size)


def _module_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            yield name, module


def _lists_called(model: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, module in _module_lists(model):
        if name == path or name.endswith("." + path):
            yield name, module


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _widths(model: nn.Module, down: nn.Module) -> tuple[int | None, int | None]:
    """H and F as the down projection says, else as the config does: packed modules keep no readable shape."""
    config = getattr(model, "config", None)
    hidden = getattr(down, "out_features", None) or getattr(config, "hidden_size", None)
    inner = input_width(down) or getattr(config, "intermediate_size", None)
    return hidden, inner
