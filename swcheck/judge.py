"""Super weights and super activations of a candidate beside its reference's: what is written, and what stands.

A rotated candidate is judged by the norm of the sink token instead of a channel it cannot have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swcheck.activations import Activations
from swcheck.case import Case, Finding
from swcheck.diagnosis import basis, given_back_to, lost_in
from swcheck.elsewhere import of_layer
from swcheck.fate import weight_cause
from swcheck.pair import FOLLOWED, Pair
from swcheck.ratios import count, near_ratio, ratio_of, worst_of
from swcheck.records import Limit, Outcome, Prompt, SuperWeight, Verdict


def compare_weights(pair: Pair, limit: Limit) -> Verdict:
    """The contributions of the super weights, candidate over reference."""
    obstacle = pair.obstacle()
    if obstacle is not None:
        return obstacle
    chosen = pair.weights
    if pair.kin.kind == "rotated":
        summary = f"{pair.kin.words}; its weights have no counterpart, the sink token's norm is judged instead"
        return pair.verdict(Outcome.NOT_APPLICABLE, summary)
    theirs, before = pair.reference.written(chosen), pair.reference.weights(chosen)
    there, ours, notes = pair.followed(chosen)
    ratios = [ratio_of(one, other) for one, other in zip(ours, theirs, strict=True)]
    worst, after = worst_of(ratios, limit), pair.candidate.weights(there)
    place = f"layer {chosen[worst].layer} [{chosen[worst].row}, {chosen[worst].column}]"
    summary = f"{place} writes x{ratios[worst]:z.3f} of the reference's"
    kept = sum(limit.holds(ratio) for ratio in ratios)
    if 0 < kept < len(ratios):
        summary += f"; {kept} of {count(chosen)} still do, and whether that is enough the perplexity says"
    more: dict[str, Any] = {
        "measured": ratios[worst],
        "limit": limit,
        "unit": "x",
        "detail": tuple(_row(*one) for one in zip(chosen, there, before, after, theirs, ours, strict=True)),
        "facts": {"ratios": ratios, "contributions": list(ours), "weights": list(after), "notes": list(notes)},
    }
    if all(limit.holds(ratio) for ratio in ratios):
        more["facts"]["noise"] = floor = pair.reference.noise()[1]
        outcome = pair.passed(any(near_ratio(limit, ratio, floor) for ratio in ratios))
        return pair.verdict(outcome, "; ".join([summary, *notes]), **more)
    return _weight_lost(pair, chosen, there, summary, more)


def _row(
    weight: SuperWeight, there: SuperWeight, before: float, after: float, theirs: float, ours: float
) -> tuple[str, str]:
    """One super weight: its value and what it writes, in the reference and in the candidate, and where it stands there."""
    words = f"weight {before:+.4g} -> {after:+.4g}, writes {theirs:+.4g} -> {ours:+.4g}"
    moved = "" if there == weight else f", now at layer {there.layer} [{there.row}, {there.column}]"
    return f"layer {weight.layer} [{weight.row}, {weight.column}]", words + moved


def _weight_lost(
    pair: Pair, chosen: Sequence[SuperWeight], there: Sequence[SuperWeight], summary: str, more: dict[str, Any]
) -> Verdict:
    """Red, with what became of the worst of the super weights, and the matrices whose precision it hangs on."""
    limit, ratios = more["limit"], more["facts"]["ratios"]
    worst = worst_of(ratios, limit)
    case = Case(pair.candidate, pair.reference, pair.kin, tuple(chosen), tuple(there))
    other = basis(case)
    if isinstance(other, Finding):
        detail = (*other.detail, *more.pop("detail"))
        return pair.failed(other.cause, summary, other.advice, detail=detail, **more)
    cause = weight_cause(pair.candidate, pair.reference, chosen[worst], ratios[worst])
    red = [place for place, ratio in zip(there, ratios, strict=True) if not limit.holds(ratio)]
    names = dict.fromkeys(pair.candidate.down_name(w.layer) for w in red if w.layer < pair.depth)
    more["detail"] = (*given_back_to(case), *more["detail"])
    return pair.remedied(Finding(cause, (), tuple(names)), summary, (chosen, there), **more)


def compare_activations(pair: Pair, prompts: Sequence[str | Prompt] | None, limit: Limit) -> Verdict:
    """The super activations at the reference's own place, candidate over reference, on the same prompts."""
    obstacle = pair.obstacle()
    if obstacle is not None:
        return obstacle
    chosen = pair.weights
    if pair.kin.kind == "rotated":
        return _compare_norms(pair, chosen, limit)
    outcome, summary, more = Activations(pair.candidate, pair.reference, chosen, pair.kin.channels).compare(
        prompts, limit
    )
    if outcome is Outcome.PASSED:
        more["facts"]["noise"] = floor = pair.reference.noise()[1]
        outcome = pair.passed(any(near_ratio(limit, ratio, floor) for ratio in more["facts"]["ratios"]))
    if outcome is not Outcome.FAILED:
        return pair.verdict(outcome, summary, **more)
    return _activation_lost(pair, chosen, summary, more)


def _activation_lost(pair: Pair, chosen: Sequence[SuperWeight], summary: str, more: dict[str, Any]) -> Verdict:
    """Red, with what became of the super weights that write it, or the layer that loses what they write."""
    there, ours, _ = pair.followed(chosen)
    ratios = [ratio_of(one, other) for one, other in zip(ours, pair.reference.written(chosen), strict=True)]
    case = Case(pair.candidate, pair.reference, pair.kin, tuple(chosen), there)
    other = basis(case)
    if isinstance(other, Finding):
        more |= {"cause": other.cause, "attempt": other.advice, "detail": other.detail}
        return pair.verdict(Outcome.FAILED, summary, **more)
    written = "what the super weights write is " + ", ".join(f"x{ratio:z.3f}" for ratio in ratios)
    lost = lost_in(case)
    matrices = [w for w, ratio in zip(there, ratios, strict=True) if not FOLLOWED.holds(ratio) and w.layer < pair.depth]
    names = tuple(dict.fromkeys(case.down(weight) for weight in matrices))
    if not matrices and lost is not None:
        more["cause"] += f", in layer {lost}; what the super weights write is kept"
        names = of_layer(case, lost)
    more["detail"] = (*given_back_to(case), *more.get("detail", ()), ("written", written))
    cause, attempt = more.pop("cause"), more.pop("attempt")
    return pair.remedied(Finding(cause, (), names, attempt), summary, (chosen, there), **more)


def _compare_norms(pair: Pair, chosen: Sequence[SuperWeight], limit: Limit) -> Verdict:
    ids = pair.reference.prompt_ids()
    place = pair.reference.places(chosen)[0]
    theirs, ours = (subject.sink_norm(place.layer, place.position, ids) for subject in (pair.reference, pair.candidate))
    ratio = ratio_of(ours, theirs)
    summary = (
        f"rotated: norm of token {place.position} after layer {place.layer} {ours:.4g} for {theirs:.4g} (x{ratio:.3f})"
    )
    more: dict[str, Any] = {"measured": ratio, "limit": limit, "unit": "x", "facts": {"basis": "rotated"}}
    if limit.holds(ratio):
        return pair.verdict(Outcome.PASSED, summary, **more)
    return pair.failed(f"the sink token's residual norm is x{ratio:.2f}", summary, **more)
