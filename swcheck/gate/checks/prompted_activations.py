"""Compares the super activations of two models on the same prompts, at the reference's layer, channel and token.

A prompt counts only if the reference has its activation there. With BOS at position 0 and the sink on it, every prompt
gives the same value, because of causal masking. Where the sink may move (no BOS, delimiters), prompts can differ. The
worst prompt is reported, and shortened if it fails. B batch, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import OptionError
from swcheck.base.records import Limit, Outcome, Prompt, SuperActivation, SuperWeight
from swcheck.base.statistics import ratio_of, worst_of
from swcheck.lens.prompts import (
    SHRINK_BATCHES,
    as_prompt,
    encode_batch,
    encode_prompt,
    prompt_for_ids,
    prompt_label,
    shortest_start,
    shrink_ids,
)
from swcheck.lens.tokens import adds_bos
from swcheck.superweights.locating.locate import PROMPT
from swcheck.superweights.measurements.inputs import PADDED_PROMPTS, context_length, has_bos, prompt_ids
from swcheck.superweights.measurements.prompt_readings import (
    Reading,
    read_prompts,
    reading_by_causality,
    readings,
    readings_at,
)
from swcheck.superweights.measurements.residual_stream import super_activations
from swcheck.superweights.measurements.weights import is_quickly_measurable

if TYPE_CHECKING:
    import torch

    from swcheck.superweights.subject.subject import Subject

FEWEST_PROMPTS: Final = 20
"""The number of prompts that have to count; all of them if fewer are given."""

LEAST_CARRIED: Final = 0.5
"""A prompt counts if the reference has at least this share of its activation on it."""

EQUALLY_BAD: Final = 1e-3
"""Two prompts are equally bad if their ratios differ by at most this share."""

LOST: Final = 0.25
"""Below this ratio an activation is lost; differences between such ratios are noise."""

RELOADING_PASSES: Final = 3
"""How many passes at most shorten a prompt if reference and candidate have to be loaded in turn for each."""


@dataclass(frozen=True)
class Comparison:
    """The readings of both models at one super activation, on one prompt that counts.

    ``origin`` is the activation in the reference's channels, ``place`` the same in the candidate's. ``ours`` is the
    candidate's reading, ``theirs`` the reference's. ``number`` is the index of the prompt.
    """

    origin: SuperActivation
    place: SuperActivation
    ours: Reading
    theirs: Reading
    number: int

    @property
    def ratio(self) -> float:
        """The candidate's value over the reference's."""
        return ratio_of(self.ours.value, self.theirs.value)


@dataclass(frozen=True)
class PromptBatch:
    """The prompts that have at least one token; ``prompts`` is empty if only the default prompt is read.

    ``ids``, int64 ``(B, T)``, are padded on the right; ``lengths`` are the true lengths. ``without_bos`` has the
    indices of the prompts that lack the BOS that the tokenizer would add.
    """

    prompts: tuple[Prompt, ...]
    ids: torch.Tensor
    lengths: tuple[int, ...]
    without_bos: frozenset[int]


@dataclass(frozen=True)
class PromptedActivations:
    """A candidate and its reference, whose super activations are compared.

    ``weights`` are the super weights in the reference's coordinates. ``channels`` gives for each channel of the
    reference its place in the candidate; empty or None means the same.
    """

    candidate: Subject
    reference: Subject
    weights: tuple[SuperWeight, ...]
    channels: Sequence[int] | None = None

    def compare(self, prompts: Sequence[str | Prompt] | None, limit: Limit) -> tuple[Outcome, str, dict[str, Any]]:
        """Compare on ``prompts``, None for the default one; return outcome, summary and other fields of a verdict.

        Raises ``OptionError`` for invalid prompts, and for prompts without a tokenizer.
        """
        batch = self._batch(prompts)
        places = super_activations(self.reference, self.weights)
        counted = [one for place in places for one in self._comparisons(place, batch)]
        count = len({one.number for one in counted})
        if count < min(FEWEST_PROMPTS, len(batch.lengths)):
            summary = f"the reference carries its activation on {count or 'none'} of {len(batch.lengths)} prompts"
            advice = "give prompts that begin with BOS" if has_bos(self.reference) else "give more prompts"
            return (
                Outcome.INCONCLUSIVE,
                summary,
                {"cause": "nothing to compare", "attempt": advice, "cause_kind": "reference"},
            )
        ratios = [one.ratio for one in counted]
        worst = _simplest_of_worst(counted, counted[worst_of(ratios, limit)], batch.prompts)
        on_bos = has_bos(self.reference) and all(
            one.theirs.position == 0 and one.number not in batch.without_bos for one in counted
        )
        where = self._worst_prompt(batch.prompts, worst, limit, on_bos=on_bos)
        facts = {"ratios": ratios, "prompts": len(batch.lengths), "counted": count, **where}
        fields: dict[str, Any] = {"measured": worst.ratio, "limit": limit, "unit": "x", "facts": facts}
        summary = _summary(worst, count, len(batch.lengths), on_bos=on_bos)
        if all(limit.holds(ratio) for ratio in ratios):
            return Outcome.PASSED, summary, fields
        prompt = self._read_prompt_ids(worst, batch)
        (ours,) = read_prompts(self.candidate, worst.place, prompt, [prompt.shape[1]], [worst.theirs.position])
        own = {self._in_candidate(place).channel for place in places}
        cause = _cause(replace(worst, ours=ours), own) + _only_without_bos_words(batch.without_bos, counted, limit)
        fields["detail"] = _rows(where, sum(not limit.holds(ratio) for ratio in ratios), len(counted))
        return Outcome.FAILED, summary, {**fields, "cause": cause, "attempt": "see the super weights that write it"}

    @property
    def tokenizer(self) -> Any:
        """The reference's tokenizer, else the candidate's (a baseline has none), else None."""
        return self.candidate.tokenizer if self.reference.tokenizer is None else self.reference.tokenizer

    def _batch(self, prompts: Sequence[str | Prompt] | None) -> PromptBatch:
        if prompts is None:
            ids = prompt_ids(self.reference)
            return PromptBatch((), ids, (ids.shape[1],), frozenset())
        records = _as_prompts(prompts)
        if self.tokenizer is None and not PADDED_PROMPTS.knows(self.reference, records):
            raise OptionError("prompts", "a bare module without a tokenizer", "pass tokenizer=")
        owner = self.reference if self.reference.tokenizer is not None else self.candidate
        ids, lengths = PADDED_PROMPTS.recall(
            self.reference, (records,), lambda: encode_batch(self.tokenizer, records, context_length(owner))
        )
        numbers = [number for number, length in enumerate(lengths) if length]
        if not numbers:
            raise OptionError("prompts", "no prompt of them has a token", f"for example {PROMPT!r}")
        chosen = tuple(records[number] for number in numbers)
        bare = _indices_without_bos(self.tokenizer, chosen, ids[numbers])
        return PromptBatch(chosen, ids[numbers], tuple(lengths[number] for number in numbers), bare)

    def _comparisons(self, place: SuperActivation, batch: PromptBatch) -> list[Comparison]:
        """Return a comparison for each prompt on which the reference has its activation."""
        there, ids = self._in_candidate(place), batch.ids
        found = readings(self.reference, place, ids, batch.lengths)
        numbers = [number for number, reading in enumerate(found) if _has_activation(place, reading)]
        theirs = [found[number] for number in numbers]
        if self.candidate is self.reference and there == place:
            ours: Sequence[Reading] = theirs
        else:
            ours = readings_at(self.candidate, there, ids[numbers], [reading.position for reading in theirs])
        return [Comparison(place, there, *three) for three in zip(ours, theirs, numbers, strict=True)]

    def _read_prompt_ids(self, one: Comparison, batch: PromptBatch) -> torch.Tensor:
        """Return the ids ``(1, T)`` that the reference was read on: the default prompt if equal by causality."""
        length = batch.lengths[one.number]
        own = batch.ids[one.number : one.number + 1, :length]
        return (
            prompt_ids(self.reference) if reading_by_causality(self.reference, one.origin, own, [length])[1][0] else own
        )

    def _in_candidate(self, place: SuperActivation) -> SuperActivation:
        return replace(place, channel=self.channels[place.channel]) if self.channels else place

    def _worst_prompt(
        self, prompts: Sequence[Prompt], worst: Comparison, limit: Limit, *, on_bos: bool
    ) -> dict[str, str]:
        """Return as facts the worst prompt, cut after its sink and shortened further if it fails, and the whole one."""
        if not prompts:
            return {"worst_prompt": "the default prompt"} if self.tokenizer is not None else {}
        whole = prompts[worst.number]
        if on_bos:
            return {"worst_prompt": prompt_label(self.tokenizer, Prompt(""))}
        short = shortest_start(self.tokenizer, whole, worst.theirs.position)
        if not limit.holds(worst.ratio) and worst.theirs.position and is_quickly_measurable(self.reference):
            short = self._shorten(short, worst, limit)
        return {"worst_prompt": prompt_label(self.tokenizer, short), "shrunk_from": prompt_label(self.tokenizer, whole)}

    def _shorten(self, prompt: Prompt, worst: Comparison, limit: Limit) -> Prompt:
        """Remove all tokens without which the reference still has its activation and the candidate still fails."""

        def fails(trials: list[tuple[int, ...]]) -> list[bool]:
            texts = [prompt_for_ids(self.tokenizer, ids) for ids in trials]
            numbers = [number for number, text in enumerate(texts) if text is not None]
            if not numbers:
                return [False] * len(trials)
            ids, lengths = encode_batch(self.tokenizer, [text for text in texts if text is not None])
            place = worst.origin
            theirs = read_prompts(self.reference, place, ids, lengths)
            positions = [reading.position for reading in theirs]
            ours = read_prompts(self.candidate, self._in_candidate(place), ids, lengths, positions)
            each = (Comparison(place, worst.place, *three) for three in zip(ours, theirs, numbers, strict=True))
            bad = {one.number for one in each if _has_activation(place, one.theirs) and not limit.holds(one.ratio)}
            return [number in bad for number in range(len(trials))]

        passes = SHRINK_BATCHES if self.reference.held.in_memory else RELOADING_PASSES
        return (
            prompt_for_ids(self.tokenizer, shrink_ids(encode_prompt(self.tokenizer, prompt), fails, passes)) or prompt
        )


def _as_prompts(prompts: Sequence[str | Prompt]) -> tuple[Prompt, ...]:
    """Return the prompts as records. Raises ``OptionError`` for a single text, an empty list, or what is no prompt."""
    if isinstance(prompts, str):  # else each of its letters would be a prompt
        raise OptionError("prompts", "a single text", f"a list: prompts=[{prompts[:20]!r}]")
    if not prompts:
        raise OptionError("prompts", "an empty list: nothing would be checked", "leave it out for the default one")
    return tuple(as_prompt(prompt) for prompt in prompts)


def _indices_without_bos(tokenizer: Any, prompts: Sequence[Prompt], ids: torch.Tensor) -> frozenset[int]:
    """Return the indices of the prompts that lack the tokenizer's BOS; without a tokenizer their form decides."""
    if tokenizer is None:
        return frozenset(number for number, prompt in enumerate(prompts) if prompt.form == "bare")
    if not adds_bos(tokenizer):
        return frozenset()
    return frozenset((ids[:, 0] != tokenizer.bos_token_id).nonzero().flatten().tolist())


