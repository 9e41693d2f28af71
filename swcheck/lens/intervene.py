"""Zero, scale or set single weights inside a ``with`` block; give whole maps or a channel back through hooks.

A plain tensor is edited in place and gets its saved bits back. Any other module, packed or not, is overridden from
outside and never written to: a forward hook asks it once more, in one batch, with ``input[..., column]`` at zero for
each of its scalars, and puts the wanted contributions in the place of those that it found, in output channel ``row``.
Its weight need not be readable for that, and a module that quantizes its activations is taken at the inputs it really
gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from swcheck.base.errors import OptionError
from swcheck.base.records import SuperWeight
from swcheck.lens.anatomy import anatomy
from swcheck.lens.linear_maps import plain_weight
from swcheck.lens.observe import as_floats, first_tensor

if TYPE_CHECKING:
    from torch import nn


_Target: TypeAlias = "Callable[[SuperWeight, Any, Any], Any]"
"""What a scalar shall write, given what it writes and what it reads: its own value and 1, or tensors of a pass."""


@contextmanager
def zeroed(model: nn.Module, super_weights: Iterable[SuperWeight]) -> Iterator[None]:
    """The model without these scalars, all together; as before when the block is left, to the bit."""
    with scaled(model, super_weights, 0.0):
        yield


@contextmanager
def scaled(model: nn.Module, super_weights: Iterable[SuperWeight], alpha: float) -> Iterator[None]:
    """The model with these scalars times ``alpha``, any finite number; as before when the block is left, to the bit.

    Raises ``OptionError`` for an alpha that is not finite, ``CoordinateError`` for a coordinate outside the model,
    before anything is touched.
    """
    if not math.isfinite(alpha):
        raise OptionError(f"alpha = {alpha}", "a scale has to be a finite number")
    with _overridden(model, super_weights, lambda _weight, written, _x: alpha * written if alpha else 0.0 * _x):
        yield


@contextmanager
def set_to(model: nn.Module, super_weights: Iterable[SuperWeight]) -> Iterator[None]:
    """The model with each of these scalars at its record's ``value``; as before when the block is left, to the bit.

    Raises ``OptionError`` for a value that is None or not finite, and for one scalar with two values.
    """
    values: dict[SuperWeight, float] = {}
    for weight in super_weights:
        if weight.value is None or not math.isfinite(weight.value):
            raise OptionError(f"set {weight}", f"its value is {weight.value}", "give it a finite value")
        if values.setdefault(weight, weight.value) != weight.value:
            raise OptionError(f"set {weight}", f"it is also to be {values[weight]:+.4g}", "give each scalar once")
    with _overridden(model, values, lambda weight, _written, x: values[weight] * x):
        yield


@contextmanager
def scalars_zeroed(weight: torch.Tensor, places: Sequence[tuple[int, int]]) -> Iterator[None]:
    """One plain matrix, of any linear map, without the scalars at these rows and columns; they get their bits back."""
    if not places:
        yield
        return
    rows, columns = (torch.tensor(side, device=weight.device) for side in zip(*places, strict=True))
    with torch.no_grad():
        saved = weight[rows, columns].clone()
        try:
            weight[rows, columns] = 0
            torch.clear_autocast_cache()
            yield
        finally:
            weight[rows, columns] = saved
            torch.clear_autocast_cache()


@contextmanager
def _overridden(model: nn.Module, super_weights: Iterable[SuperWeight], target: _Target) -> Iterator[None]:
    body = anatomy(model)
    unique = tuple(dict.fromkeys(super_weights))
    body.check(unique)
    packed: dict[nn.Module, list[SuperWeight]] = {}
    with ExitStack() as undo:
        for weight in unique:
            module = body.down_projections[weight.layer]
            tensor = plain_weight(module)
            if tensor is None:
                packed.setdefault(module, []).append(weight)
            else:
                _write(undo, tensor, weight, target(weight, float(tensor[weight.row, weight.column]), 1.0))
        for module, weights in packed.items():
            under = {weight: outer for weight in weights if (outer := _already(module, weight)) is not None}
            undo.callback(module.register_forward_hook(_Override(tuple(weights), target, under)).remove)
        yield


def _write(undo: ExitStack, tensor: torch.Tensor, weight: SuperWeight, value: float) -> None:
    saved = tensor[weight.row, weight.column].clone()
    undo.callback(_put, tensor, weight, saved)
    _put(tensor, weight, torch.tensor(value, dtype=torch.float64).to(saved))


def _put(tensor: torch.Tensor, weight: SuperWeight, value: torch.Tensor) -> None:
    with torch.no_grad():
        tensor[weight.row, weight.column].copy_(value)
    torch.clear_autocast_cache()  # under autocast passes compute with a copy, made before this write


@dataclass(frozen=True)
class _Override:
    """A forward hook that puts ``target`` in the place of what some scalars write; ``under`` are outer blocks'."""

    weights: tuple[SuperWeight, ...]
    target: _Target
    under: Mapping[SuperWeight, _Override]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        out, x = first_tensor(output).clone(), as_floats(args[0])
        batch = torch.stack([x] * (1 + len(self.weights)))
        for number, weight in enumerate(self.weights):
            batch[1 + number, ..., weight.column] = 0
        flat = batch.flatten(0, 1) if x.ndim > 1 else batch
        answers = first_tensor(module.forward(flat, *args[1:])).chunk(len(batch))
        for number, weight in enumerate(self.weights):
            whole, without = (answers[place][..., weight.row].float().view(x.shape[:-1]) for place in (0, 1 + number))
            written, read = whole - without, x[..., weight.column].float()
            outer = self.under.get(weight)
            before = written if outer is None else outer.wanted(weight, written, read)
            change = self.wanted(weight, written, read) - before
            out[..., weight.row] = (out[..., weight.row].float() + change).to(out.dtype)
        return (out, *output[1:]) if isinstance(output, tuple) else out

    def wanted(self, weight: SuperWeight, written: Any, read: Any) -> Any:
        """What a scalar shall write where the module itself writes ``written``."""
        outer = self.under.get(weight)
        return self.target(weight, written if outer is None else outer.wanted(weight, written, read), read)


def _already(module: nn.Module, weight: SuperWeight) -> _Override | None:
    """The innermost override of this scalar that is in force, by an outer block."""
    hooks = module._forward_hooks.values()  # noqa: SLF001 - torch has no public way to ask
    found = [hook for hook in hooks if isinstance(hook, _Override) and weight in hook.weights]
    return found[-1] if found else None
