"""The check of the super weights: the contribution of each in the candidate over that in the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from swcheck.base.formatting import format_count
from swcheck.base.records import Limit, Outcome, SuperWeight, Verdict
from swcheck.base.statistics import is_near_ratio, ratio_of, worst_of
from swcheck.gate.checks.confounds import obstacle
from swcheck.gate.checks.correspondence import Correspondence, corresponding, damaged_candidate
from swcheck.gate.checks.pair import Pair, passed_or_near
from swcheck.gate.checks.red_verdict import cause_beside, red_verdict, with_remedy
from swcheck.gate.diagnosis.causes.contribution import restoration_rows
from swcheck.gate.diagnosis.causes.saturation import finding_of, saturated
from swcheck.gate.diagnosis.evidence.finding import Finding
from swcheck.gate.diagnosis.evidence.weight_change import weight_change
from swcheck.superweights.measurements.contributions import contributions_on_default_prompt
from swcheck.superweights.measurements.curves import labelled, layer_curves
from swcheck.superweights.measurements.scores import noise_floor
from swcheck.superweights.measurements.weights import down_name, weight_values


@dataclass(frozen=True)
class Compared:
    """A super weight of the reference and its ``place`` in the candidate, or what that has instead, if it is ``absent``.

    ``stored`` are its values in the reference and in the candidate, ``written`` is what it writes in each; 0 if absent.
    """

    weight: SuperWeight
    place: SuperWeight
    absent: str
    stored: tuple[float, float]
    written: tuple[float, float]

    @property
    def ratio(self) -> float:
        """What it writes in the candidate over what it writes in the reference."""
        return ratio_of(self.written[1], self.written[0])

    @property
    def change(self) -> float:
        """Its value in the candidate over its value in the reference."""
        return ratio_of(self.stored[1], self.stored[0])

    @property
    def row(self) -> tuple[str, str]:
        """Its place in the reference, and in words its values, what it writes, and its place in the candidate."""
        (before, after), (theirs, ours) = self.stored, self.written
        if self.absent:
            return self.weight.place, f"weight {before:+.4g}, writes {theirs:+.4g}; {self.absent}"
        words = f"weight {before:+.4g} -> {after:+.4g}, writes {theirs:+.4g} -> {ours:+.4g}"
        return self.weight.place, words + ("" if self.place == self.weight else f", now at {self.place.place}")


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
    counterparts = corresponding(pair, chosen)
    compared = tuple(_compared(pair, counterparts))
    ratios = [one.ratio for one in compared]
    summary = _summary(compared, limit)
    fields: dict[str, Any] = {
        "measured": ratios[worst_of(ratios, limit)],
        "limit": limit,
        "unit": "x",
        "detail": tuple(one.row for one in compared),
        "facts": {
            "ratios": ratios,
            "contributions": list(counterparts.written),
            "weights": [one.stored[1] for one in compared],
            "notes": list(counterparts.notes),
            "curves": layer_curves(labelled(pair.reference, pair.candidate), chosen, pair.relation.channels),
        },
    }
    if all(limit.holds(ratio) for ratio in ratios):
        fields["facts"]["noise"] = floor = noise_floor(pair.reference)[1]
        outcome = passed_or_near(any(is_near_ratio(limit, ratio, floor) for ratio in ratios))
        return pair.verdict(outcome, "; ".join([summary, *counterparts.notes]), **fields)
    return _failed(pair, compared, summary, fields)


def _compared(pair: Pair, counterparts: Correspondence) -> Iterator[Compared]:
    """Yield each super weight with its counterpart, what both are, and what they write."""
    before = weight_values(pair.reference, pair.weights)
    theirs = contributions_on_default_prompt(pair.reference, pair.weights)
    for number, weight in enumerate(pair.weights):
        place, absent = counterparts.places[number], counterparts.absent[number]
        after = 0.0 if absent else weight_values(pair.candidate, (place,))[0]
        written = theirs[number], counterparts.written[number]
        yield Compared(weight, place, absent, (before[number], after), written)


def _summary(compared: Sequence[Compared], limit: Limit) -> str:
    ratios = [one.ratio for one in compared]
    worst = worst_of(ratios, limit)
    summary = f"{compared[worst].weight.place} writes x{ratios[worst]:z.3f} of the reference's"
    kept = sum(limit.holds(ratio) for ratio in ratios)
    if 0 < kept < len(ratios):
        summary += f"; {kept} of {format_count([one.weight for one in compared])} still do, and whether that is enough the perplexity says"
    return summary


def _failed(pair: Pair, compared: Sequence[Compared], summary: str, fields: dict[str, Any]) -> Verdict:
    """Return the red verdict: how the worst super weight was changed, and the matrices to leave unquantized."""
    limit = fields["limit"]
    if pair.candidate.is_runtime and all(limit.holds(one.change) for one in compared):  # what it reads changed
        return red_verdict(pair, summary, **fields)
    worst = compared[worst_of([one.ratio for one in compared], limit)]
    damaged = damaged_candidate(pair)
    other = cause_beside(damaged)
    if other is None and limit.holds(worst.change):  # the weight is the reference's, what it writes is not
        cut = saturated(damaged)
        other = None if cut is None else finding_of(cut)
    if other is not None:
        detail = (*other.detail, *fields.pop("detail"))
        return pair.failed(other.cause, summary, other.advice, detail=detail, cause_kind=other.kind, **fields)
    cause = weight_change(pair.candidate, pair.reference, worst.weight, worst.place, worst.ratio)
    red = [one.place for one in compared if not limit.holds(one.ratio)]
    names = dict.fromkeys(down_name(pair.module_owner, place.layer, place.expert) for place in red)
    fields["detail"] = (*restoration_rows(damaged), *fields["detail"])
    return with_remedy(pair, Finding(cause, (), tuple(names), kind="super_weight"), summary, damaged, **fields)
