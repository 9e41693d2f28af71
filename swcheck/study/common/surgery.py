"""What the studies do to a model beyond zeroing: let an activation stand without its weight, cut rows and columns.

All of it through hooks, whatever keeps the weights; nothing is written to. B batch, T time, H residual width, F inner
width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from swcheck.base.records import SuperWeight
from swcheck.lens.anatomy import anatomy, device_of
from swcheck.lens.intervene import zeroed
from swcheck.lens.likelihood import evaluating
from swcheck.lens.linear_maps import effective_weight
from swcheck.lens.observe import as_floats, first_tensor, observe

if TYPE_CHECKING:
    from torch import nn

Place: TypeAlias = "tuple[int, int]"
"""Layer and row of a down projection."""

Chosen: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
"""From the magnitudes of one output channel, float ``(B, T)``, to the tokens that are meant, bool ``(B, T)``."""

PAPERS_SHARE: Final = 1e-6
"""The share of every matrix that the paper's code zeroes as its other largest weights, 7,000 in Llama-7B."""

AT_ONCE: Final = 8
"""Windows in one pass of the calibration."""

BAND: Final = 0.5
"""A token carries an activation where it holds this share of the window's largest, as ``locate`` sees it."""


def strongest(size: torch.Tensor) -> torch.Tensor:
    """The one token of each window where the channel is largest: what the paper's code puts back."""
    mask = torch.zeros_like(size, dtype=torch.bool)
    return mask.scatter(1, size.argmax(1, keepdim=True), value=True)


def carriers(size: torch.Tensor) -> torch.Tensor:
    """Every token of each window that carries the activation."""
    return (size >= BAND * size.amax(1, keepdim=True)) & (size > 0)


@contextmanager
def put_back(
    model: nn.Module,
    super_weights: Sequence[SuperWeight],
    chosen: Chosen,
    constants: Mapping[Place, float] | None = None,
) -> Iterator[None]:
    """The model without these scalars, but with what they write at the chosen tokens of each window.

    As in the paper's code the output of the down projection is made anew from the input that it gets in this pass.
    ``constants`` give a fixed number per layer and row instead, in the unit of the residual stream. The run of one id
    that ends a window is never chosen: it may be padding, which carries an activation of its own.
    """
    downs = anatomy(model).down_projections
    values = {place: _values(downs[place[0]], weights) for place, weights in by_place(super_weights).items()}
    with ExitStack() as undo:
        undo.enter_context(zeroed(model, super_weights))
        real = undo.enter_context(_real_tokens(model))
        for (layer, row), here in values.items():
            hook = _PutBack(row, here, chosen, real, None if constants is None else constants[layer, row])
            undo.callback(downs[layer].register_forward_hook(hook).remove)
        yield


@dataclass(frozen=True)
class _PutBack:
    """A forward hook that adds what some scalars of one row would write, at some tokens."""

    row: int
    values: Mapping[int, float]
    chosen: Chosen
    real: list[torch.Tensor]
    constant: float | None

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        out, x = first_tensor(output).clone(), as_floats(args[0])
        written = _written(x, self.values)
        here = out[..., self.row].float()
        size = (here + written).abs()
        if self.real and self.real[-1].shape == size.shape:
            size = size.where(self.real[-1].to(size.device), 0.0)
        added = written if self.constant is None else torch.full_like(written, self.constant)
        out[..., self.row] = (here + added.where(self.chosen(size), 0.0)).to(out.dtype)
        return (out, *output[1:]) if isinstance(output, tuple) else out


def _written(x: torch.Tensor, values: Mapping[int, float]) -> torch.Tensor:
    """What scalars of one row write, float ``(B, T)``: ``values`` are theirs by column, ``x`` is ``(B, T, F)``."""
    columns = list(values)
    return x[..., columns].float() @ torch.tensor([values[c] for c in columns], device=x.device)


@contextmanager
def _real_tokens(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Which tokens of the present pass are no padding, bool ``(B, T)``, last in the list; empty where nobody can tell."""
    seen: list[torch.Tensor] = []
    get = getattr(model, "get_input_embeddings", None)
    if get is None:
        yield seen
        return

    def see(_module: nn.Module, args: tuple[Any, ...]) -> None:
        ids = args[0]
        differs = ids != ids[:, -1:]
        real = differs.flip(1).cumsum(1).flip(1) > 0
        real[:, 0] = True
        seen[:] = [real]

    hook = get().register_forward_pre_hook(see)
    try:
        yield seen
    finally:
        hook.remove()


@dataclass(frozen=True)
class Carried:
    """What the weights of one row write in the untouched model: the mean at a token that carries it, and how many do."""

    layer: int
    row: int
    mean: float
    tokens: float


def calibrated(model: nn.Module, super_weights: Sequence[SuperWeight], ids: torch.Tensor) -> tuple[Carried, ...]:
    """The mean contribution by layer and row over all carrying tokens of ``ids`` ``(B, T)``, and their number a window."""
    body = anatomy(model)
    return tuple(
        _carried(model, layer, row, _values(body.down_projections[layer], weights), ids)
        for (layer, row), weights in by_place(super_weights).items()
    )


def by_place(super_weights: Iterable[SuperWeight]) -> dict[Place, tuple[SuperWeight, ...]]:
    """The scalars that write into one channel in one layer, together."""
    grouped = groupby(sorted(super_weights), lambda weight: (weight.layer, weight.row))
    return {place: tuple(group) for place, group in grouped}


def _values(module: nn.Module, weights: Iterable[SuperWeight]) -> dict[int, float]:
    return {weight.column: effective_weight(module, weight.row, weight.column) for weight in weights}


def _carried(model: nn.Module, layer: int, row: int, values: Mapping[int, float], ids: torch.Tensor) -> Carried:
    total, tokens = 0.0, 0
    with evaluating(model):
        for part in torch.split(ids, AT_ONCE):
            with observe(model, inputs=[layer], stop=True) as sight:
                model(part.to(device_of(model)), use_cache=False)
            written = _written(sight.inputs[layer], values)
            mask = carriers(written.abs())
            total, tokens = total + float(written[mask].double().sum()), tokens + int(mask.sum())
    return Carried(layer, row, total / tokens if tokens else 0.0, tokens / len(ids))


@contextmanager
def without_rows(model: nn.Module, super_weights: Iterable[SuperWeight]) -> Iterator[None]:
    """The model without the whole row of every scalar: its down projection writes nothing into that channel."""
    body = anatomy(model)
    with ExitStack() as undo:
        for layer, row in by_place(super_weights):
            undo.callback(body.down_projections[layer].register_forward_hook(partial(_silenced, row)).remove)
        yield


@contextmanager
def without_columns(model: nn.Module, super_weights: Iterable[SuperWeight]) -> Iterator[None]:
    """The model without the whole column of every scalar: its inner neuron reaches no channel."""
    body = anatomy(model)
    with ExitStack() as undo:
        for layer, column in sorted({(weight.layer, weight.column) for weight in super_weights}):
            undo.callback(body.down_projections[layer].register_forward_pre_hook(partial(_unread, column)).remove)
        yield


def _silenced(row: int, _module: nn.Module, _args: Any, output: Any) -> Any:
    out = first_tensor(output).clone()
    out[..., row] = 0
    return (out, *output[1:]) if isinstance(output, tuple) else out


def _unread(column: int, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x = as_floats(args[0]).clone()
    x[..., column] = 0
    return (x, *args[1:])
