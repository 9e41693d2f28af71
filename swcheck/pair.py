"""A candidate beside its reference: what is asked of both before, and said after, whatever is compared.

What looks like super-weight damage and is none is ruled out first, in a fixed order. Bases are compared before coordinates
are used: permuted channels and neurons are followed. A red verdict has its cause found, and its fix. Nothing is raised
for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from swcheck.case import Case, Finding
from swcheck.diagnosis import explain
from swcheck.errors import NotFiniteError
from swcheck.kind import Kind, declared, seen
from swcheck.kinship import Kinship, related
from swcheck.limits import DEFAULTS
from swcheck.ratios import ratio_of
from swcheck.records import Outcome, SuperWeight, Verdict
from swcheck.remedy import remedy
from swcheck.solo import none_found
from swcheck.subject import Subject

REACHED: Final = {"perplexity": "perplexity", "super weights": "written", "super activations": "written"}
"""By check the number of a fix's proof that has to be within its limit for the fix to be enough."""

FOLLOWED: Final = DEFAULTS["contribution"]
"""How much of its contribution a weight has to write elsewhere to be the same one, permuted."""


@dataclass
class Pair:
    """A candidate beside its reference, for one check. ``chosen`` None means the reference's own super weights."""

    check: str
    candidate: Subject
    reference: Subject
    chosen: tuple[SuperWeight, ...] | None = None

    @property
    def weights(self) -> tuple[SuperWeight, ...]:
        """The super weights that are compared."""
        return self.reference.located().super_weights if self.chosen is None else self.chosen

    @property
    def kin(self) -> Kinship:
        """How the two models' residual streams relate."""
        return self.candidate.beside(
            self.reference, ("kin",), lambda: related(self.candidate.portrait(), self.reference.portrait())
        )

    @property
    def kind(self) -> Kind:
        """What was done to the candidate: what was asked for, else what its scheme or its weights say."""
        asked, scheme = self.candidate.kind, self.candidate.scheme
        if asked in {"finetuned", "pruned"}:
            return Kind(asked, "--swcheck-kind says so")
        if scheme is not None:
            return declared(scheme)
        if asked == "auto":
            return seen(self.candidate.sketch(), self.reference.sketch())
        return Kind("quantized", "nothing says how: held to the limits of an unknown scheme")

    def verdict(self, outcome: Outcome, summary: str, **more: Any) -> Verdict:
        name = None if self.candidate is self.reference else self.candidate.name
        return Verdict(self.check, self.reference.name, outcome, summary, name, **more)

    def failed(self, cause: str, summary: str, attempt: str = "", **more: Any) -> Verdict:
        return self.verdict(Outcome.FAILED, summary, cause=cause, attempt=attempt, **more)

    def passed(self, near: bool) -> Outcome:
        """Passed, or near where it is within the noise of its limit."""
        return Outcome.NEAR if near else Outcome.PASSED

    def confound(self) -> Verdict | None:
        """What looks like super-weight damage and is none, in a fixed order; None where all is ruled out."""
        kin, ids = self.kin, self.reference.prompt_ids()
        base = "give the reference this candidate was made from"
        if kin.kind == "other shape":
            return self.failed("wrong base model", kin.words, base)
        if not self.candidate.finite(ids):
            return self.not_finite(ids)
        if not self.reference.finite(ids):
            summary = "the reference itself answers NaN or infinity"
            return self.verdict(Outcome.INCONCLUSIVE, summary, cause="the reference is sick", attempt="check its dtype")
        if not _same_tokens(self.candidate, self.reference):
            summary = "the two tokenizers give other ids for the same text"
            advice = "save the reference's tokenizer beside the candidate"
            return self.failed("tokenizer or BOS policy differs", summary, advice)
        if kin.kind == "other model":
            return self.failed("wrong base model", kin.words, base)
        return None

    def obstacle(self) -> Verdict | None:
        """What stands before a comparison of super weights: a confound, or that the reference has none to compare."""
        confound = self.confound()
        if confound is not None or self.weights:
            return confound
        return none_found(self.check, self.reference, None if self.candidate is self.reference else self.candidate.name)

    def not_finite(self, ids: torch.Tensor) -> Verdict:
        """The candidate answers ``ids`` ``(B, T)`` with NaN or infinity: where that begins, and whether a range ended."""
        broken = self.candidate.breakdown(ids)
        if broken is None:
            advice = "load it in float32 or bfloat16; check its scales"
            return self.failed("not finite", "the candidate answers NaN or infinity", advice)
        if not broken.overflow:
            advice = "check how its weights were written; they are no numbers any more"
            return self.failed("not finite", f"NaN in the weights of {broken.module}", advice)
        made = "holds larger numbers in its weights" if broken.stored else "makes a larger number out of finite ones"
        summary = f"{broken.module} {made}: {broken.dtype} ends at {broken.largest:.6g}"
        advice = "keep this module in bfloat16 or float32, or scale it" if "float8" in broken.dtype or broken.stored else "load it in bfloat16 or float32: --swcheck-dtype"  # fmt: skip
        return self.failed(f"not finite: out of the range of {broken.dtype} in {broken.module}", summary, advice)

    def red(self, summary: str, *, share: float | None = None, **more: Any) -> Verdict:
        """A red verdict with its cause found, proven and in the first line, and what to do about it.

        ``summary`` says what is out of its limit; ``share`` is the dependence that is left, where that is what is red.
        """
        finding = self.finding(share)
        more["detail"] = (*finding.detail, *more.get("detail", ()))
        if finding.blame == "reference":
            return self.verdict(Outcome.INCONCLUSIVE, summary, cause=finding.cause, attempt=finding.advice, **more)
        return self.remedied(finding, summary, self.standing(), **more)

    def finding(self, share: float | None = None) -> Finding:
        """Why the candidate is worse; sought once for all checks, but for a lost dependence, ``share`` of it left."""
        chosen, there = self.standing()
        return self.candidate.beside(
            self.reference,
            ("finding", chosen, share is not None),
            lambda: explain(Case(self.candidate, self.reference, self.kin, chosen, there, share)),
        )

    def remedied(
        self,
        finding: Finding,
        summary: str,
        weights: tuple[Sequence[SuperWeight], Sequence[SuperWeight]],
        **more: Any,
    ) -> Verdict:
        """A red verdict whose finding names matrices: with the snippet that keeps them, its price and its proof."""
        if not finding.matrices:
            return self.failed(finding.cause, summary, finding.advice, **more)
        fix = remedy(self.candidate, self.reference, finding.matrices, weights, kind=self.kind.name)
        reached = fix.facts.get(REACHED.get(self.check, ""))
        short = reached is not None and fix.facts["proven"] and not more["limit"].holds(reached)
        more["detail"] = (*more.get("detail", ()), ("fix", f"{fix.proof}{', not enough yet' * short}"))
        more["facts"] = {**more.get("facts", {}), "fix": dict(fix.facts)}
        return self.failed(finding.cause, summary, fix.words, **more)

    def mapped(self, weights: Sequence[SuperWeight]) -> tuple[SuperWeight, ...]:
        """Where the reference's weights stand in the candidate: rows as its channels are permuted."""
        channels = self.kin.channels
        return tuple(replace(weight, row=channels[weight.row]) for weight in weights) if channels else tuple(weights)

    @property
    def depth(self) -> int:
        """How many layers the candidate has."""
        return self.candidate.portrait().layers

    def followed(
        self, chosen: Sequence[SuperWeight]
    ) -> tuple[tuple[SuperWeight, ...], tuple[float, ...], tuple[str, ...]]:
        """Where each weight stands in the candidate, what it writes there, and notes on what was permuted.

        A weight that writes little at its own column, while another inner neuron of the same row writes all of it, has
        been permuted along with its neuron: harmless.
        """
        theirs, ids = self.reference.written(chosen), self.reference.prompt_ids()
        sinks = [self.reference.sinks((weight,), ids)[0] for weight in chosen]
        mapped = self.mapped(chosen)
        notes = [f"permuted channels followed ({self.kin.words})"] if self.kin.channels else []
        there, ours = [], []
        for number, weight in enumerate(mapped):
            found, written, note = self._follow(weight, chosen[number], theirs[number], sinks[number])
            there.append(found)
            ours.append(written)
            notes += [note] if note else []
        return tuple(there), tuple(ours), tuple(notes)

    def _follow(
        self, weight: SuperWeight, original: SuperWeight, expected: float, sink: int
    ) -> tuple[SuperWeight, float, str]:
        """One weight in the candidate's coordinates: at its place, at a permuted neuron, or where it is located now."""
        ids, inner = self.reference.prompt_ids(), self.candidate.portrait().inner
        fits = weight.layer < self.depth and (inner is None or weight.column < inner)
        written = self.candidate.contributions((weight,), ids, (sink,))[0] if fits else 0.0
        if FOLLOWED.holds(ratio_of(written, expected)):
            return weight, written, ""
        if weight.layer < self.depth:
            column, found = self.candidate.columns(weight, ids, sink)[0]
            if column != weight.column and FOLLOWED.holds(ratio_of(found, expected)) and abs(written) < abs(found) / 2:
                note = f"its inner neuron {weight.column} is neuron {column} of the candidate"
                return replace(weight, column=column), found, note
            if self.kin.channels and column != weight.column and self._is_loudest(original, sink):
                note = f"its inner neuron {weight.column} may be neuron {column} of the candidate, the loudest there"
                return replace(weight, column=column), found, note
        again = self.candidate.located_on(ids)
        for other, found in zip(again.super_weights, again.written, strict=True):
            if other.row == weight.row and FOLLOWED.holds(ratio_of(found, expected)):
                return (
                    other,
                    found,
                    f"located again in the candidate: layer {other.layer} [{other.row}, {other.column}]",
                )
        if not fits:
            self.candidate.check([weight])
        return weight, written, ""

    def _is_loudest(self, weight: SuperWeight, sink: int) -> bool:
        """Whether its inner neuron speaks loudest at the sink in the reference, as far as that is known."""
        ids = self.reference.prompt_ids()
        known = self.reference.module is not None or self.reference.remembers_columns(weight, ids, sink)
        return known and self.reference.columns(weight, ids, sink)[0][0] == weight.column

    def standing(self) -> tuple[tuple[SuperWeight, ...], tuple[SuperWeight, ...]]:
        """The super weights, and where they stand in the candidate; none where there is no counterpart."""
        chosen = () if self.kin.kind == "rotated" else self.weights
        return chosen, self.followed(chosen)[0] if chosen else ()

    def broken(self, nats: torch.Tensor) -> torch.Tensor:
        """The first window whose nats are not all finite."""
        bad = int((~torch.isfinite(nats)).any(1).nonzero()[0])
        return self.reference.windows()[bad : bad + 1]

    def both(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The nats of every token of the reference's windows, reference and candidate, each in one pass."""
        theirs = self.reference.intact()[0]
        if not torch.isfinite(theirs).all():
            raise NotFiniteError(
                f"the perplexity of the reference {self.reference.name}", "NaN or infinity", "check its dtype"
            )
        if self.candidate is self.reference:
            return theirs, theirs
        return theirs, self.candidate.against(self.reference)[0]


def _same_tokens(one: Subject, other: Subject) -> bool:
    mine, theirs = one.sample_ids(), other.sample_ids()
    return mine == theirs or not mine or not theirs
