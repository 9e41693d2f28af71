"""The assertions: measure, compare, return a verdict or raise it. Usable in any test runner, or in none.

Each takes ``candidate`` first, then ``reference`` where there is one, then keyword-only limits. Both are what ``load``
returns or bare modules (then ``tokenizer=`` or ``token_ids=`` is needed). ``super_weights=None`` means the published
ones of the reference, completed by what is located in it. A verdict that is red is raised as ``RobustnessError``;
every other one is returned. What looks like super-weight damage and is none (NaN, a sick reference, another tokenizer,
another base model) is ruled out first, in this order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.errors import NotFiniteError, OptionError, RobustnessError
from swcheck.kinship import Kinship, kinship
from swcheck.limits import CRITICAL, interval, kind_of
from swcheck.locate import PROMPT
from swcheck.observe import plain_weight
from swcheck.records import Limit, Outcome, SuperActivation, SuperWeight, Verdict
from swcheck.subject import Reading, Subject, subject_of

if TYPE_CHECKING:
    from collections.abc import Iterable

DRAWS: Final = 3
NEAR_ERRORS: Final = 3.0
"""A ratio within this many of its standard errors of the limit is ``near``."""


def assert_super_weights_located(
    candidate: Any, *, tokenizer: Any = None, token_ids: torch.Tensor | None = None
) -> Verdict:
    """The model has super weights, and says where; ``not_applicable``, in words, where it has none."""
    subject = subject_of(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
    found = subject.located()
    if not found.super_weights:
        return conclude(_none_found("super weights", subject), subject)
    detail = tuple(
        (str(w), f"writes {value:+.4g}") for w, value in zip(found.super_weights, found.written, strict=True)
    )
    facts = {"super_weights": [weight.as_json() for weight in found.super_weights]}
    limit = Limit(1.0, None, "a model without any is not_applicable")
    count = float(len(found.super_weights))
    words = "; ".join(f"{name} {text}" for name, text in detail) + f"; {found.reason}"
    verdict = Verdict(
        "super weights", subject.name, Outcome.PASSED, words, measured=count, limit=limit, detail=detail, facts=facts
    )
    return conclude(verdict, subject)


def assert_super_weights_preserved(
    candidate: Any,
    reference: Any,
    *,
    super_weights: Iterable[SuperWeight] | None = None,
    low: float | None = None,
    high: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """The candidate's super weights write what the reference's do.

    Compared is the contribution, weight times input at the token where the input is largest in the reference, since
    some quantizers rescale one against the other; the bare weight is shown. ``low`` and ``high`` bound the signed
    ratio, 0.75 and 2.0 by default. A flipped sign is red with its own cause.
    """
    pair = _Pair.of("super weights", candidate, reference, super_weights, tokenizer, token_ids)
    return pair.conclude(pair.weights(interval("contribution", low, high)))


def assert_super_activations_preserved(
    candidate: Any,
    reference: Any,
    *,
    super_weights: Iterable[SuperWeight] | None = None,
    prompts: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """The candidate's super activations stand where the reference's do, as large.

    Both are read on the same ``prompts`` (one by default), the candidate at the reference's own layer, channel and
    token. A prompt counts only if the reference carries its activation there. ``low`` and ``high`` bound the signed
    ratio, 0.75 and 2.0 by default; the worst prompt is judged.
    """
    pair = _Pair.of("super activations", candidate, reference, super_weights, tokenizer, token_ids)
    return pair.conclude(pair.activations(prompts, interval("activation", low, high)))


def assert_perplexity_within(
    candidate: Any,
    reference: Any = None,
    *,
    ratio: float | None = None,
    at_most: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """The candidate's perplexity is at most ``ratio`` times the reference's, or ``at_most``.

    Both are scored on the same tokens and their differences are paired: a ratio within three standard errors of the
    limit is ``near``. ``ratio`` is 1.05 by default; without a reference ``at_most`` is needed, and without either the
    limit is the size of the vocabulary, where a model knows less than nothing.
    """
    if reference is None:
        subject = subject_of(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
        return conclude(_healthy(subject, at_most), subject)
    pair = _Pair.of("perplexity", candidate, reference, (), tokenizer, token_ids)
    return pair.conclude(pair.perplexity(interval("perplexity", None, ratio), at_most))


def assert_collapses_when_zeroed(
    candidate: Any,
    reference: Any = None,
    *,
    super_weights: Iterable[SuperWeight] | None = None,
    factor: float | None = None,
    share: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """The model hangs on its super weights: all zeroed together, its perplexity collapses.

    Without a reference it has to rise by ``factor``, 10 by default. With one, the collapse in nats, capped at
    ln(vocabulary) minus the intact loss, has to be ``share`` of the reference's, 0.5 by default; that is asked of
    critical sets only, for others the verdict is ``not_applicable``. A pass without the weights that is not finite
    counts as the cap.
    """
    if reference is None:
        subject = subject_of(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
        weights = _chosen(subject, super_weights)
        return conclude(_collapse(subject, weights, interval("collapse", factor)), subject)
    pair = _Pair.of("dependence", candidate, reference, super_weights, tokenizer, token_ids)
    return pair.conclude(pair.dependence(interval("dependence", share)))


def assert_survives_pruning(
    candidate: Any,
    *,
    super_weights: Iterable[SuperWeight] | None = None,
    null: str = "matched",
    at_most: float | None = None,
    draws: int = DRAWS,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """The null of the collapse: zeroing other weights instead leaves the model as it is.

    ``null="matched"`` zeroes as many weights of matched magnitude from the same matrices, ``draws`` times, and the
    worst draw may cost x1.01; ``null="largest"`` zeroes the largest 0.01 % of every matrix, super weights spared,
    which may cost x1.30 and no more than the square root of the collapse. A null that fails is ``inconclusive``: the
    coordinates are incomplete, and it is the reference that has to be looked at.
    """
    if null not in {"matched", "largest"}:
        raise OptionError(f"null {null!r}", "known: matched, largest")
    subject = subject_of(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
    weights = _chosen(subject, super_weights)
    if null == "matched":
        verdict = _matched_null(subject, weights, interval("null", None, at_most), draws)
    else:
        verdict = _largest_null(subject, weights, interval("others", None, at_most))
    return conclude(verdict, subject)


def conclude(verdict: Verdict, *subjects: Subject) -> Verdict:
    """Tell the subjects, then return the verdict, or raise it where it is red."""
    for subject in subjects[:1]:
        subject.heard(verdict)
    if verdict.red:
        raise RobustnessError(message_of(verdict), verdict)
    return verdict


def message_of(verdict: Verdict) -> str:
    """The words of a red verdict: a first line that stands alone, then its details, then what to try."""
    who = verdict.model if verdict.candidate is None else f"{verdict.candidate} against {verdict.model}"
    lines = [f"{verdict.cause or verdict.summary}: {verdict.check} of {who}"]
    if verdict.cause and verdict.summary:
        lines.append(f"  {verdict.summary}")
    width = max((len(name) for name, _ in verdict.detail), default=0)
    lines += [f"  {name:<{width}}  {text}" for name, text in verdict.detail]
    if verdict.limit is not None:
        lines.append(f"  limit {verdict.limit} ({verdict.limit.source})")
    if verdict.attempt:
        lines.append(f"  try: {verdict.attempt}")
    return "\n".join(lines)


def _chosen(subject: Subject, super_weights: Iterable[SuperWeight] | None) -> tuple[SuperWeight, ...]:
    """The caller's super weights, checked, or the subject's own; an empty set is refused, it would prove nothing."""
    if super_weights is None:
        return subject.located().super_weights
    chosen = tuple(super_weights)
    if not chosen:
        raise OptionError("super_weights", "an empty set: nothing would be checked", "leave it out to locate them")
    subject.body.check(chosen)
    return chosen


def _none_found(check: str, subject: Subject, candidate: str | None = None) -> Verdict:
    reason = subject.located().reason
    return Verdict(check, subject.name, Outcome.NOT_APPLICABLE, f"no super weight: {reason}", candidate)


def _healthy(subject: Subject, at_most: float | None) -> Verdict:
    """Whether a model on its own is fit to be measured against: finite, and better than guessing."""
    nats = subject.nats()
    source = "given" if at_most is not None else "the size of its vocabulary: above it a model is worse than guessing"
    limit = Limit(None, float(subject.vocabulary) if at_most is None else at_most, source)
    value = math.exp(min(700.0, float(nats.mean()))) if torch.isfinite(nats).all() else math.nan
    passed = limit.holds(value)
    return Verdict(
        "perplexity",
        subject.name,
        Outcome.PASSED if passed else Outcome.FAILED,
        f"perplexity {value:.4g} on {nats.numel():,} tokens",
        measured=value,
        limit=limit,
        unit="perplexity",
        cause="" if passed else ("not finite" if math.isnan(value) else "perplexity too high"),
        attempt="" if passed else "check dtype, tokenizer and BOS of this checkpoint",
        facts={"tokens": nats.numel(), "nats": float(nats.sum())},
    )


def capped_collapse(intact: torch.Tensor, ablated: torch.Tensor, vocabulary: int) -> float:
    """The rise of the mean loss in nats, at most ln(vocabulary) minus the intact loss; not finite counts as the cap."""
    cap = math.log(vocabulary) - float(intact.mean())
    rise = float(ablated.mean()) - float(intact.mean())
    return min(rise, cap) if math.isfinite(rise) else cap


def collapse_ratio(intact: torch.Tensor, ablated: torch.Tensor) -> float:
    """Perplexity without the weights over perplexity with them, as measured; infinite where that overflows."""
    rise = float(ablated.mean()) - float(intact.mean())
    return math.exp(rise) if rise < 700 else math.inf


def _intact(subject: Subject) -> torch.Tensor:
    nats = subject.nats()
    if not torch.isfinite(nats).all():
        raise NotFiniteError(
            f"the intact perplexity of {subject.name}", "NaN or infinity", "check its dtype and its weights"
        )
    return nats


def _collapse(subject: Subject, weights: Sequence[SuperWeight], limit: Limit) -> Verdict:
    if not weights:
        return _none_found("collapse when zeroed", subject)
    intact, ablated = _intact(subject), subject.nats(weights)
    ratio = collapse_ratio(intact, ablated)
    nats = float(ablated.mean() - intact.mean())
    alone = [(str(weight), collapse_ratio(intact, subject.nats([weight]))) for weight in weights]
    passed = limit.holds(ratio) or (limit.low is not None and not math.isfinite(ratio))
    worse = math.exp(min(700.0, float(ablated.mean()))) > subject.vocabulary
    return Verdict(
        "collapse when zeroed",
        subject.name,
        Outcome.PASSED if passed else Outcome.FAILED,
        f"{_count(weights)} zeroed: perplexity x{ratio:,.4g} ({nats:+.2f} nats), {kind_of(ratio)}"
        + (", worse than guessing" if worse else ""),
        measured=ratio,
        limit=limit,
        unit="x",
        cause="" if passed else f"the model does not hang on its super weights (x{ratio:.4g}, {kind_of(ratio)})",
        attempt="" if passed else "relocate: swcheck locate; a set may be incomplete, or the model leans on none",
        detail=tuple((f"{name} alone", f"x{value:.4g}") for name, value in alone) if len(alone) > 1 else (),
        facts={
            "nats": nats,
            "capped_nats": capped_collapse(intact, ablated, subject.vocabulary),
            "kind": kind_of(ratio),
            "alone": [value for _, value in alone],
        },
    )


def _matched_null(subject: Subject, weights: Sequence[SuperWeight], limit: Limit, draws: int) -> Verdict:
    if not weights:
        return _none_found("null: matched weights", subject)
    if draws < 1:
        raise OptionError(f"draws = {draws}", "a null without a draw proves nothing", "1 or more")
    intact = _intact(subject)
    ratios = [collapse_ratio(intact, subject.nats_without_matched(weights, seed)) for seed in range(draws)]
    summary = f"{_count(weights)} of the next-largest of the same matrix zeroed, worst of {draws}: x{max(ratios):.4f}"
    return _null("null: matched weights", subject, max(ratios), limit, summary, {"draws": ratios})


def _largest_null(subject: Subject, weights: Sequence[SuperWeight], limit: Limit) -> Verdict:
    if not weights:
        return _none_found("null: largest others", subject)
    intact = _intact(subject)
    ablated, count = subject.nats_without_largest(weights)
    root = math.sqrt(collapse_ratio(intact, subject.nats(weights)))
    if limit.high is not None and root < limit.high:
        limit = replace(limit, high=root, source="the square root of the collapse ratio")
    ratio = collapse_ratio(intact, ablated)
    summary = f"the {count:,} largest others (0.01 % of every matrix) zeroed: x{ratio:.4f}"
    return _null("null: largest others", subject, ratio, limit, summary, {"weights": count})


def _null(check: str, subject: Subject, ratio: float, limit: Limit, summary: str, facts: dict[str, Any]) -> Verdict:
    passed = limit.holds(ratio)
    return Verdict(
        check,
        subject.name,
        Outcome.PASSED if passed else Outcome.INCONCLUSIVE,
        summary,
        measured=ratio,
        limit=limit,
        unit="x",
        cause="" if passed else f"inconclusive, other weights matter as well (x{ratio:.4g})",
        attempt="" if passed else "the coordinates are incomplete: relocate without the index (swcheck locate)",
        facts=facts,
    )


def _count(weights: Sequence[SuperWeight]) -> str:
    return f"{len(weights)} weight{'s' * (len(weights) > 1)}"


class _Pair:
    """A candidate beside its reference: what every comparison rules out first, and the comparisons."""

    def __init__(
        self, check: str, candidate: Subject, reference: Subject, weights: tuple[SuperWeight, ...] | None
    ) -> None:
        self.check, self.candidate, self.reference = check, candidate, reference
        self._weights = weights

    @classmethod
    def of(
        cls,
        check: str,
        candidate: Any,
        reference: Any,
        super_weights: Iterable[SuperWeight] | None,
        tokenizer: Any,
        token_ids: torch.Tensor | None,
    ) -> _Pair:
        one = subject_of(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
        other = subject_of(reference, tokenizer=tokenizer, token_ids=token_ids, role="reference")
        weights = None if super_weights is None or not check_needs(check) else _chosen(other, super_weights)
        return cls(check, one, other, weights)

    def conclude(self, verdict: Verdict) -> Verdict:
        return conclude(verdict, self.candidate)

    @property
    def weights_of_reference(self) -> tuple[SuperWeight, ...]:
        return self.reference.located().super_weights if self._weights is None else self._weights

    @property
    def candidate_name(self) -> str | None:
        """None where a model is held against itself."""
        return None if self.candidate is self.reference else self.candidate.name

    def verdict(self, outcome: Outcome, summary: str, **more: Any) -> Verdict:
        return Verdict(self.check, self.reference.name, outcome, summary, self.candidate_name, **more)

    def failed(self, cause: str, summary: str, attempt: str = "", **more: Any) -> Verdict:
        return self.verdict(Outcome.FAILED, summary, cause=cause, attempt=attempt, **more)

    def confound(self) -> Verdict | None:
        """What looks like super-weight damage and is none, in a fixed order; None where all is ruled out."""
        candidate, reference = self.candidate, self.reference
        related = candidate.once(("kin", id(reference)), lambda: kinship(candidate.module, reference.module))
        if related.kind == "other shape":
            return self.failed("wrong base model", related.words, "give the reference this candidate was made from")
        ids = reference.prompt_ids()
        if not self._finite(candidate, ids):
            return self.failed(
                "not finite",
                "the candidate answers NaN or infinity",
                "load it in float32 or bfloat16; check its scales",
            )
        if not self._finite(reference, ids):
            summary = "the reference itself answers NaN or infinity"
            return self.verdict(Outcome.INCONCLUSIVE, summary, cause="the reference is sick", attempt="check its dtype")
        if not _same_tokens(candidate, reference):
            return self.failed(
                "tokenizer or BOS policy differs",
                "the two tokenizers give other ids for the same text",
                "save the reference's tokenizer beside the candidate",
            )
        if related.kind == "other model":
            return self.failed("wrong base model", related.words, "give the reference this candidate was made from")
        return None

    def _finite(self, subject: Subject, ids: torch.Tensor) -> bool:
        return bool(torch.isfinite(subject.nats(ids=ids)).all())

    def weights(self, limit: Limit) -> Verdict:
        confound = self.confound()
        if confound is not None:
            return confound
        chosen = self.weights_of_reference
        if not chosen:
            return _none_found(self.check, self.reference, self.candidate_name)
        ids = self.reference.prompt_ids()
        sinks = self.reference.sinks(chosen, ids)
        ours = self.candidate.contributions(chosen, ids, sinks)
        theirs = self.reference.contributions(chosen, ids, sinks)
        ratios = [_ratio(one, other) for one, other in zip(ours, theirs, strict=True)]
        worst = _worst(ratios, limit)
        values = list(zip(self.reference.weights(chosen), self.candidate.weights(chosen), strict=True))
        detail = tuple(
            (f"layer {w.layer} [{w.row}, {w.column}]", f"weight {a:+.4g} -> {b:+.4g}, writes {d:+.4g} -> {c:+.4g}")
            for w, (a, b), c, d in zip(chosen, values, ours, theirs, strict=True)
        )
        weight = chosen[worst]
        summary = f"layer {weight.layer} [{weight.row}, {weight.column}] writes x{ratios[worst]:.3f} of the reference's"
        facts = {"ratios": ratios, "contributions": list(ours), "weights": [b for _, b in values]}
        more: dict[str, Any] = {
            "measured": ratios[worst], "limit": limit, "unit": "x", "detail": detail, "facts": facts,
        }  # fmt: skip
        if all(limit.holds(ratio) for ratio in ratios):
            return self.verdict(Outcome.PASSED, summary, **more)
        cause = self._weight_cause(weight, ratios[worst])
        return self.failed(cause, summary, "keep this down_proj, or this block of it, in higher precision", **more)

    def _weight_cause(self, weight: SuperWeight, ratio: float) -> str:
        place = f"super weight at layer {weight.layer} [{weight.row}, {weight.column}]"
        if not math.isfinite(ratio):
            return f"{place} is not finite"
        moved = self._moved_to(weight)
        if abs(ratio) < 0.25 and moved is not None:
            return f"{place} moved to column {moved}"
        if ratio < 0:
            return f"{place} has its sign flipped (x{ratio:.2f})"
        if ratio < 0.02:
            return f"{place} {'rounded away' if self._on_a_grid(weight) else 'zeroed'} (x{ratio:.2f})"
        if ratio < 1:
            return f"{place} {'clipped or rounded down' if self._on_a_grid(weight) else 'weakened'} (x{ratio:.2f})"
        return f"{place} amplified (x{ratio:.2f})"

    def _rows(self, weight: SuperWeight) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The super weight's row in reference and candidate, float32 ``(F,)``, where both can be read plainly."""
        found = []
        for subject in (self.reference, self.candidate):
            tensor = plain_weight(subject.body.down_projections[weight.layer])
            if tensor is None:
                return None
            found.append(tensor[weight.row].float().cpu())
        return found[0], found[1]

    def _moved_to(self, weight: SuperWeight) -> int | None:
        """The column that now holds what stood at ``weight``, where it did not before."""
        rows = self._rows(weight)
        if rows is None:
            return None
        reference, candidate = rows
        value = reference[weight.column]
        close = (candidate / value - 1).abs() < 0.1
        new = close & ((reference / value - 1).abs() >= 0.1)
        return int(new.nonzero()[0]) if new.any() else None

    def _on_a_grid(self, weight: SuperWeight) -> bool:
        """Whether the candidate's row knows few values where the reference's knows many, as a rounded one does."""
        rows = self._rows(weight)
        if rows is None:
            return True
        before, after = (len(torch.unique(row)) for row in rows)
        return after * 2 <= before

    def activations(self, prompts: Sequence[str] | None, limit: Limit) -> Verdict:
        confound = self.confound()
        if confound is not None:
            return confound
        chosen = self.weights_of_reference
        if not chosen:
            return _none_found(self.check, self.reference, self.candidate_name)
        ids, lengths = _padded(self.reference, prompts)
        rows = [row for place in self.reference.places(chosen) for row in self._compare(place, ids, lengths)]
        counted = [row for row in rows if row[0] is not None]
        if not counted:
            summary = f"the reference carries its activation on none of {len(lengths)} prompts"
            return self.verdict(
                Outcome.INCONCLUSIVE, summary, cause="nothing to compare", attempt="give prompts with BOS"
            )
        ratios = [float(ratio) for ratio, _, _, _ in counted if ratio is not None]
        worst = _worst(ratios, limit)
        _, place, ours, theirs = counted[worst]
        sink = all(there.position == 0 for _, _, _, there in counted) and self.reference.has_bos
        note = ", one number by causality" if sink else ""
        summary = (
            f"channel {place.channel} at token {theirs.position} after layer {place.layer}: "
            f"{ours.value:+.4g} for {theirs.value:+.4g} (x{ratios[worst]:.3f}), worst of {len(counted)}{note}"
        )
        facts = {"ratios": ratios, "prompts": len(lengths), "counted": len(counted)}
        more: dict[str, Any] = {"measured": ratios[worst], "limit": limit, "unit": "x", "facts": facts}
        if all(limit.holds(ratio) for ratio in ratios):
            return self.verdict(Outcome.PASSED, summary, **more)
        cause = _activation_cause(place, ratios[worst], ours, theirs)
        return self.failed(cause, summary, "see the super weights that write it", **more)

    def _compare(
        self, place: SuperActivation, ids: torch.Tensor, lengths: Sequence[int]
    ) -> list[tuple[float | None, SuperActivation, Reading, Reading]]:
        """One row per prompt: the ratio, None where the reference does not carry its activation there."""
        theirs = self.reference.readings(place, ids, lengths)
        ours = self.candidate.readings_at(place, ids, lengths, [reading.position for reading in theirs])
        carried = [abs(reading.value) >= 0.5 * abs(place.value) for reading in theirs]
        return [
            (_ratio(one.value, other.value) if there else None, place, one, other)
            for one, other, there in zip(ours, theirs, carried, strict=True)
        ]

    def perplexity(self, limit: Limit, at_most: float | None) -> Verdict:
        confound = self.confound()
        if confound is not None:
            return confound
        theirs = _intact(self.reference)
        ours = self.candidate.nats(ids=self.reference.windows())
        difference = ours - theirs
        ratio, error = math.exp(min(700.0, float(difference.mean()))), _standard_error(difference)
        value, base = math.exp(min(700.0, float(ours.mean()))), math.exp(float(theirs.mean()))
        if at_most is not None:
            limit = Limit(None, at_most / base, f"perplexity at most {at_most:g}")
        summary = (
            f"perplexity {value:.4g} for {base:.4g}: x{ratio:.4f} +- {ratio * error:.4f} on {ours.numel():,} tokens"
        )
        facts = {"perplexity": value, "reference_perplexity": base, "standard_error": error, "tokens": ours.numel()}
        more: dict[str, Any] = {"measured": ratio, "limit": limit, "unit": "x", "facts": facts}
        if limit.holds(ratio):
            near = limit.high is not None and math.log(limit.high / ratio) <= NEAR_ERRORS * error and ratio > 1
            return self.verdict(Outcome.NEAR if near else Outcome.PASSED, summary, **more)
        return self.failed(f"perplexity x{ratio:.4g}", summary, "", **more)

    def dependence(self, limit: Limit) -> Verdict:
        confound = self.confound()
        if confound is not None:
            return confound
        chosen = self.weights_of_reference
        if not chosen:
            return _none_found(self.check, self.reference, self.candidate_name)
        ids, size = self.reference.windows(), self.reference.vocabulary
        theirs = (_intact(self.reference), self.reference.nats(chosen))
        kind = kind_of(collapse_ratio(*theirs))
        if kind != "critical":
            summary = f"the reference's set is {kind} (x{collapse_ratio(*theirs):.3g}, critical from x{CRITICAL:g})"
            return self.verdict(Outcome.NOT_APPLICABLE, summary, facts={"kind": kind})
        ours = (self.candidate.nats(ids=ids), self.candidate.nats(chosen, ids))
        if not torch.isfinite(ours[0]).all():
            return self.failed("not finite", "the candidate's intact pass holds NaN or infinity")
        share = capped_collapse(*ours, size) / capped_collapse(*theirs, size)
        summary = (
            f"{_count(chosen)} zeroed: perplexity x{collapse_ratio(*ours):,.4g} "
            f"(reference x{collapse_ratio(*theirs):,.4g}), {share:.2f} of its capped nats"
        )
        more: dict[str, Any] = {"measured": share, "limit": limit, "unit": "share", "facts": {"kind": kind}}
        if limit.holds(share):
            return self.verdict(Outcome.PASSED, summary, **more)
        cause = "dependence lost: the candidate does not hang on these weights any more"
        return self.failed(cause, summary, "its constant may come from elsewhere: relocate in the candidate", **more)


