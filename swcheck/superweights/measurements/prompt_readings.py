"""Reads one channel of the residual stream after one layer on many prompts, several prompts in a pass.

Under causal masking a value depends only on the tokens before it. So padding on the right changes nothing, the tokens
behind the one that is read are left out, prompts that are equal up to it are run once, and a prompt with BOS often needs
no pass. B batch, T tokens, H residual width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from swcheck.base.records import SuperActivation
from swcheck.base.terminal.progress import with_bar
from swcheck.lens.architecture.layer_by_layer import streams_after
from swcheck.lens.architecture.storage import device_of, evaluating
from swcheck.lens.observe import observe
from swcheck.superweights.measurements.in_runtime import layer_in_runtime
from swcheck.superweights.measurements.inputs import has_bos, prompt_ids
from swcheck.superweights.measurements.residual_stream import is_residual_known, residual_stream
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost
from swcheck.superweights.subject.subject import Subject

MOST_HOLDERS: Final = 16
"""At most this many tokens that hold an activation are kept of a prompt."""
TOKENS_AT_ONCE: Final = 4096
"""At most this many tokens of prompts are in one pass, with the padding."""
SHORT_PROMPT: Final = 8
"""Prompts of at most twice this many tokens may share a pass, however their lengths differ."""


@dataclass(frozen=True)
class Reading:
    """What was read of one prompt after one layer.

    ``value`` is the residual value in the channel of interest. ``largest`` is the value of largest magnitude in all
    channels and tokens, ``channel`` its channel and ``position`` its token. But where the token of ``value`` was not
    given, ``position`` is the token at which ``value`` was read. ``holders`` are the first tokens at which the channel
    of interest has at least half of the magnitude of ``value``.
    """

    value: float
    largest: float
    channel: int
    position: int
    holders: tuple[int, ...] = ()


def reading_of(values: torch.Tensor, channel: int, position: int | None) -> Reading:
    """Read a channel of one prompt's residual stream ``(T, H)``, float, after one layer.

    ``position`` is the token to read; None means the token at which the magnitude of the channel is largest.
    """
    series = values[:, channel]
    token = int(series.abs().argmax()) if position is None else position
    largest_token, largest_channel = divmod(int(values.abs().argmax()), values.shape[1])
    holders = tuple((series.abs() >= 0.5 * series[token].abs()).nonzero().flatten().tolist()[:MOST_HOLDERS])
    largest = float(values[largest_token, largest_channel])
    at = token if position is None else largest_token
    return Reading(float(series[token]), largest, largest_channel, at, holders)


@measurement("readings", Cost.PROMPTS)
def readings(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, lengths: Sequence[int]
) -> tuple[Reading, ...]:
    """Return a reading of each prompt after the onset layer of ``place``, in its channel, where its magnitude is largest.

    ``ids``, int64 ``(B, T)``, are padded on the right, and ``lengths`` are the true lengths. A prompt that begins with
    BOS and the other tokens of the default prompt up to its sink gets the reading of that one, without a pass.
    """
    default, has_same_start = reading_by_causality(subject, place, ids, lengths)
    if default is None:
        return read_prompts(subject, place, ids, lengths)
    others = [number for number, same in enumerate(has_same_start) if not same]
    other_readings = iter(read_prompts(subject, place, ids[others], [lengths[number] for number in others]))
    return tuple(default if same else next(other_readings) for same in has_same_start)


def reading_by_causality(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, lengths: Sequence[int]
) -> tuple[Reading | None, tuple[bool, ...]]:
    """Return the reading of the default prompt, and for each prompt whether the same reading holds for it.

    It holds for prompts that equal the default prompt up to its sink, with BOS. Where the tokenizer adds no BOS the
    result is None, and False for all.
    """
    if not has_bos(subject):
        return None, (False,) * len(lengths)
    default = _default_reading(subject, place)
    start = prompt_ids(subject)[0, : default.position + 1]
    same = (ids[:, : len(start)] == start).all(1) if ids.shape[1] >= len(start) else torch.zeros(len(ids))
    return default, tuple(bool(one) and length >= len(start) for one, length in zip(same, lengths, strict=True))


@measurement("usual", Cost.PROMPT)
def _default_reading(subject: Subject, place: SuperActivation) -> Reading:
    prompt = prompt_ids(subject)
    return read_prompts(subject, place, prompt, [prompt.shape[1]])[0]


@measurement("readings at", Cost.PROMPTS)
def readings_at(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, positions: Sequence[int]
) -> tuple[Reading, ...]:
    """Return a reading of each prompt as ``readings`` does, but at the given tokens.

    A candidate is read at the tokens at which its reference carries the activation. Tokens behind these are left out,
    and prompts that are equal up to them are read once.
    """
    starts = [tuple(row[: position + 1]) for row, position in zip(ids.tolist(), positions, strict=True)]
    distinct = {start: number for number, start in enumerate(starts)}
    chosen = list(distinct.values())
    at = [positions[number] for number in chosen]
    chosen_readings = read_prompts(subject, place, ids[chosen], [position + 1 for position in at], at)
    by_start = dict(zip(distinct, chosen_readings, strict=True))
    return tuple(by_start[start] for start in starts)


def read_prompts(
    subject: Subject,
    place: SuperActivation,
    ids: torch.Tensor,
    lengths: Sequence[int],
    positions: Sequence[int] | None = None,
) -> tuple[Reading, ...]:
    """Read every prompt as ``readings`` does, at ``positions`` if they are given, and remember nothing.

    Prompts of similar length share a pass.
    """
    if len(ids) == 1 and is_residual_known(subject, ids):
        values = residual_stream(subject, ids)[place.layer, : lengths[0]]
        return (reading_of(values, place.channel, None if positions is None else positions[0]),)
    if subject.is_runtime:
        streams = (layer_in_runtime(subject, row[:count], place.layer) for row, count in zip(ids, lengths, strict=True))
        return tuple(
            reading_of(values, place.channel, None if positions is None else positions[number])
            for number, values in enumerate(streams)
        )
    found: dict[int, Reading] = {}
    batches = tuple(prompt_batches(lengths))
    padded = [ids[numbers, : lengths[numbers[-1]]] for numbers in batches]
    for numbers, residual in zip(batches, _streams_after(subject, padded, place.layer), strict=True):
        for row, number in enumerate(numbers):
            values = residual[row, : lengths[number]].float()
            found[number] = reading_of(values, place.channel, None if positions is None else positions[number])
    return tuple(found[number] for number in range(len(lengths)))


def _streams_after(subject: Subject, batches: Sequence[torch.Tensor], layer: int) -> Iterator[torch.Tensor]:
    """Yield the residual stream ``(B, T, H)`` after a layer for each of ``batches``, int64 ``(B, T)``."""
    if not batches:
        return
    model = subject.module
    together = streams_after(model, batches, layer)
    if together is not None:
        yield from together
        return
    for ids in with_bar(batches, "reading prompts", len(batches)):
        with evaluating(model), observe(model, residual=[layer], stop=True) as sight:
            model(ids.to(device_of(model)), use_cache=False)
        yield sight.residual[layer]


def prompt_batches(lengths: Sequence[int], most: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """Yield batches of prompt numbers, shortest prompts first, each of at most ``most`` tokens with the padding.

    In a batch no prompt is more than twice as long as the shortest, or as ``SHORT_PROMPT``: padding costs time, one more
    pass hardly any. A prompt longer than ``most`` is a batch of its own.
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
