"""Zeroes, scales or sets single weights inside a ``with`` block.

A plain tensor is edited in place and gets its saved bits back. Any other module, packed or not, is never written to;
a forward hook corrects its output. The hook calls the module once more, on one batch that has the input and, for each
scalar, the input with ``input[..., column]`` zeroed. The differences are the contributions of the scalars. The hook
replaces them by the wanted contributions, in output channel ``row``. This needs no readable weight, and a module that
quantizes its activations is measured at the inputs that it really gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from swcheck.base.errors import OptionError, UnrankedError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import MapKey, anatomy
from swcheck.lens.architecture.storage import dequantized, first_tensor
from swcheck.loading.parallel.shards import own_rows
from swcheck.loading.runtime import Runtime
from swcheck.loading.streaming.pager import check_files

if TYPE_CHECKING:
    from torch import nn


_Target: TypeAlias = "Callable[[SuperWeight, Any, Any], Any]"
"""Returns the wanted contribution of a scalar, given its present contribution and its input.

In a hook both are tensors of the pass. For an edit in place they are the value of the weight and 1.
"""


@contextmanager
def zeroed(model: nn.Module | Runtime, super_weights: Iterable[SuperWeight]) -> Iterator[None]:
    """Run ``model`` with these scalars zeroed, all together. Every bit is restored when the block is left.

    Raises ``CoordinateError`` for a coordinate outside the model, before anything is changed.
    """
    with scaled(model, super_weights, 0.0):
        yield


@contextmanager
def scaled(model: nn.Module | Runtime, super_weights: Iterable[SuperWeight], alpha: float) -> Iterator[None]:
    """Run ``model`` with these scalars multiplied by ``alpha``. Every bit is restored when the block is left.

    Raises ``OptionError`` for an alpha that is not finite, ``CoordinateError`` for a coordinate outside the model,
    before anything is changed. In nested blocks the factors multiply.
    """
    if not math.isfinite(alpha):
        raise OptionError(f"alpha = {alpha}", "a scale has to be a finite number")
    with _scalars_overridden(model, super_weights, lambda _weight, written, x: alpha * written if alpha else 0.0 * x):
        yield


@contextmanager
def maps_zeroed(model: nn.Module, keys: Iterable[MapKey]) -> Iterator[None]:
    """Run ``model`` with whole down projections zeroed, such as those of experts. Every bit is restored afterwards.

    Raises ``CoordinateError`` for an address that the model does not have, ``UnrankedError`` for one that is packed.
    """
    body = anatomy(model)
    downs = [body.down_map(key) for key in dict.fromkeys(keys)]
    packed = next((down for down in downs if not down.has_weight), None)
    if packed is not None:
        raise UnrankedError(f"zero {packed.name}", f"{type(packed.module).__name__} keeps it packed")
    weights = [own_rows(weight).tensor for down in downs if (weight := down.weight) is not None]
    saved = [weight.clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.zero_()
        torch.clear_autocast_cache()
        yield
    finally:
        check_files(weights)
        with torch.no_grad():
            for weight, bits in zip(weights, saved, strict=True):
                weight.copy_(bits)
        torch.clear_autocast_cache()


@contextmanager
def output_channel_zeroed(module: nn.Module, channel: int) -> Iterator[None]:
    """Run a linear map with one channel of its output ``(..., H)`` zeroed, a bias included, through a hook."""

    def zero(_module: nn.Module, _args: Any, output: Any) -> Any:
        out = first_tensor(output).clone()
        out[..., channel] = 0
        return (out, *output[1:]) if isinstance(output, tuple) else out

    hook = module.register_forward_hook(zero)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def set_to(model: nn.Module | Runtime, super_weights: Iterable[SuperWeight]) -> Iterator[None]:
    """Run ``model`` with each of these scalars set to its ``value``. Every bit is restored when the block is left.

    Raises ``OptionError`` for a value that is None or not finite and for one scalar with two values,
    ``CoordinateError`` for a coordinate outside the model.
    """
    values: dict[SuperWeight, float] = {}
    for weight in super_weights:
        if weight.value is None or not math.isfinite(weight.value):
            raise OptionError(f"set {weight}", f"its value is {weight.value}", "give it a finite value")
        if values.setdefault(weight, weight.value) != weight.value:
            raise OptionError(f"set {weight}", f"it is also to be {values[weight]:+.4g}", "give each scalar once")
    with _scalars_overridden(model, values, lambda weight, _written, x: values[weight] * x):
        yield


@contextmanager
def scalars_zeroed(weight: torch.Tensor, places: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Zero the scalars at ``places``, pairs of row and column, of one plain matrix of any linear map, in place.

    Every bit is restored when the block is left.
    """
    if not places:
        yield
        return
    kept = own_rows(weight)
    rows, columns = (torch.tensor(side, device=weight.device) for side in zip(*places, strict=True))
    here = kept.among(rows)
    places_here = rows[here] - kept.first, columns[here]
    with torch.no_grad():
        saved = kept.tensor[places_here].clone()
        try:
            kept.tensor[places_here] = 0
            torch.clear_autocast_cache()
            yield
        finally:
            check_files([kept.tensor])
            kept.tensor[places_here] = saved
            torch.clear_autocast_cache()


