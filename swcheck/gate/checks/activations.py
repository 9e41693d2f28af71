"""The check of the super activations: the candidate's value at the reference's layer, channel and token.

A rotated candidate has no such channel; the norm of the sink token's residual stream is judged instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from swcheck.base.records import Limit, Outcome, Prompt, SuperWeight, Verdict
from swcheck.base.statistics import is_near_ratio, ratio_of
from swcheck.gate.checks.confounds import obstacle
from swcheck.gate.checks.correspondence import SAME_CONTRIBUTION, damaged_candidate, depth
from swcheck.gate.checks.pair import Pair, passed_or_near
from swcheck.gate.checks.prompted_activations import PromptedActivations
from swcheck.gate.checks.red_verdict import cause_beside, red_verdict, with_remedy
from swcheck.gate.diagnosis.causes.activation import first_losing_layer
from swcheck.gate.diagnosis.causes.contribution import restoration_rows
from swcheck.gate.diagnosis.causes.saturation import finding_of, saturated, share_of_float16
from swcheck.gate.diagnosis.evidence.damaged_candidate import KEEP_PLACE, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Finding
from swcheck.gate.diagnosis.evidence.worst_maps import worst_maps_of_layer
from swcheck.lens.architecture.anatomy import numbered
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.residual_stream import super_activations, token_norm
from swcheck.superweights.measurements.scores import noise_floor
from swcheck.superweights.measurements.weights import down_name

MUCH: Final = 0.5
"""A super activation that fills more than this share of float16 is pointed out: beyond it there is infinity."""


def compare_activations(pair: Pair, prompts: Sequence[str | Prompt] | None, limit: Limit) -> Verdict:
    """Judge the worst ratio of super activations, candidate over reference, on ``prompts``; None is the default prompt.

    Inconclusive if the reference has its activation on too few prompts. For a rotated candidate norms are judged.
    """
    found = obstacle(pair)
    if found is not None:
        return found
    chosen = pair.weights
    if pair.relation.kind == "rotated":
        return _compare_norms(pair, chosen, limit)
    if any(place.layer >= depth(pair) for place in super_activations(pair.reference, chosen)):
        return _without_layer(pair, chosen, limit)
    prompted = PromptedActivations(pair.candidate, pair.reference, chosen, pair.relation.channels)
    outcome, summary, fields = prompted.compare(prompts, limit)
    if outcome is Outcome.PASSED:
        fields["facts"]["noise"] = floor = noise_floor(pair.reference)[1]
        outcome = passed_or_near(any(is_near_ratio(limit, ratio, floor) for ratio in fields["facts"]["ratios"]))
        summary += _near_overflow(pair, chosen, fields["facts"])
    if outcome is not Outcome.FAILED:
        return pair.verdict(outcome, summary, **fields)
    return _failed(pair, summary, fields)


def _without_layer(pair: Pair, chosen: Sequence[SuperWeight], limit: Limit) -> Verdict:
    """Return the red verdict on a candidate that ends before the layer after which a super activation stands."""
    layers = depth(pair)
    place = next(one for one in super_activations(pair.reference, chosen) if one.layer >= layers)
    summary = (
        f"channel {place.channel} at token {place.position} after layer {place.layer}: not there for {place.value:+.4g}"
    )
    there = f"the candidate has {numbered('layer', layers)}"
    cause = f"no layer {place.layer}, after which the super activation stands: {there}"
    found = cause_beside(damaged_candidate(pair)) or Finding(cause, (), (), KEEP_PLACE, kind="super_activation")
    fields: dict[str, Any] = {"measured": 0.0, "limit": limit, "unit": "x", "detail": found.detail}
    return pair.failed(found.cause, summary, found.advice, cause_kind=found.kind, **fields)


def _failed(pair: Pair, summary: str, fields: dict[str, Any]) -> Verdict:
    """Return the red verdict: how the super weights that write the activation changed, or the layer that loses it."""
    damaged = damaged_candidate(pair)
    other = cause_beside(damaged)
    if other is not None:
        fields |= {"cause": other.cause, "attempt": other.advice, "detail": other.detail, "cause_kind": other.kind}
        return pair.verdict(Outcome.FAILED, summary, **fields)
    cut = saturated(damaged)
    if cut is not None:
        found = finding_of(cut)
        detail = (*found.detail, *fields.get("detail", ()))
        fields |= {"cause": found.cause, "attempt": found.advice, "detail": detail, "cause_kind": found.kind}
        return pair.verdict(Outcome.FAILED, summary, **fields)
    contributions = "what the super weights write is " + ", ".join(f"x{ratio:z.3f}" for ratio in damaged.ratios)
    lost = first_losing_layer(damaged)
    changed = [
        place for number, place in enumerate(damaged.places) if not SAME_CONTRIBUTION.holds(damaged.ratios[number])
    ]
    if pair.candidate.is_runtime and not changed:
        del fields["cause"], fields["attempt"]
        return red_verdict(pair, summary, **fields)
    names = tuple(dict.fromkeys(down_name(pair.module_owner, weight.layer, weight.expert) for weight in changed))
    if not changed and lost is not None:
        fields["cause"] += f", in layer {lost}; what the super weights write is kept"
        names = worst_maps_of_layer(damaged, lost)
    fields["detail"] = (*restoration_rows(damaged), *fields.get("detail", ()), ("written", contributions))
    cause, attempt = fields.pop("cause"), fields.pop("attempt")
    kind = "super_weight" if changed else "super_activation"
    return with_remedy(pair, Finding(cause, (), names, attempt, kind=kind), summary, damaged, **fields)


def _near_overflow(pair: Pair, chosen: Sequence[SuperWeight], facts: dict[str, Any]) -> str:
    """Return words for a super activation that fills more than ``MUCH`` of float16, for the end of a summary."""
    if pair.candidate is pair.reference:
        return ""
    damaged = DamagedCandidate(pair.candidate, pair.reference, pair.relation, tuple(chosen))
    facts["share_of_float16"] = share = share_of_float16(pair.candidate, damaged)
    return f"; that is {share:.0%} of the range of float16" if share > MUCH else ""


def _compare_norms(pair: Pair, chosen: Sequence[SuperWeight], limit: Limit) -> Verdict:
    """Judge the ratio of the norms of the sink token's residual stream, which a rotation does not change."""
    ids = prompt_ids(pair.reference)
    place = super_activations(pair.reference, chosen)[0]
    theirs, ours = (
        token_norm(subject, place.layer, place.position, ids) for subject in (pair.reference, pair.candidate)
    )
    ratio = ratio_of(ours, theirs)
    summary = (
        f"rotated: norm of token {place.position} after layer {place.layer} {ours:.4g} for {theirs:.4g} (x{ratio:.3f})"
    )
    fields: dict[str, Any] = {"measured": ratio, "limit": limit, "unit": "x", "facts": {"basis": "rotated"}}
    if limit.holds(ratio):
        return pair.verdict(Outcome.PASSED, summary, **fields)
    return pair.failed(
        f"the sink token's residual norm is x{ratio:.2f}", summary, cause_kind="super_activation", **fields
    )
