"""Edits of a forward pass beyond zeroing scalars: restore what a super weight writes, remove whole rows or columns.

All of them are hooks, so they work however the weights are stored, and no weight is written to. B windows, T tokens, H
residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import torch

from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import MapKey, anatomy
from swcheck.lens.architecture.storage import dequantized, device_of, evaluating, first_tensor
from swcheck.lens.intervene import output_channel_zeroed, scalars_zeroed, zeroed
from swcheck.lens.linear_maps import effective_weight
from swcheck.lens.observe import observe

if TYPE_CHECKING:
    from torch import nn

Place: TypeAlias = "tuple[int, int]"
"""Layer and row of a down projection."""

TokenChooser: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
"""Selects tokens: from the magnitudes of one output channel, float ``(B, T)``, to a mask, bool ``(B, T)``."""

PAPERS_SHARE: Final = 1e-6
"""The share of every matrix that the paper's code zeroes as "other largest weights": 7,000 weights in Llama-7B."""

WINDOWS_PER_PASS: Final = 8
"""Windows in one forward pass of ``calibrated``."""

CARRYING_SHARE: Final = 0.5
"""A token carries an activation if it holds this share of the window's largest magnitude, as in ``locate``."""


def strongest_token(magnitude: torch.Tensor) -> torch.Tensor:
    """Choose the one token of each window where the channel is largest: the token that the paper's code restores."""
    mask = torch.zeros_like(magnitude, dtype=torch.bool)
    return mask.scatter(1, magnitude.argmax(1, keepdim=True), value=True)


def carrying_tokens(magnitude: torch.Tensor) -> torch.Tensor:
    """Choose every token of each window that carries the activation."""
    return (magnitude >= CARRYING_SHARE * magnitude.amax(1, keepdim=True)) & (magnitude > 0)


@contextmanager
def contributions_restored(
    model: nn.Module,
    super_weights: Sequence[SuperWeight],
    chosen: TokenChooser,
    constants: Mapping[Place, float] | None = None,
) -> Iterator[None]:
    """Zero these scalars within the block, but add what they would write at the chosen tokens of each window.

    As in the paper's code, the contribution is computed from the input that the down projection gets in this pass.
    ``constants`` gives a fixed contribution per (layer, row) instead, in the unit of the residual stream. A run of one
    repeated id at the end of a window is never chosen: it may be padding, which carries an activation of its own.
    """
    downs = anatomy(model).down_projections
    values = {
        place: _values_by_column(downs[place[0]], weights) for place, weights in by_layer_and_row(super_weights).items()
    }
    with ExitStack() as stack:
        stack.enter_context(zeroed(model, super_weights))
        real_tokens = stack.enter_context(_track_real_tokens(model))
        for (layer, row), values_by_column in values.items():
            hook = _ContributionHook(
                row, values_by_column, chosen, real_tokens, None if constants is None else constants[layer, row]
            )
            stack.callback(downs[layer].register_forward_hook(hook).remove)
        yield


@dataclass(frozen=True)
class _ContributionHook:
    """A forward hook of a down projection that adds what some scalars of one row would write, at chosen tokens."""

    row: int
    values: Mapping[int, float]
    chosen: TokenChooser
    real_tokens: list[torch.Tensor]
    constant: float | None

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        out, x = first_tensor(output).clone(), dequantized(args[0])
        contribution = _contribution(x, self.values)
        channel = out[..., self.row].float()
        magnitude = (channel + contribution).abs()
        if self.real_tokens and self.real_tokens[-1].shape == magnitude.shape:
            magnitude = magnitude.where(self.real_tokens[-1].to(magnitude.device), 0.0)
        added = contribution if self.constant is None else torch.full_like(contribution, self.constant)
        out[..., self.row] = (channel + added.where(self.chosen(magnitude), 0.0)).to(out.dtype)
        return (out, *output[1:]) if isinstance(output, tuple) else out


def _contribution(x: torch.Tensor, values: Mapping[int, float]) -> torch.Tensor:
    """Return what scalars of one row write, float ``(B, T)``; ``x`` is ``(B, T, F)``, ``values`` are by column."""
    columns = list(values)
    return x[..., columns].float() @ torch.tensor([values[c] for c in columns], device=x.device)


