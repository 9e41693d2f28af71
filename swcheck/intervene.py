"""Zero, scale or set single weights inside a ``with`` block.

A plain tensor is edited in place and gets its saved bits back. Any other module, packed or not, is overridden from
outside and never written to: a forward hook asks it once more with ``input[..., column]`` at zero, and puts the wanted
contribution in the place of the one that it found, in output channel ``row``. Its weight need not be readable for
that, and a module that quantizes its activations is taken at the inputs it really gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from swcheck.anatomy import anatomy
from swcheck.errors import OptionError
from swcheck.observe import first_tensor, floats, plain_weight
from swcheck.records import SuperWeight

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
def _overridden(model: nn.Module, super_weights: Iterable[SuperWeight], target: _Target) -> Iterator[None]:
    body = anatomy(model)
    unique = tuple(dict.fromkeys(super_weights))
    body.check(unique)
    with ExitStack() as undo:
        for weight in unique:
            module = body.down_projections[weight.layer]
            tensor = plain_weight(module)
            if tensor is None:
                undo.callback(module.register_forward_hook(_Override(weight, target, _already(module, weight))).remove)
            else:
                _write(undo, tensor, weight, target(weight, float(tensor[weight.row, weight.column]), 1.0))
        yield


def _write(undo: ExitStack, tensor: torch.Tensor, weight: SuperWeight, value: float) -> None:
    saved = tensor[weight.row, weight.column].clone()
    undo.callback(_put, tensor, weight, saved)
    _put(tensor, weight, torch.tensor(value, dtype=torch.float64).to(saved))


def _put(tensor: torch.Tensor, weight: SuperWeight, value: torch.Tensor) -> None:
    with torch.no_grad():
        tensor[weight.row, weight.column].copy_(value)


@dataclass(frozen=True)
class _Override:
    """A forward hook that puts ``target`` in the place of what one scalar writes; ``under`` is an outer block's."""

    weight: SuperWeight
    target: _Target
    under: _Override | None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        row, column = self.weight.row, self.weight.column
        out, x = first_tensor(output).clone(), floats(args[0]).clone()
        read = x[..., column].float().clone()
        whole = first_tensor(module.forward(*args))[..., row].float()
        x[..., column] = 0
        written = whole - first_tensor(module.forward(x, *args[1:]))[..., row].float()
        before = written if self.under is None else self.under.wanted(written, read)
        out[..., row] = (out[..., row].float() + (self.wanted(written, read) - before)).to(out.dtype)
        return (out, *output[1:]) if isinstance(output, tuple) else out

    def wanted(self, written: Any, read: Any) -> Any:
        """What the scalar shall write where the module itself writes ``written``."""
        below = written if self.under is None else self.under.wanted(written, read)
        return self.target(self.weight, below, read)


def _already(module: nn.Module, weight: SuperWeight) -> _Override | None:
    """The innermost override of this scalar that is in force, by an outer block."""
    hooks = module._forward_hooks.values()  # noqa: SLF001 - torch has no public way to ask
    found = [hook for hook in hooks if isinstance(hook, _Override) and hook.weight == weight]
    return found[-1] if found else None