def check_needs(check: str) -> bool:
    """Whether a comparison looks at super weights; the perplexity does not."""
    return check != "perplexity"


def _padded(subject: Subject, prompts: Sequence[str] | None) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The prompts as one batch, padded on the right, int64 ``(B, T)``, and the true length of each."""
    if prompts is None:
        ids = subject.prompt_ids()
        return ids, (ids.shape[1],)
    if subject.tokenizer is None:
        raise OptionError("prompts", "a bare module without a tokenizer", "pass tokenizer=")
    if not prompts:
        raise OptionError("prompts", "an empty list: nothing would be checked", "leave it out for the default one")
    rows = [subject.tokenizer(prompt)["input_ids"] for prompt in prompts]
    rows = [row for row in rows if row]
    width = max((len(row) for row in rows), default=0)
    if not width:
        raise OptionError("prompts", "no prompt of them has a token", f"for example {PROMPT!r}")
    padded = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows], dtype=torch.int64)
    return padded, tuple(len(row) for row in rows)


def _same_tokens(one: Subject, other: Subject) -> bool:
    if one.tokenizer is None or other.tokenizer is None or one.tokenizer is other.tokenizer:
        return True
    sample = other.text[:2000] if other.text else PROMPT
    return all(one.tokenizer(text)["input_ids"] == other.tokenizer(text)["input_ids"] for text in (PROMPT, sample))


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan


def _worst(ratios: Sequence[float], limit: Limit) -> int:
    """The index of the ratio that is worst: not finite, else outside by most, else nearest to an end."""

    def badness(ratio: float) -> float:
        if not math.isfinite(ratio) or ratio <= 0:
            return math.inf
        return abs(math.log(ratio))

    del limit
    return max(range(len(ratios)), key=lambda i: badness(ratios[i]))


def _activation_cause(place: SuperActivation, ratio: float, ours: Reading, theirs: Reading) -> str:
    where = f"super activation of channel {place.channel} at token {theirs.position}"
    if not math.isfinite(ratio):
        return f"{where} is not finite"
    elsewhere = abs(ours.largest) >= 0.5 * abs(theirs.value) and (ours.channel != place.channel)
    if abs(ratio) < 0.5 and elsewhere:
        return f"{where} moved to channel {ours.channel} (x{ratio:.2f} at its place)"
    if ratio < 0:
        return f"{where} has its sign flipped (x{ratio:.2f})"
    return f"{where} {'lost' if ratio < 0.5 else 'weakened' if ratio < 1 else 'amplified'} (x{ratio:.2f})"


def _standard_error(difference: torch.Tensor) -> float:
    """The standard error of a mean of paired differences ``(B, T - 1)``, windows taken as the independent units."""
    means = difference.mean(1)
    if len(means) < 2:
        return float(difference.std() / math.sqrt(difference.numel())) if difference.numel() > 1 else 0.0
    return float(means.std() / math.sqrt(len(means)))


__all__ = [
    "Kinship",
    "assert_collapses_when_zeroed",
    "assert_perplexity_within",
    "assert_super_activations_preserved",
    "assert_super_weights_located",
    "assert_super_weights_preserved",
    "assert_survives_pruning",
    "capped_collapse",
    "collapse_ratio",
    "conclude",
    "message_of",
]