@contextmanager
def _track_real_tokens(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Yield a list that holds the mask of real tokens (no padding), bool ``(B, T)``, of the latest pass.

    The list stays empty if the model has no embedding whose input ids could be read.
    """
    masks: list[torch.Tensor] = []
    get_embeddings = getattr(model, "get_input_embeddings", None)
    if get_embeddings is None:
        yield masks
        return

    def record(_module: nn.Module, args: tuple[Any, ...]) -> None:
        ids = args[0]
        differs = ids != ids[:, -1:]
        mask = differs.flip(1).cumsum(1).flip(1) > 0
        mask[:, 0] = True
        masks[:] = [mask]

    hook = get_embeddings().register_forward_pre_hook(record)
    try:
        yield masks
    finally:
        hook.remove()


@dataclass(frozen=True)
class CarriedContribution:
    """What the super weights of one row write in the intact model.

    ``mean`` is the mean contribution over the tokens that carry it; ``tokens`` is how many tokens of a window do.
    """

    layer: int
    row: int
    mean: float
    tokens: float


def mean_contributions(
    model: nn.Module, super_weights: Sequence[SuperWeight], ids: torch.Tensor
) -> tuple[CarriedContribution, ...]:
    """Return, for each (layer, row), the mean contribution over all carrying tokens of ``ids`` int64 ``(B, T)``."""
    body = anatomy(model)
    return tuple(
        _mean_contribution(model, layer, row, _values_by_column(body.down_projections[layer], weights), ids)
        for (layer, row), weights in by_layer_and_row(super_weights).items()
    )


def by_layer_and_row(super_weights: Iterable[SuperWeight]) -> dict[Place, tuple[SuperWeight, ...]]:
    """Group super weights that write into the same channel in the same layer."""
    grouped = groupby(sorted(super_weights), lambda weight: (weight.layer, weight.row))
    return {key: tuple(group) for key, group in grouped}


def _values_by_column(module: nn.Module, weights: Iterable[SuperWeight]) -> dict[int, float]:
    return {weight.column: effective_weight(module, weight.row, weight.column) for weight in weights}


def _mean_contribution(
    model: nn.Module, layer: int, row: int, values: Mapping[int, float], ids: torch.Tensor
) -> CarriedContribution:
    total, tokens = 0.0, 0
    with evaluating(model):
        for windows in torch.split(ids, WINDOWS_PER_PASS):
            with observe(model, inputs=[layer], stop=True) as sight:
                model(windows.to(device_of(model)), use_cache=False)
            contribution = _contribution(sight.inputs[layer], values)
            mask = carrying_tokens(contribution.abs())
            total, tokens = total + float(contribution[mask].double().sum()), tokens + int(mask.sum())
    return CarriedContribution(layer, row, total / tokens if tokens else 0.0, tokens / len(ids))


@contextmanager
def without_rows(model: nn.Module, super_weights: Iterable[SuperWeight]) -> Iterator[None]:
    """Zero the whole row of every super weight within the block: the down projection writes nothing to that channel."""
    rows = {(MapKey(w.layer, w.expert), w.row) for w in super_weights}
    with _lines_zeroed(model, rows, 0, output_channel_zeroed):
        yield


@contextmanager
def without_columns(model: nn.Module, super_weights: Iterable[SuperWeight]) -> Iterator[None]:
    """Zero the whole column of every super weight within the block: its inner neuron reaches no channel."""
    columns = {(MapKey(w.layer, w.expert), w.column) for w in super_weights}
    with _lines_zeroed(model, columns, 1, _input_channel_zeroed):
        yield


@contextmanager
def _lines_zeroed(
    model: nn.Module,
    lines: Iterable[tuple[MapKey, int]],
    axis: int,
    hooked: Callable[[nn.Module, int], AbstractContextManager[None]],
) -> Iterator[None]:
    """Zero rows (``axis`` 0) or columns (1) of down projections within the block; ``hooked`` does so for a whole module.

    Raises ``NotObservedError`` for one of an expert whose matrix is packed with all others.
    """
    body = anatomy(model)
    with ExitStack() as stack:
        for key, line in sorted(lines, key=str):
            down = body.down_map(key)
            if down.index is None:
                stack.enter_context(hooked(down.module, line))
            else:
                down.check_reachable(f"{('row', 'column')[axis]} {line}")
                matrix = cast("torch.Tensor", down.weight)
                places = ((line, other) for other in range(matrix.shape[1 - axis]))
                stack.enter_context(scalars_zeroed(matrix, [place if axis == 0 else place[::-1] for place in places]))
        yield


@contextmanager
def _input_channel_zeroed(module: nn.Module, column: int) -> Iterator[None]:
    handle = module.register_forward_pre_hook(partial(_zero_input_channel, column))
    try:
        yield
    finally:
        handle.remove()


def _zero_input_channel(column: int, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x = dequantized(args[0]).clone()
    x[..., column] = 0
    return (x, *args[1:])