def _has_activation(place: SuperActivation, reading: Reading) -> bool:
    """Return whether the reference has its activation on a prompt."""
    return abs(reading.value) >= LEAST_CARRIED * abs(place.value)


def _simplest_of_worst(counted: Sequence[Comparison], worst: Comparison, prompts: Sequence[Prompt]) -> Comparison:
    """Return, of the comparisons as bad as the worst, the one with the earliest sink, then with the shortest prompt."""
    bad = [one for one in counted if one is worst or _is_equally_bad(one.ratio, worst.ratio)]
    return min(bad, key=lambda one: (one.theirs.position, len(prompts[one.number].text) if prompts else 0, one.number))


def _is_equally_bad(one: float, other: float) -> bool:
    """Return whether two ratios are equally bad: nearly the same, both lost, or both not finite."""
    if not math.isfinite(one) or not math.isfinite(other):
        return not math.isfinite(one) and not math.isfinite(other)
    return abs(one - other) <= EQUALLY_BAD * abs(other) or max(abs(one), abs(other)) < LOST


def _summary(worst: Comparison, count: int, total: int, *, on_bos: bool) -> str:
    return (
        f"channel {worst.place.channel} at token {worst.theirs.position} after layer {worst.place.layer}: "
        f"{worst.ours.value:+.4g} for {worst.theirs.value:+.4g} (x{worst.ratio:z.3f}), worst of {count}"
        f"{f' of {total} prompts' if count < total else ''}"
        f"{', n = 1 by causality' if on_bos else ''}"
    )


