"""What prompts read of a model at a place of its residual stream, several prompts in a pass, equal ones once.

Under causal masking a value depends on what stands before it and on nothing else. So padding on the right is harmless,
what follows a sink is left out, and with BOS most prompts are known without a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swcheck.anatomy import device_of
from swcheck.measure import evaluating
from swcheck.observe import observe
from swcheck.reading import Reading, batches, reading
from swcheck.records import SuperActivation
from swcheck.subject import Subject, key_of


def readings(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, lengths: Sequence[int]
) -> tuple[Reading, ...]:
    """The residual stream after the onset layer, one reading per prompt of ``ids`` ``(B, T)``, padded right.

    The value is the one of the place's channel at the token where its magnitude is largest. Under causal masking
    padding on the right changes nothing to its left. With BOS, a prompt that begins as the default one does up to
    its sink has the same number there: that one is taken, and no pass.
    """
    return subject.once(
        ("readings", place, key_of(ids), tuple(lengths)), lambda: _readings(subject, place, ids, lengths)
    )


def _readings(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, lengths: Sequence[int]
) -> tuple[Reading, ...]:
    usual, like_it = by_causality(subject, place, ids, lengths)
    if usual is None:
        return read(subject, place, ids, lengths)
    other = [number for number, same in enumerate(like_it) if not same]
    others = iter(read(subject, place, ids[other], [lengths[number] for number in other]))
    return tuple(usual if same else next(others) for same in like_it)


def by_causality(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, lengths: Sequence[int]
) -> tuple[Reading | None, tuple[bool, ...]]:
    """The default prompt's reading, and which prompts begin, with BOS, as that one does up to its sink."""
    if not subject.has_bos:
        return None, (False,) * len(lengths)
    prompt = subject.prompt_ids()
    usual = subject.once(("usual", place), lambda: read(subject, place, prompt, [prompt.shape[1]])[0])
    start = prompt[0, : usual.position + 1]
    same = (ids[:, : len(start)] == start).all(1) if ids.shape[1] >= len(start) else torch.zeros(len(ids))
    return usual, tuple(bool(one) and length >= len(start) for one, length in zip(same, lengths, strict=True))


def readings_at(
    subject: Subject, place: SuperActivation, ids: torch.Tensor, positions: Sequence[int]
) -> tuple[Reading, ...]:
    """As ``readings``, the value taken at the given tokens: a candidate is read at the reference's own place.

    What follows such a token is left out: it changes nothing before it, and mostly all of a prompt follows its sink.
    Of prompts that are the same up to there one is read.
    """

    def compute() -> tuple[Reading, ...]:
        starts = [tuple(row[: position + 1]) for row, position in zip(ids.tolist(), positions, strict=True)]
        several = {start: number for number, start in enumerate(starts)}
        chosen = list(several.values())
        at = [positions[number] for number in chosen]
        each = read(subject, place, ids[chosen], [position + 1 for position in at], at)
        found = dict(zip(several, each, strict=True))
        return tuple(found[start] for start in starts)

    return subject.once(("readings at", place, key_of(ids), tuple(positions)), compute)


def read(
    subject: Subject,
    place: SuperActivation,
    ids: torch.Tensor,
    lengths: Sequence[int],
    positions: Sequence[int] | None = None,
) -> tuple[Reading, ...]:
    """A reading of every prompt, remembered by nobody; prompts of like length share a pass."""
    if len(ids) == 1 and subject.remembers(("residuals", key_of(ids))):
        values, position = (
            subject.residuals(ids)[place.layer, : lengths[0]],
            None if positions is None else positions[0],
        )
        return (reading(values, place.channel, position),)
    found: dict[int, Reading] = {}
    for numbers in batches(lengths):
        width = lengths[numbers[-1]]
        with evaluating(subject.live), observe(subject.live, residual=[place.layer], stop=True) as sight:
            subject.live(ids[numbers, :width].to(device_of(subject.live)), use_cache=False)
        for row, number in enumerate(numbers):
            values = sight.residual[place.layer][row, : lengths[number]].float()
            found[number] = reading(values, place.channel, None if positions is None else positions[number])
    return tuple(found[number] for number in range(len(lengths)))
