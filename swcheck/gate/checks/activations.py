"""The check of the super activations: the candidate's value at the reference's layer, channel and token.

A rotated candidate has no such channel; the norm of the sink token's residual stream is judged instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from swcheck.base.records import Limit, Outcome, Prompt, SuperWeight, Verdict
from swcheck.base.statistics import is_near_ratio, ratio_of
from swcheck.gate.checks.confounds import obstacle
from swcheck.gate.checks.correspondence import SAME_CONTRIBUTION, corresponding, depth
from swcheck.gate.checks.pair import Pair, passed_or_near
from swcheck.gate.checks.prompted_activations import PromptedActivations
from swcheck.gate.checks.red_verdict import red_verdict, with_remedy
from swcheck.gate.diagnosis.causes.activation import first_losing_layer
from swcheck.gate.diagnosis.causes.contribution import restoration_rows
from swcheck.gate.diagnosis.causes.saturation import finding_of, saturated, share_of_float16
from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Finding
from swcheck.gate.diagnosis.evidence.worst_maps import worst_maps_of_layer
from swcheck.gate.diagnosis.explain import cause_beside_super_weights
from swcheck.superweights.measurements.contributions import contributions_on_default_prompt
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
    prompted = PromptedActivations(pair.candidate, pair.reference, chosen, pair.relation.channels)
    outcome, summary, fields = prompted.compare(prompts, limit)
    if outcome is Outcome.PASSED:
        fields["facts"]["noise"] = floor = noise_floor(pair.reference)[1]
        outcome = passed_or_near(any(is_near_ratio(limit, ratio, floor) for ratio in fields["facts"]["ratios"]))
        summary += _near_overflow(pair, chosen, fields["facts"])
    if outcome is not Outcome.FAILED:
        return pair.verdict(outcome, summary, **fields)
    return _failed(pair, chosen, summary, fields)


def _failed(pair: Pair, chosen: Sequence[SuperWeight], summary: str, fields: dict[str, Any]) -> Verdict:
    """Return the red verdict: how the super weights that write the activation changed, or the layer that loses it."""
    counterparts = corresponding(pair, chosen)
    ratios = [
        ratio_of(one, other)
        for one, other in zip(
            counterparts.written, contributions_on_default_prompt(pair.reference, chosen), strict=True
        )
    ]
    damaged = DamagedCandidate(pair.candidate, pair.reference, pair.relation, tuple(chosen), counterparts.places)
    other = None if pair.candidate.is_runtime else cause_beside_super_weights(damaged)
    if other is not None:
        fields |= {"cause": other.cause, "attempt": other.advice, "detail": other.detail, "cause_kind": other.kind}
        return pair.verdict(Outcome.FAILED, summary, **fields)
    cut = saturated(damaged)
    if cut is not None:
        found = finding_of(cut)
        detail = (*found.detail, *fields.get("detail", ()))
        fields |= {"cause": found.cause, "attempt": found.advice, "detail": detail, "cause_kind": found.kind}
        return pair.verdict(Outcome.FAILED, summary, **fields)
    contributions = "what the super weights write is " + ", ".join(f"x{ratio:z.3f}" for ratio in ratios)
    lost = first_losing_layer(damaged)
    changed = [
        w
        for w, ratio in zip(counterparts.places, ratios, strict=True)
        if not SAME_CONTRIBUTION.holds(ratio) and w.layer < depth(pair)
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
    return with_remedy(
        pair, Finding(cause, (), names, attempt, kind=kind), summary, (chosen, counterparts.places), **fields
    )


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