def _rows(where: dict[str, str], bad: int, count: int) -> tuple[tuple[str, str], ...]:
    if "worst_prompt" not in where:
        return ()
    rows = [("worst prompt", where["worst_prompt"])]
    if where.get("shrunk_from", where["worst_prompt"]) != where["worst_prompt"]:
        rows.append(("shrunk from", where["shrunk_from"]))
    return (*rows, ("prompts", f"{bad} of {count} that count are outside the limit"))


def _only_without_bos_words(without_bos: Collection[int], counted: Sequence[Comparison], limit: Limit) -> str:
    """Return words for a failure on prompts without BOS only; empty for any other."""
    numbers = {one.number for one in counted}
    bad = {one.number for one in counted if not limit.holds(one.ratio)}
    return ", only on prompts without BOS" if bad <= numbers.intersection(without_bos) < numbers else ""


def _cause(one: Comparison, own: Collection[int]) -> str:
    """Return in words how an activation changed.

    A large value in another super activation's channel (``own``) was there before, so it does not mean a move.
    """
    place, ratio, ours, theirs = one.place, one.ratio, one.ours, one.theirs
    where = f"super activation of channel {place.channel} at token {theirs.position}"
    if not math.isfinite(ratio):
        return f"{where} is not finite"
    is_elsewhere = abs(ratio) < 0.5 and abs(ours.largest) >= 0.5 * abs(theirs.value)
    if is_elsewhere and ours.channel not in own:
        return f"{where} moved to channel {ours.channel} (x{ratio:z.2f} at its place)"
    if is_elsewhere and ours.channel == place.channel and ours.position not in theirs.holders:
        return f"{where} moved to token {ours.position} (x{ratio:z.2f} at its place)"
    if ratio <= -LOST:
        return f"{where} has its sign flipped (x{ratio:z.2f})"
    return f"{where} {'lost' if ratio < 0.5 else 'weakened' if ratio < 1 else 'amplified'} (x{ratio:z.2f})"