@contextmanager
def _scalars_overridden(
    model: nn.Module | Runtime, super_weights: Iterable[SuperWeight], target: _Target
) -> Iterator[None]:
    """Run ``model`` with each scalar writing what ``target`` returns: by an edit in place, a hook, or the runtime."""
    unique = tuple(dict.fromkeys(super_weights))
    if isinstance(model, Runtime):
        with model.overridden({weight: target(weight, model.weight_value(weight), 1.0) for weight in unique}):
            yield
        return
    body = anatomy(model)
    body.check(unique)
    packed: dict[nn.Module, list[SuperWeight]] = {}
    with ExitStack() as undo:
        for weight in unique:
            down = body.down_map(weight)
            tensor = down.weight
            down.check_reachable("a weight")
            if tensor is None:
                packed.setdefault(down.module, []).append(weight)
            else:
                _edit_in_place(undo, tensor, weight, target(weight, float(tensor[weight.row, weight.column]), 1.0))
        for module, weights in packed.items():
            outer = {weight: hook for weight in weights if (hook := _active_override(module, weight)) is not None}
            undo.callback(module.register_forward_hook(_Override(tuple(weights), target, outer)).remove)
        yield


def _edit_in_place(undo: ExitStack, tensor: torch.Tensor, weight: SuperWeight, value: float) -> None:
    row = own_rows(tensor).at(weight.row)
    if row is None:  # another process keeps it
        return
    saved = row[weight.column].clone()
    undo.callback(_set_scalar, row, weight, saved)
    _set_scalar(row, weight, torch.tensor(value, dtype=torch.float64).to(saved))


def _set_scalar(row: torch.Tensor, weight: SuperWeight, value: torch.Tensor) -> None:
    check_files([row])
    with torch.no_grad():
        row[weight.column].copy_(value)
    torch.clear_autocast_cache()  # autocast computes with a cached copy, made before this write


@dataclass(frozen=True)
class _Override:
    """A forward hook that replaces the contributions of ``weights`` by what ``target`` returns.

    ``outer`` has the hook of an enclosing block for each scalar that one overrides already. That hook runs first, so
    the output that this hook gets contains its change.
    """

    weights: tuple[SuperWeight, ...]
    target: _Target
    outer: Mapping[SuperWeight, _Override]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        out, x = first_tensor(output).clone(), dequantized(args[0])
        batch = torch.stack([x] * (1 + len(self.weights)))
        for number, weight in enumerate(self.weights):
            batch[1 + number, ..., weight.column] = 0
        flat = batch.flatten(0, 1) if x.ndim > 1 else batch
        outputs = first_tensor(module.forward(flat, *args[1:])).chunk(len(batch))  # forward: without any hook
        for number, weight in enumerate(self.weights):
            whole, without = (outputs[place][..., weight.row].float().view(x.shape[:-1]) for place in (0, 1 + number))
            written, read = whole - without, x[..., weight.column].float()
            enclosing = self.outer.get(weight)
            present = written if enclosing is None else enclosing.wanted(weight, written, read)
            change = self.wanted(weight, written, read) - present
            out[..., weight.row] = (out[..., weight.row].float() + change).to(out.dtype)
        return (out, *output[1:]) if isinstance(output, tuple) else out

    def wanted(self, weight: SuperWeight, written: Any, read: Any) -> Any:
        """Return what a scalar is to write where the module without hooks writes ``written`` for the input ``read``."""
        enclosing = self.outer.get(weight)
        return self.target(weight, written if enclosing is None else enclosing.wanted(weight, written, read), read)


def _active_override(module: nn.Module, weight: SuperWeight) -> _Override | None:
    """Return the innermost override of this scalar that an enclosing block has placed, None where there is none."""
    hooks = module._forward_hooks.values()  # noqa: SLF001 - torch has no public way to list the hooks
    found = [hook for hook in hooks if isinstance(hook, _Override) and weight in hook.weights]
    return found[-1] if found else None
