"""The check of the super weights: the contribution of each in the candidate over that in the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swcheck.base.formatting import format_count
from swcheck.base.records import Limit, Outcome, SuperWeight, Verdict
from swcheck.base.statistics import is_near_ratio, ratio_of, worst_of
from swcheck.gate.checks.confounds import obstacle
from swcheck.gate.checks.correspondence import corresponding, depth
from swcheck.gate.checks.pair import Pair, passed_or_near
from swcheck.gate.checks.red_verdict import red_verdict, with_remedy
from swcheck.gate.diagnosis.causes.contribution import restoration_rows
from swcheck.gate.diagnosis.causes.saturation import finding_of, saturated
from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Finding
from swcheck.gate.diagnosis.evidence.weight_change import weight_change
from swcheck.gate.diagnosis.explain import cause_beside_super_weights
from swcheck.superweights.measurements.contributions import contributions_on_default_prompt
from swcheck.superweights.measurements.curves import labelled, layer_curves
from swcheck.superweights.measurements.scores import noise_floor
from swcheck.superweights.measurements.weights import down_name, weight_values


def compare_contributions(pair: Pair, limit: Limit) -> Verdict:
    """Judge the worst signed ratio of contributions, candidate over reference.

    Not applicable to a rotated candidate, whose weights have no counterpart in the reference.
    """
    found = obstacle(pair)
    if found is not None:
        return found
    chosen = pair.weights
    if pair.relation.kind == "rotated":
        summary = f"{pair.relation.words}; its weights have no counterpart, the sink token's norm is judged instead"
        return pair.verdict(Outcome.NOT_APPLICABLE, summary)
    theirs, before = contributions_on_default_prompt(pair.reference, chosen), weight_values(pair.reference, chosen)
    counterparts = corresponding(pair, chosen)
    ratios = [ratio_of(one, other) for one, other in zip(counterparts.written, theirs, strict=True)]
    after = weight_values(pair.candidate, counterparts.places)
    summary = _summary(chosen, ratios, limit)
    rows = zip(chosen, counterparts.places, before, after, theirs, counterparts.written, strict=True)
    fields: dict[str, Any] = {
        "measured": ratios[worst_of(ratios, limit)],
        "limit": limit,
        "unit": "x",
        "detail": tuple(_row(*one) for one in rows),
        "facts": {
            "ratios": ratios,
            "contributions": list(counterparts.written),
            "weights": list(after),
            "notes": list(counterparts.notes),
            "curves": layer_curves(labelled(pair.reference, pair.candidate), chosen, pair.relation.channels),
        },
    }
    if all(limit.holds(ratio) for ratio in ratios):
        fields["facts"]["noise"] = floor = noise_floor(pair.reference)[1]
        outcome = passed_or_near(any(is_near_ratio(limit, ratio, floor) for ratio in ratios))
        return pair.verdict(outcome, "; ".join([summary, *counterparts.notes]), **fields)
    stored = [ratio_of(*values) for values in zip(after, before, strict=True)]
    return _failed(pair, (chosen, counterparts.places), stored, summary, fields)


def _summary(chosen: Sequence[SuperWeight], ratios: Sequence[float], limit: Limit) -> str:
    worst = worst_of(ratios, limit)
    place = chosen[worst].place
    summary = f"{place} writes x{ratios[worst]:z.3f} of the reference's"
    kept = sum(limit.holds(ratio) for ratio in ratios)
    if 0 < kept < len(ratios):
        summary += f"; {kept} of {format_count(chosen)} still do, and whether that is enough the perplexity says"
    return summary


def _row(
    weight: SuperWeight, place: SuperWeight, before: float, after: float, theirs: float, ours: float
) -> tuple[str, str]:
    """Return the row of a super weight: value and contribution in both models, its place in the candidate."""
    words = f"weight {before:+.4g} -> {after:+.4g}, writes {theirs:+.4g} -> {ours:+.4g}"
    moved = "" if place == weight else f", now at {place.place}"
    return weight.place, words + moved


def _failed(
    pair: Pair,
    weights: tuple[Sequence[SuperWeight], Sequence[SuperWeight]],
    stored: Sequence[float],
    summary: str,
    fields: dict[str, Any],
) -> Verdict:
    """Return the red verdict: how the worst super weight was changed, and the matrices to leave unquantized.

    ``weights`` are the super weights in the reference's and in the candidate's coordinates, ``stored`` the ratios of
    their values.
    """
    chosen, places = weights
    limit, ratios = fields["limit"], fields["facts"]["ratios"]
    if pair.candidate.is_runtime and all(map(limit.holds, stored)):  # what it reads changed, not the weight
        return red_verdict(pair, summary, **fields)
    worst = worst_of(ratios, limit)
    damaged = DamagedCandidate(pair.candidate, pair.reference, pair.relation, tuple(chosen), tuple(places))
    other = None if pair.candidate.is_runtime else cause_beside_super_weights(damaged)
    if other is None and limit.holds(stored[worst]):  # the weight is the reference's, what it writes is not
        cut = saturated(damaged)
        other = None if cut is None else finding_of(cut)
    if other is not None:
        detail = (*other.detail, *fields.pop("detail"))
        return pair.failed(other.cause, summary, other.advice, detail=detail, cause_kind=other.kind, **fields)
    cause = weight_change(pair.candidate, pair.reference, chosen[worst], ratios[worst])
    red = [place for place, ratio in zip(places, ratios, strict=True) if not limit.holds(ratio)]
    names = dict.fromkeys(down_name(pair.module_owner, w.layer, w.expert) for w in red if w.layer < depth(pair))
    fields["detail"] = (*restoration_rows(damaged), *fields["detail"])
    return with_remedy(pair, Finding(cause, (), tuple(names), kind="super_weight"), summary, (chosen, places), **fields)
