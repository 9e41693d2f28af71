"""The super activations of two models on the same prompts, at the reference's own place; the worst prompt, made small.

A prompt counts only if the reference carries its activation there. With BOS at position 0 and the sink on it, every
prompt reads the same number, by causal masking; where the sink may move (no BOS, delimiters), each is a case of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from swcheck.errors import OptionError
from swcheck.location import PROMPT
from swcheck.measure import adds_bos
from swcheck.prompted import by_causality, read, readings, readings_at
from swcheck.prompts import PASSES, as_prompt, cut, decoded, encoded, padded, shown, shrunk
from swcheck.ratios import ratio_of, worst_of
from swcheck.records import Limit, Outcome, Prompt, SuperActivation, SuperWeight

if TYPE_CHECKING:
    import torch

    from swcheck.reading import Reading
    from swcheck.subject import Subject

ENOUGH: Final = 20
"""So many prompts have to count, or all of them where fewer are given."""

CARRIED: Final = 0.5
"""A prompt counts where the reference carries so much of its activation."""

ALIKE: Final = 1e-3
"""Two prompts whose ratios differ by no more than this are as bad."""

LOST: Final = 0.25
"""Below this share an activation is lost, and how far below is noise."""

IN_TURN: Final = 3
"""So many times a reference and its candidate are loaded in turn to shrink a prompt."""


@dataclass(frozen=True)
class Row:
    """One prompt that counts at one place: in the reference ``origin``, in the candidate ``place``."""

    origin: SuperActivation
    place: SuperActivation
    ours: Reading
    theirs: Reading
    number: int

    @property
    def ratio(self) -> float:
        """What the candidate carries over what the reference does."""
        return ratio_of(self.ours.value, self.theirs.value)


@dataclass(frozen=True)
class Activations:
    """A candidate beside its reference; ``channels`` says where each of the reference's stands there, None the same."""

    candidate: Subject
    reference: Subject
    weights: tuple[SuperWeight, ...]
    channels: Sequence[int] | None = None

    def compare(self, prompts: Sequence[str | Prompt] | None, limit: Limit) -> tuple[Outcome, str, dict[str, Any]]:
        """How the comparison ends: outcome, summary, and the other fields of a verdict."""
        asked, ids, lengths = self._asked(prompts)
        places = self.reference.places(self.weights)
        counted = [row for place in places for row in self._compare(place, ids, lengths)]
        count = len({row.number for row in counted})
        if count < min(ENOUGH, len(lengths)):
            summary = f"the reference carries its activation on {count or 'none'} of {len(lengths)} prompts"
            advice = "give prompts that begin with BOS" if self.reference.has_bos else "give more prompts"
            return Outcome.INCONCLUSIVE, summary, {"cause": "nothing to compare", "attempt": advice}
        ratios, bare = [row.ratio for row in counted], self._bare(asked, ids)
        worst = _simplest(counted, counted[worst_of(ratios, limit)], asked)
        passed = all(limit.holds(ratio) for ratio in ratios)
        sink = self.reference.has_bos and all(row.theirs.position == 0 and row.number not in bare for row in counted)
        where = self._shown(asked, worst, limit, sink)
        summary = (
            f"channel {worst.place.channel} at token {worst.theirs.position} after layer {worst.place.layer}: "
            f"{worst.ours.value:+.4g} for {worst.theirs.value:+.4g} (x{worst.ratio:z.3f}), worst of {count}"
            f"{f' of {len(lengths)} prompts' if count < len(lengths) else ''}"
            f"{', n = 1 by causality' if sink else ''}"
        )
        facts = {"ratios": ratios, "prompts": len(lengths), "counted": count, **where}
        more: dict[str, Any] = {"measured": worst.ratio, "limit": limit, "unit": "x", "facts": facts}
        if passed:
            return Outcome.PASSED, summary, more
        prompt = self._witness(worst, ids, lengths)
        (ours,) = read(self.candidate, worst.place, prompt, [prompt.shape[1]], [worst.theirs.position])
        own = {self._there(place).channel for place in places}
        cause = _activation_cause(replace(worst, ours=ours), own) + _only(bare, counted, limit)
        more["detail"] = _prompt_detail(where, sum(not limit.holds(ratio) for ratio in ratios), len(counted))
        return Outcome.FAILED, summary, {**more, "cause": cause, "attempt": "see the super weights that write it"}

    @property
    def tokenizer(self) -> Any:
        """The reference's tokenizer, the candidate's where only numbers of the reference are at hand; None without any."""
        return self.candidate.tokenizer if self.reference.tokenizer is None else self.reference.tokenizer

    def _asked(
        self, prompts: Sequence[str | Prompt] | None
    ) -> tuple[tuple[Prompt, ...], torch.Tensor, tuple[int, ...]]:
        """The prompts that have a token, their ids int64 ``(B, T)``, padded on the right, and the length of each."""
        if prompts is None:
            ids = self.reference.prompt_ids()
            return (), ids, (ids.shape[1],)
        if isinstance(prompts, str):  # each of its letters would be a prompt
            raise OptionError("prompts", "a single text", f"a list: prompts=[{prompts[:20]!r}]")
        if not prompts:
            raise OptionError("prompts", "an empty list: nothing would be checked", "leave it out for the default one")
        asked = tuple(as_prompt(prompt) for prompt in prompts)
        if self.tokenizer is None and not self.reference.remembers(("padded", asked)):
            raise OptionError("prompts", "a bare module without a tokenizer", "pass tokenizer=")
        teller = self.reference if self.reference.tokenizer is not None else self.candidate
        ids, lengths = self.reference.once(("padded", asked), lambda: padded(self.tokenizer, asked, teller.context))
        some = [number for number, length in enumerate(lengths) if length]
        if not some:
            raise OptionError("prompts", "no prompt of them has a token", f"for example {PROMPT!r}")
        return tuple(asked[number] for number in some), ids[some], tuple(lengths[number] for number in some)

    def _compare(self, place: SuperActivation, ids: torch.Tensor, lengths: Sequence[int]) -> list[Row]:
        """One row for each prompt on which the reference carries half of its activation or more."""
        there = self._there(place)
        found = readings(self.reference, place, ids, lengths)
        some = [number for number, reading in enumerate(found) if _carried(place, reading)]
        theirs = [found[number] for number in some]
        if self.candidate is self.reference and there == place:
            ours: Sequence[Reading] = theirs
        else:
            ours = readings_at(self.candidate, there, ids[some], [reading.position for reading in theirs])
        return [Row(place, there, *three) for three in zip(ours, theirs, some, strict=True)]

    def _witness(self, row: Row, ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """The whole prompt ``(1, T)`` that the reference's reading is of: the default one's stands for all like it."""
        own, length = ids[row.number : row.number + 1, : lengths[row.number]], lengths[row.number]
        return self.reference.prompt_ids() if by_causality(self.reference, row.origin, own, [length])[1][0] else own

    def _there(self, place: SuperActivation) -> SuperActivation:
        """The reference's place in the candidate's coordinates."""
        return replace(place, channel=self.channels[place.channel]) if self.channels else place

    def _shown(self, asked: Sequence[Prompt], worst: Row, limit: Limit, sink: bool) -> dict[str, str]:
        """The worst prompt as facts: without what follows its sink, and where it fails without all it can spare."""
        if not asked:
            return {"worst_prompt": "the default prompt"} if self.tokenizer is not None else {}
        whole = asked[worst.number]
        if sink:
            return {"worst_prompt": shown(self.tokenizer, Prompt(""))}
        small = cut(self.tokenizer, whole, worst.theirs.position)
        if not limit.holds(worst.ratio) and worst.theirs.position and self.reference.at_a_fair_price:
            small = self._shrunk(small, worst, limit)
        return {"worst_prompt": shown(self.tokenizer, small), "shrunk_from": shown(self.tokenizer, whole)}

    def _shrunk(self, prompt: Prompt, worst: Row, limit: Limit) -> Prompt:
        """The prompt without all that can be taken away while the reference carries its activation and ours fails."""

        def fails(several: list[tuple[int, ...]]) -> list[bool]:
            written = [decoded(self.tokenizer, ids) for ids in several]
            some = [number for number, text in enumerate(written) if text is not None]
            if not some:
                return [False] * len(several)
            ids, lengths = padded(self.tokenizer, [text for text in written if text is not None])
            place = worst.origin
            theirs = read(self.reference, place, ids, lengths)
            ours = read(self.candidate, self._there(place), ids, lengths, [reading.position for reading in theirs])
            rows = (Row(place, worst.place, *three) for three in zip(ours, theirs, some, strict=True))
            bad = {row.number for row in rows if _carried(place, row.theirs) and not limit.holds(row.ratio)}
            return [number in bad for number in range(len(several))]

        passes = PASSES if self.reference.module is not None else IN_TURN
        return decoded(self.tokenizer, shrunk(encoded(self.tokenizer, prompt), fails, passes)) or prompt

    def _bare(self, asked: Sequence[Prompt], ids: torch.Tensor) -> frozenset[int]:
        """The numbers of the prompts that lack the BOS that the tokenizer would add; without one, by their form."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return frozenset(number for number, prompt in enumerate(asked) if prompt.form == "bare")
        if not asked or not adds_bos(tokenizer):
            return frozenset()
        return frozenset((ids[:, 0] != tokenizer.bos_token_id).nonzero().flatten().tolist())


def _only(bare: Collection[int], counted: Sequence[Row], limit: Limit) -> str:
    """Words for a failure that shows only on prompts without BOS, ``bare`` their numbers."""
    counting = {row.number for row in counted}
    bad = {row.number for row in counted if not limit.holds(row.ratio)}
    return ", only on prompts without BOS" if bad <= counting.intersection(bare) < counting else ""


def _carried(place: SuperActivation, reading: Reading) -> bool:
    """Whether a prompt counts: it carries half of what the default prompt does."""
    return abs(reading.value) >= CARRIED * abs(place.value)


def _alike(one: float, other: float) -> bool:
    """Whether two prompts are as bad: by nearly the same number, lost both, or both not finite."""
    if not math.isfinite(one) or not math.isfinite(other):
        return not math.isfinite(one) and not math.isfinite(other)
    return abs(one - other) <= ALIKE * abs(other) or max(abs(one), abs(other)) < LOST


def _simplest(rows: Sequence[Row], worst: Row, asked: Sequence[Prompt]) -> Row:
    """Of the prompts that are as bad as the worst, the one whose sink comes first, then the shortest."""
    alike = [row for row in rows if row is worst or _alike(row.ratio, worst.ratio)]
    return min(alike, key=lambda row: (row.theirs.position, len(asked[row.number].text) if asked else 0, row.number))


def _prompt_detail(where: dict[str, str], bad: int, count: int) -> tuple[tuple[str, str], ...]:
    if "worst_prompt" not in where:
        return ()
    rows = [("worst prompt", where["worst_prompt"])]
    if where.get("shrunk_from", where["worst_prompt"]) != where["worst_prompt"]:
        rows.append(("shrunk from", where["shrunk_from"]))
    return (*rows, ("prompts", f"{bad} of {count} that count are outside the limit"))


def _activation_cause(row: Row, own: Collection[int]) -> str:
    """What became of an activation. One that stands in another of the reference's ``own`` channels was there before:
    it is the other half of a pair, and nothing has moved.
    """
    place, ratio, ours, theirs = row.place, row.ratio, row.ours, row.theirs
    where = f"super activation of channel {place.channel} at token {theirs.position}"
    if not math.isfinite(ratio):
        return f"{where} is not finite"
    stands_elsewhere = abs(ratio) < 0.5 and abs(ours.largest) >= 0.5 * abs(theirs.value)
    if stands_elsewhere and ours.channel not in own:
        return f"{where} moved to channel {ours.channel} (x{ratio:z.2f} at its place)"
    if stands_elsewhere and ours.channel == place.channel and ours.position not in theirs.holders:
        return f"{where} moved to token {ours.position} (x{ratio:z.2f} at its place)"
    if ratio <= -LOST:
        return f"{where} has its sign flipped (x{ratio:z.2f})"
    return f"{where} {'lost' if ratio < 0.5 else 'weakened' if ratio < 1 else 'amplified'} (x{ratio:z.2f})"
