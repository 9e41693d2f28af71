"""What is read of the residual stream: at which layer an activation sets in, and what a prompt shows at its place.

Pure functions of what a pass has shown. T time, H residual width, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from swcheck.records import SuperActivation

if TYPE_CHECKING:
    import torch

HOLDERS: Final = 16
TOKENS_AT_ONCE: Final = 4096
"""How many tokens of prompts are in one pass, padding counted."""
SHORT_PROMPT: Final = 8


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
