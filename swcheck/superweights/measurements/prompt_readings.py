"""What prompts show at one place of the residual stream: several prompts in a pass, equal ones once.

Under causal masking a value depends only on what stands before it. So padding on the right changes nothing, what
follows a sink is left out, and a prompt with BOS often needs no pass. B batch, T time, H residual width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from swcheck.base.records import SuperActivation
from swcheck.lens.anatomy import device_of
from swcheck.lens.likelihood import evaluating
from swcheck.lens.observe import observe
from swcheck.superweights.measurements.inputs import has_bos, prompt_ids
from swcheck.superweights.measurements.residual_stream import is_residual_known, residual_stream
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost
from swcheck.superweights.subject.subject import Subject

HOLDERS: Final = 16
"""At most so many tokens that hold an activation are kept of a prompt."""
TOKENS_AT_ONCE: Final = 4096
"""At most so many tokens of prompts are in one pass, padding counted."""
SHORT_PROMPT: Final = 8
"""Prompts of at most so many tokens share a pass however their lengths differ."""


@dataclass(frozen=True)
class Reading:
    """One prompt at one place: the residual value there, and the layer's largest value with its channel and token.

    ``holders`` are the first tokens at which the place's channel holds at least half of the value. In what ``readings``
    returns, ``position`` is the token at which the value was read.
    """

    value: float
    largest: float
    channel: int
    position: int
    holders: tuple[int, ...] = ()


def reading_of(values: torch.Tensor, channel: int, position: int | None) -> Reading:
    """Read one prompt's residual stream ``(T, H)`` in a channel, at a token or (None) where its magnitude is largest."""
    column = values[:, channel]
    here = int(column.abs().argmax()) if position is None else position
    where, loudest = divmod(int(values.abs().argmax()), values.shape[1])
    holders = tuple((column.abs() >= 0.5 * column[here].abs()).nonzero().flatten().tolist()[:HOLDERS])
    largest = float(values[where, loudest])
    return Reading(float(column[here]), largest, loudest, here if position is None else where, holders)


@measurement("readings", Cost.PROMPTS)
def readings(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, lengths: Sequence[int]
) -> tuple[Reading, ...]:
    """Read the prompts ``ids`` ``(B, T)``, padded on the right, after the onset layer of ``place``: one reading each.

    The value is the one in the place's channel at the token where its magnitude is largest. A prompt that begins, with
    BOS, like the default prompt up to its sink gets the default prompt's reading without a pass.
    """
    usual, like_it = by_causality(subject, place, ids, lengths)
    if usual is None:
        return read(subject, place, ids, lengths)
    other = [number for number, same in enumerate(like_it) if not same]
    others = iter(read(subject, place, ids[other], [lengths[number] for number in other]))
    return tuple(usual if same else next(others) for same in like_it)


def by_causality(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, lengths: Sequence[int]
) -> tuple[Reading | None, tuple[bool, ...]]:
    """Return the default prompt's reading, and for each prompt whether it begins, with BOS, like that one up to its sink.

    None, and False for all, where prompts do not begin with BOS.
    """
    if not has_bos(subject):
        return None, (False,) * len(lengths)
    usual = _default_reading(subject, place)
    start = prompt_ids(subject)[0, : usual.position + 1]
    same = (ids[:, : len(start)] == start).all(1) if ids.shape[1] >= len(start) else torch.zeros(len(ids))
    return usual, tuple(bool(one) and length >= len(start) for one, length in zip(same, lengths, strict=True))


@measurement("usual", Cost.PROMPT)
def _default_reading(subject: Subject, place: SuperActivation) -> Reading:
    prompt = prompt_ids(subject)
    return read(subject, place, prompt, [prompt.shape[1]])[0]


@measurement("readings at", Cost.PROMPTS)
def readings_at(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, positions: Sequence[int]
) -> tuple[Reading, ...]:
    """As ``readings``, at the given tokens: a candidate is read where the reference carries its activation.

    What follows such a token is left out, and of prompts that are equal up to it one is read.
    """
    starts = [tuple(row[: position + 1]) for row, position in zip(ids.tolist(), positions, strict=True)]
    several = {start: number for number, start in enumerate(starts)}
    chosen = list(several.values())
    at = [positions[number] for number in chosen]
    each = read(subject, place, ids[chosen], [position + 1 for position in at], at)
    found = dict(zip(several, each, strict=True))
    return tuple(found[start] for start in starts)


def read(
    subject: Subject,
    place: SuperActivation,
    ids: torch.Tensor,
    lengths: Sequence[int],
    positions: Sequence[int] | None = None,
) -> tuple[Reading, ...]:
    """Read every prompt, and remember nothing; prompts of similar length share a pass."""
    if len(ids) == 1 and is_residual_known(subject, ids):
        values = residual_stream(subject, ids)[place.layer, : lengths[0]]
        return (reading_of(values, place.channel, None if positions is None else positions[0]),)
    found: dict[int, Reading] = {}
    for numbers in batches(lengths):
        model, width = subject.module, lengths[numbers[-1]]
        with evaluating(model), observe(model, residual=[place.layer], stop=True) as sight:
            model(ids[numbers, :width].to(device_of(model)), use_cache=False)
        for row, number in enumerate(numbers):
            values = sight.residual[place.layer][row, : lengths[number]].float()
            found[number] = reading_of(values, place.channel, None if positions is None else positions[number])
    return tuple(found[number] for number in range(len(lengths)))


def batches(lengths: Sequence[int], most: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """Yield the numbers of the prompts, shortest first, in batches of at most ``most`` tokens with their padding.

    In a batch no prompt is more than twice as long as the shortest: padding costs time, one more pass hardly any.
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
