"""What is read of the residual stream: where an activation sets in, what a prompt shows there, how far two are apart.

Pure functions of what a pass has shown. T time, H residual width, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from swcheck.fold import fold
from swcheck.records import SuperActivation

HOLDERS: Final = 16
TOKENS_AT_ONCE: Final = 4096
"""How many tokens of prompts are in one pass, padding counted."""
SHORT_PROMPT: Final = 8
SINK: Final = 8
"""A token whose largest value is so many times that of the median token is a sink."""
STREAMED: Final = 2**13
"""So many numbers are kept of a residual stream, 40 kB in a file."""
OF_LAYER: Final = 256
"""And so many of one layer at most."""


@dataclass(frozen=True)
class Reading:
    """One prompt at one place: the residual value there, and where the layer's largest value stands.

    ``holders`` are the first tokens at which the place's channel holds at least half of the value.
    """

    value: float
    largest: float
    channel: int
    position: int
    holders: tuple[int, ...] = ()


def reading(values: torch.Tensor, channel: int, position: int | None) -> Reading:
    """One prompt's residual stream ``(T, H)``, read in a channel: at a token, or where it is largest."""
    column = values[:, channel]
    here = int(column.abs().argmax()) if position is None else position
    where, loudest = divmod(int(values.abs().argmax()), values.shape[1])
    holders = tuple((column.abs() >= 0.5 * column[here].abs()).nonzero().flatten().tolist()[:HOLDERS])
    largest = float(values[where, loudest])
    return Reading(float(column[here]), largest, loudest, here if position is None else where, holders)


def place_of(residual: torch.Tensor, row: int, first: int) -> SuperActivation:
    """Where a row's activation sets in: the first layer from ``first`` on with half of the later maximum."""
    series = residual[first:-1, :, row].abs() if first < len(residual) - 1 else residual[first:, :, row].abs()
    position = int(series.amax(0).argmax())
    holds = (series[:, position] >= 0.5 * series[:, position].max()).nonzero().flatten()
    onset = first + int(holds[0])
    value, median = float(residual[onset, position, row]), float(residual[onset].abs().median())
    return SuperActivation(onset, row, position, value, median, first + int(holds[-1]))


@dataclass(frozen=True)
class Stream:
    """What is kept of a residual stream ``(L, T, H)`` to tell how far another one is off, layer by layer.

    ``away`` bool ``(L, T)`` are the tokens away from the sink, ``norms`` float32 ``(L,)`` what stands there, and
    ``values`` float32 ``(L, K)`` the same folded.
    """

    away: torch.Tensor
    norms: torch.Tensor
    values: torch.Tensor


def stream(residual: torch.Tensor) -> Stream:
    """What is kept of a residual stream, float32 ``(L, T, H)``."""
    largest = residual.abs().amax(2)
    away = largest <= SINK * largest.median(1, keepdim=True).values
    away |= ~away.any(1, keepdim=True)
    count = max(1, min(OF_LAYER, STREAMED // len(residual)))
    values = torch.stack([fold(layer[kept], count) for layer, kept in zip(residual, away, strict=True)])
    return Stream(away, torch.stack([layer[kept].norm() for layer, kept in zip(residual, away, strict=True)]), values)


def errors_in(residual: torch.Tensor, expected: Stream) -> list[float]:
    """How far another stream of the same prompt is off after every layer, away from the sink, relative to its norm."""
    rows = zip(residual, expected.away, expected.norms, expected.values, strict=True)
    return [
        float((fold(layer[kept], len(values)) - values).norm() / norm.clamp_min(1e-12))
        for layer, kept, norm, values in rows
    ]


def batches(lengths: Sequence[int], most: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """The numbers of the prompts, shortest first, in batches of at most ``most`` tokens with their padding.

    None of a batch is more than twice as long as its shortest: padding is paid for, one more pass hardly.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: (lengths[number], number)):
        longest = 2 * max(SHORT_PROMPT, lengths[batch[0]]) if batch else 0
        if batch and ((len(batch) + 1) * lengths[number] > most or lengths[number] > longest):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
