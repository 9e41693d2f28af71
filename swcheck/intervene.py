"""Zero, scale or set single weights inside a ``with`` block.

A plain tensor is edited in place and gets its saved bits back. Any other module, packed or not, is overridden from
outside by a forward hook that adds ``(target - effective) * input[..., column]`` to output channel ``row``; it is
never written to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from swcheck.anatomy import anatomy
from swcheck.errors import OptionError
from swcheck.observe import effective_weight, first_tensor, plain_weight
from swcheck.records import SuperWeight

if TYPE_CHECKING:
    from torch import nn


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
    with _overridden(model, super_weights, lambda _weight, value: alpha * value if alpha else 0.0):
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
    with _overridden(model, values, lambda weight, _value: values[weight]):
        yield


@contextmanager
def _overridden(
    model: nn.Module, super_weights: Iterable[SuperWeight], target: Callable[[SuperWeight, float], float]
) -> Iterator[None]:
    body = anatomy(model)
    unique = tuple(dict.fromkeys(super_weights))
    body.check(unique)
    with ExitStack() as undo:
        for weight in unique:
            module = body.down_projections[weight.layer]
            tensor = plain_weight(module)
            value = effective_weight(module, weight.row, weight.column)
            if tensor is None:
                change = target(weight, value) - value
                undo.callback(module.register_forward_hook(_adding(weight, change)).remove)
            else:
                _write(undo, tensor, weight, target(weight, value))
        yield


def _write(undo: ExitStack, tensor: torch.Tensor, weight: SuperWeight, value: float) -> None:
    saved = tensor[weight.row, weight.column].clone()
    undo.callback(_put, tensor, weight, saved)
    _put(tensor, weight, torch.tensor(value, dtype=torch.float64).to(saved))


def _put(tensor: torch.Tensor, weight: SuperWeight, value: torch.Tensor) -> None:
    with torch.no_grad():
        tensor[weight.row, weight.column].copy_(value)


def _adding(weight: SuperWeight, change: float) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def add(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        out = first_tensor(output).clone()
        written = out[..., weight.row].float() + change * args[0][..., weight.column].float()
        out[..., weight.row] = written.to(out.dtype)
        return (out, *output[1:]) if isinstance(output, tuple) else out

    return add
