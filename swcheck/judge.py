"""The comparisons behind the assertions: numbers of subjects in, verdicts out. Nothing is raised for a red one.

A ``Pair`` holds a candidate against its reference. What looks like super-weight damage and is none is ruled out first,
in a fixed order. Bases are compared before coordinates are used: permuted channels and neurons are followed, and a
rotated candidate is judged by the norm of the sink token instead of a channel it cannot have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from swcheck.activations import Activations
from swcheck.cached import WINDOWS, CachePass, cache_pass
from swcheck.coverage import unquantized
from swcheck.diagnosis import Case, Finding, basis, explain, lost_in, of_layer, weight_cause
from swcheck.errors import NotFiniteError
from swcheck.kind import Kind, declared, seen
from swcheck.kinship import Kinship, related
from swcheck.limits import CRITICAL, DEFAULTS, for_confidence, kind_of
from swcheck.ratios import (
    ERRORS,
    LARGEST_EXPONENT,
    capped_collapse,
    collapse_ratio,
    count,
    near,
    near_ratio,
    perplexity_of,
    ratio_of,
    standard_error,
    times,
    worst_of,
)
from swcheck.records import Limit, Outcome, Prompt, SuperWeight, Verdict
from swcheck.remedy import remedy
from swcheck.solo import causal_intact, none_found
from swcheck.subject import Subject

SHOWN: Final = 3
"""So many names of matrices that a quantizer skipped are said; the rest is counted."""

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
        return self.candidate.once(
            ("kin", self.reference.mark), lambda: related(self.candidate.portrait(), self.reference.portrait())
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

    def none(self) -> Verdict:
        return none_found(self.check, self.reference, None if self.candidate is self.reference else self.candidate.name)

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
        return self.remedied(finding, summary, self._standing(), **more)

    def finding(self, share: float | None = None) -> Finding:
        """Why the candidate is worse; sought once for all checks, but for a lost dependence, ``share`` of it left."""
        chosen, there = self._standing()
        return self.candidate.once(
            ("finding", self.reference.mark, chosen, share is not None),
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
        fix = remedy(self.candidate, self.reference, finding.matrices, weights)
        reached = fix.facts.get(REACHED.get(self.check, ""))
        short = reached is not None and fix.facts["proven"] and not more["limit"].holds(reached)
        more["detail"] = (*more.get("detail", ()), ("fix", f"{fix.proof}{', not enough yet' * short}"))
        more["facts"] = {**more.get("facts", {}), "fix": dict(fix.facts)}
        return self.failed(finding.cause, summary, fix.words, **more)

    def mapped(self, weights: Sequence[SuperWeight]) -> tuple[SuperWeight, ...]:
        """Where the reference's weights stand in the candidate: rows as its channels are permuted."""
        channels = self.kin.channels
        return tuple(replace(weight, row=channels[weight.row]) for weight in weights) if channels else tuple(weights)

    def compare_weights(self, limit: Limit) -> Verdict:
        """The contributions of the super weights, candidate over reference."""
        confound = self.confound()
        if confound is not None:
            return confound
        chosen = self.weights
        if not chosen:
            return self.none()
        if self.kin.kind == "rotated":
            summary = f"{self.kin.words}; its weights have no counterpart, the sink token's norm is judged instead"
            return self.verdict(Outcome.NOT_APPLICABLE, summary)
        theirs = self.reference.written(chosen)
        there, ours, notes = self.followed(chosen)
        ratios = [ratio_of(one, other) for one, other in zip(ours, theirs, strict=True)]
        worst = worst_of(ratios, limit)
        before, after = self.reference.weights(chosen), self.candidate.weights(there)
        detail = tuple(
            (
                f"layer {w.layer} [{w.row}, {w.column}]",
                f"weight {a:+.4g} -> {b:+.4g}, writes {d:+.4g} -> {c:+.4g}"
                + ("" if place == w else f", now at layer {place.layer} [{place.row}, {place.column}]"),
            )
            for w, place, a, b, c, d in zip(chosen, there, before, after, ours, theirs, strict=True)
        )
        weight = chosen[worst]
        summary = (
            f"layer {weight.layer} [{weight.row}, {weight.column}] writes x{ratios[worst]:z.3f} of the reference's"
        )
        kept = sum(limit.holds(ratio) for ratio in ratios)
        if 0 < kept < len(ratios):
            summary += f"; {kept} of {count(chosen)} still do, and whether that is enough the perplexity says"
        more: dict[str, Any] = {
            "measured": ratios[worst],
            "limit": limit,
            "unit": "x",
            "detail": detail,
            "facts": {"ratios": ratios, "contributions": list(ours), "weights": list(after), "notes": list(notes)},
        }
        if all(limit.holds(ratio) for ratio in ratios):
            more["facts"]["noise"] = floor = self.reference.noise()[1]
            outcome = self.passed(any(near_ratio(limit, ratio, floor) for ratio in ratios))
            return self.verdict(outcome, "; ".join([summary, *notes]), **more)
        other = basis(Case(self.candidate, self.reference, self.kin, tuple(chosen), there))
        if isinstance(other, Finding):
            return self.failed(other.cause, summary, other.advice, **{**more, "detail": (*other.detail, *detail)})
        cause = weight_cause(self.candidate, self.reference, weight, ratios[worst])
        red = [place for place, ratio in zip(there, ratios, strict=True) if not limit.holds(ratio)]
        names = dict.fromkeys(self.candidate.body.down_name(w.layer) for w in red if w.layer < self.depth)
        return self.remedied(Finding(cause, (), tuple(names)), summary, (chosen, there), **more)

    @property
    def depth(self) -> int:
        """How many layers the candidate has."""
        return len(self.candidate.body.layers)

    def followed(
        self, chosen: Sequence[SuperWeight]
    ) -> tuple[tuple[SuperWeight, ...], tuple[float, ...], tuple[str, ...]]:
        """Where each weight stands in the candidate, what it writes there, and notes on what was permuted.

        A weight that writes little at its own column, while another inner neuron of the same row writes all of it, has
        been permuted along with its neuron: harmless.
        """
        theirs = self.reference.written(chosen)
        mapped = self.mapped(chosen)
        notes = [f"permuted channels followed ({self.kin.words})"] if self.kin.channels else []
        there, ours = [], []
        for number, weight in enumerate(mapped):
            found, written, note = self._follow(weight, chosen[number], theirs[number])
            there.append(found)
            ours.append(written)
            notes += [note] if note else []
        return tuple(there), tuple(ours), tuple(notes)

    def _follow(self, weight: SuperWeight, original: SuperWeight, expected: float) -> tuple[SuperWeight, float, str]:
        """One weight in the candidate's coordinates: at its place, at a permuted neuron, or where it is located now."""
        ids, body = self.reference.prompt_ids(), self.candidate.body
        sink = self.reference.sinks((original,), ids)[0]
        fits = weight.layer < len(body.layers) and (body.inner is None or weight.column < body.inner)
        written = self.candidate.contributions((weight,), ids, (sink,))[0] if fits else 0.0
        if FOLLOWED.holds(ratio_of(written, expected)):
            return weight, written, ""
        if weight.layer < len(body.layers):
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
            body.check([weight])
        return weight, written, ""

    def _is_loudest(self, weight: SuperWeight, sink: int) -> bool:
        """Whether its inner neuron speaks loudest at the sink in the reference, as far as that is known."""
        ids = self.reference.prompt_ids()
        known = self.reference.module is not None or self.reference.remembers_columns(weight, ids, sink)
        return known and self.reference.columns(weight, ids, sink)[0][0] == weight.column

    def compare_activations(self, prompts: Sequence[str | Prompt] | None, limit: Limit) -> Verdict:
        """The super activations at the reference's own place, candidate over reference, on the same prompts."""
        confound = self.confound()
        if confound is not None:
            return confound
        chosen = self.weights
        if not chosen:
            return self.none()
        if self.kin.kind == "rotated":
            return self._compare_norms(chosen, limit)
        outcome, summary, more = Activations(self.candidate, self.reference, chosen, self.kin.channels).compare(
            prompts, limit
        )
        if outcome is Outcome.PASSED:
            more["facts"]["noise"] = floor = self.reference.noise()[1]
            outcome = self.passed(any(near_ratio(limit, ratio, floor) for ratio in more["facts"]["ratios"]))
        if outcome is not Outcome.FAILED:
            return self.verdict(outcome, summary, **more)
        return self._activation_lost(chosen, summary, more)

    def _activation_lost(self, chosen: Sequence[SuperWeight], summary: str, more: dict[str, Any]) -> Verdict:
        """Red, with what became of the super weights that write it, or the layer that loses what they write."""
        there, ours, _ = self.followed(chosen)
        ratios = [ratio_of(one, other) for one, other in zip(ours, self.reference.written(chosen), strict=True)]
        case = Case(self.candidate, self.reference, self.kin, tuple(chosen), there)
        other = basis(case)
        if isinstance(other, Finding):
            more |= {"cause": other.cause, "attempt": other.advice, "detail": other.detail}
            return self.verdict(Outcome.FAILED, summary, **more)
        written = "what the super weights write is " + ", ".join(f"x{ratio:z.3f}" for ratio in ratios)
        lost = lost_in(case)
        matrices = [
            w for w, ratio in zip(there, ratios, strict=True) if not FOLLOWED.holds(ratio) and w.layer < self.depth
        ]
        names = tuple(dict.fromkeys(case.down(weight) for weight in matrices))
        if not matrices and lost is not None:
            more["cause"] += f", in layer {lost}; what the super weights write is kept"
            names = of_layer(case, lost)
        more["detail"] = (*more.get("detail", ()), ("written", written))
        cause, attempt = more.pop("cause"), more.pop("attempt")
        return self.remedied(Finding(cause, (), names, attempt), summary, (chosen, there), **more)

    def _compare_norms(self, chosen: Sequence[SuperWeight], limit: Limit) -> Verdict:
        ids = self.reference.prompt_ids()
        place = self.reference.places(chosen)[0]
        theirs, ours = (
            subject.sink_norm(place.layer, place.position, ids) for subject in (self.reference, self.candidate)
        )
        ratio = ratio_of(ours, theirs)
        summary = f"rotated: norm of token {place.position} after layer {place.layer} {ours:.4g} for {theirs:.4g} (x{ratio:.3f})"
        more: dict[str, Any] = {"measured": ratio, "limit": limit, "unit": "x", "facts": {"basis": "rotated"}}
        if limit.holds(ratio):
            return self.verdict(Outcome.PASSED, summary, **more)
        return self.failed(f"the sink token's residual norm is x{ratio:.2f}", summary, **more)

    def compare_perplexity(self, limit: Limit, at_most: float | None) -> Verdict:
        """The perplexity on the same tokens, differences paired."""
        confound = self.confound()
        if confound is not None:
            return confound
        theirs, ours = self._both()
        if not torch.isfinite(ours).all():
            return self.not_finite(self._broken(ours))
        difference = ours - theirs
        ratio, error = math.exp(min(LARGEST_EXPONENT, float(difference.mean()))), standard_error(difference)
        value, base = perplexity_of(ours), perplexity_of(theirs)
        if at_most is not None:
            limit = Limit(None, at_most / base, f"perplexity at most {at_most:g}")
        floor, skipped = self.reference.noise()[0], unquantized(self.candidate, self.reference)
        spread = f" +- {ratio * error:.4f}" if ratio < 1000 else ""
        where = f"{ours.numel():,} tokens{self.reference.tier_words}"
        summary = f"perplexity {value:.4g} for {base:.4g}: {times(ratio)}{spread} on {where}"
        summary += f", noise {floor:.1g} nats{_unquantized_words(skipped)}"
        facts: dict[str, Any] = {
            "perplexity": value,
            "reference_perplexity": base,
            "standard_error": error,
            "tokens": ours.numel(),
            "text_sha256": self.reference.text_hash,
            "noise": floor,
            "not_quantized": list(skipped),
        }
        more: dict[str, Any] = {"measured": ratio, "limit": limit, "unit": "x", "facts": facts}
        kind = self.kind
        facts |= {"candidate_kind": kind.name, "candidate_kind_why": kind.why}
        cache = self._cache(ours, facts)
        summary += "" if cache is None else _cache_words(cache)
        if cache is not None and cache.nats is not None and limit.holds(ratio):
            total = math.exp(min(LARGEST_EXPONENT, math.log(ratio) + cache.nats))
            if not (math.isfinite(cache.nats) and limit.holds(total)):
                more["measured"] = total
                cause = (
                    f"the quantized KV cache loses it (perplexity {times(total)} through it, {times(ratio)} without)"
                )
                return self.failed(cause, summary, "more bits for the cache, or its first tokens unquantized", **more)
        if limit.holds(ratio) and not (limit.high is None and self._lost(ratio)):
            return self.verdict(self.passed(near_ratio(limit, ratio, max(ERRORS * error, floor))), summary, **more)
        return self.red(summary, **more)

    def compare_predictions(self, kl: Limit, top1: Limit) -> Verdict:
        """The mean KL divergence and the agreement on the likeliest token, at sampled positions."""
        confound = self.confound()
        if confound is not None:
            return confound
        ours = self._both()[1]
        if not torch.isfinite(ours).all():
            return self.not_finite(self._broken(ours))
        drift, expected = self.candidate.against(self.reference)[1], self.reference.intact()[1]
        top1 = for_confidence(top1, expected.confidence)
        median, high, highest = (f"{drift.percentile(share):.4f}" for share in (0.5, 0.95, 0.99))
        least = "" if top1.low is None else f" (limit >= {top1.low:.1%})"
        summary = (
            f"KL {drift.mean:.4f} nats (median {median}, 95th percentile {high}, 99th {highest}), "
            f"same top token {drift.top1:.1%}{least}, "
            f"{expected.covered:.1%} of the mass covered, {len(drift.kl):,} positions"
        )
        facts = {"kl": drift.mean, "top1": drift.top1, "covered": expected.covered, "confidence": expected.confidence}
        more: dict[str, Any] = {"measured": drift.mean, "limit": kl, "unit": "nats", "facts": facts}
        if kl.holds(drift.mean) and top1.holds(drift.top1):
            floor = max(ERRORS * drift.error, self.reference.noise()[0])
            close = near(kl, drift.mean, floor) or near(top1, drift.top1, ERRORS * drift.top1_error)
            return self.verdict(self.passed(close), summary, **more)
        if not top1.holds(drift.top1):
            more["detail"] = (("top token", f"same {drift.top1:.1%}, limit >= {top1.low or 0:.1%} ({top1.source})"),)
        return self.red(summary, **more)

    def compare_dependence(self, limit: Limit) -> Verdict:
        """How much of the reference's collapse the candidate still shows when the same weights are zeroed."""
        confound = self.confound()
        if confound is not None:
            return confound
        chosen = self.weights
        if not chosen:
            return self.none()
        before = (causal_intact(self.reference), self.reference.causal_nats(chosen))
        nothing = self._nothing_to_lose(before)
        if nothing is not None:
            return nothing
        ids, size = self.reference.causal_ids(), self.reference.vocabulary
        intact = self._both()[1]
        if not torch.isfinite(intact).all():
            return self.not_finite(self._broken(intact))
        intact = self.candidate.causal_against(self.reference)
        after = (intact, self.candidate.causal_nats(self.followed(chosen)[0], ids))
        share = max(0.0, capped_collapse(*after, size) / capped_collapse(*before, size))
        left = f"{share:.2f} of its capped nats"
        if perplexity_of(intact) >= size:
            left = f"nothing is left to collapse: intact it has {perplexity_of(intact):.4g}, guessing {size:,}"
        summary = (
            f"{count(chosen)} zeroed: perplexity {times(collapse_ratio(*after))} "
            f"(reference {times(collapse_ratio(*before))}), {left}"
        )
        more: dict[str, Any] = {"measured": share, "limit": limit, "unit": "share", "facts": {"kind": "critical"}}
        if limit.holds(share):
            error = share * standard_error(after[1] - after[0]) / max(float((after[1] - after[0]).mean()), 1e-12)
            close = near(limit, share, max(ERRORS * error, self.reference.noise()[0]))
            return self.verdict(self.passed(close), summary, **more)
        return self.red(summary, share=share, **more)

    def _nothing_to_lose(self, before: tuple[torch.Tensor, torch.Tensor]) -> Verdict | None:
        """The verdict where the reference, intact and without its super weights, has no collapse to compare with."""
        kind, size = kind_of(collapse_ratio(*before)), self.reference.vocabulary
        if self.kin.kind == "rotated":
            summary = f"{self.kin.words}; there is no single weight to zero"
            return self.verdict(Outcome.NOT_APPLICABLE, summary, facts={"kind": kind})
        if kind != "critical":
            summary = f"the reference's set is {kind} ({times(collapse_ratio(*before))}, critical from x{CRITICAL:g})"
            return self.verdict(Outcome.NOT_APPLICABLE, summary, facts={"kind": kind})
        if capped_collapse(*before, size) > 0:
            return None
        summary = f"its own perplexity is {perplexity_of(before[0]):.4g}, guessing has {size:,}"
        cause, attempt = "the reference is sick", "check its dtype and weights"
        return self.verdict(Outcome.INCONCLUSIVE, summary, cause=cause, attempt=attempt)

    def _cache(self, plain: torch.Tensor, facts: dict[str, Any]) -> CachePass | None:
        """The first windows scored through the candidate's quantized cache, where it says that it has one."""
        ids = self.reference.windows()[:WINDOWS]
        key = ("cache", self.reference.mark)
        found = self.candidate.once(key, lambda: cache_pass(self.candidate.live, ids, plain[: len(ids)]))
        if found is not None:
            facts["kv_cache"] = {"scheme": found.scheme, "scored": found.nats is not None, "nats": found.nats}
        return found

    def _lost(self, ratio: float) -> bool:
        """Whether a loss that no limit judges is proven to be one of super weights: that is red whatever the kind."""
        if DEFAULTS["perplexity"].holds(ratio) or not self.weights:
            return False
        return any(name == "proof" for name, _ in self.finding().detail)

    def _standing(self) -> tuple[tuple[SuperWeight, ...], tuple[SuperWeight, ...]]:
        """The super weights, and where they stand in the candidate; none where there is no counterpart."""
        chosen = () if self.kin.kind == "rotated" else self.weights
        return chosen, self.followed(chosen)[0] if chosen else ()

    def _broken(self, nats: torch.Tensor) -> torch.Tensor:
        """The first window whose nats are not all finite."""
        bad = int((~torch.isfinite(nats)).any(1).nonzero()[0])
        return self.reference.windows()[bad : bad + 1]

    def _both(self) -> tuple[torch.Tensor, torch.Tensor]:
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


def _unquantized_words(names: Sequence[str]) -> str:
    """What the quantizer silently skipped, for the end of a summary."""
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; not quantized, though no one excluded it: {', '.join(names[:SHOWN])}{more}"


def _cache_words(cache: CachePass) -> str:
    """What its quantized cache costs, or why that is not known, for the end of a summary."""
    if cache.nats is None:
        return f"; its {cache.scheme} KV cache was not scored: {cache.reason}"
    cost = math.exp(min(LARGEST_EXPONENT, cache.nats)) if math.isfinite(cache.nats) else cache.nats
    return f"; through its {cache.scheme} KV cache {times(cost)} on {cache.tokens:,} tokens"
