"""The checks of dependence: a model collapses when its super weights are zeroed, and a candidate as its reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from swcheck.base.errors import NotFiniteError
from swcheck.base.formatting import format_count, format_perplexity, format_ratio
from swcheck.base.limits import CRITICAL, collapse_class
from swcheck.base.records import Limit, Outcome, SuperWeight, Verdict
from swcheck.base.statistics import (
    STANDARD_ERRORS,
    capped_collapse,
    collapse_ratio,
    collapse_share,
    is_near,
    perplexity_of,
    standard_error,
)
from swcheck.gate.checks.confounds import not_finite_nats, obstacle
from swcheck.gate.checks.correspondence import damaged_candidate
from swcheck.gate.checks.pair import Pair, passed_or_near
from swcheck.gate.checks.red_verdict import red_verdict
from swcheck.gate.checks.single_model import no_super_weight
from swcheck.lens.architecture.anatomy import MapKey
from swcheck.loading.runtime import Capability
from swcheck.superweights.measurements.ablation import (
    ablated_nats,
    intact_nats,
    intact_nats_against,
    nats_without_experts,
    window_starts,
)
from swcheck.superweights.measurements.inputs import vocabulary_size
from swcheck.superweights.measurements.scores import noise_floor
from swcheck.superweights.subject.subject import Subject


def collapse(subject: Subject, weights: Sequence[SuperWeight], limit: Limit) -> Verdict:
    """Judge the perplexity ratio of a model with ``weights`` zeroed together; zeroing each alone is shown, not judged.

    Raises ``NotFiniteError`` if the intact model is not finite.
    """
    if not weights:
        return no_super_weight("collapse when zeroed", subject)
    intact, ablated = finite_intact_nats(subject), ablated_nats(subject, weights)
    ratio = collapse_ratio(intact, ablated)
    nats = float(ablated.mean() - intact.mean())
    alone = [ratio] if len(weights) == 1 else [collapse_ratio(intact, ablated_nats(subject, [w])) for w in weights]
    passed = limit.holds(ratio)
    degree = " as much as asked" if collapse_class(ratio) == "critical" else ""
    worse = ", worse than guessing" if perplexity_of(ablated) > vocabulary_size(subject) else ""
    change = f"perplexity {format_ratio(ratio)} ({nats:+.2f} nats) on {ablated.numel():,} tokens"
    cause = f"the model does not hang on its super weights{degree} ({format_ratio(ratio)}, {collapse_class(ratio)})"
    attempt = "relocate: swcheck locate; a set may be incomplete, or the model leans on none"
    rows = tuple((f"{w} alone", format_ratio(x)) for w, x in zip(weights, alone, strict=True)) if len(alone) > 1 else ()
    rows += _experts_zeroed(subject, weights, intact)
    return Verdict(
        "collapse when zeroed",
        subject.name,
        Outcome.PASSED if passed else Outcome.FAILED,
        f"{format_count(weights)} zeroed: {change}, {collapse_class(ratio)}{worse}",
        measured=ratio,
        limit=limit,
        unit="x",
        cause="" if passed else cause,
        attempt="" if passed else attempt,
        cause_kind="" if passed else "dependence",
        detail=rows,
        facts={
            "nats": nats,
            "tokens": ablated.numel(),
            "capped_nats": capped_collapse(intact, ablated, vocabulary_size(subject)),
            "kind": collapse_class(ratio),
            "alone": alone,
        },
    )


def _experts_zeroed(
    subject: Subject, weights: Sequence[SuperWeight], intact: torch.Tensor
) -> tuple[tuple[str, str], ...]:
    """Return rows with the perplexity ratio of each whole expert that holds a super weight zeroed, for comparison."""
    rows = []
    for key in dict.fromkeys(MapKey(w.layer, w.expert) for w in weights if isinstance(w.expert, int)):
        nats = nats_without_experts(subject, [key])
        words = nats if isinstance(nats, str) else format_ratio(collapse_ratio(intact, nats))
        rows.append((f"whole expert {key.expert} of layer {key.layer}", words))
    return tuple(rows)


def compare_dependence(pair: Pair, limit: Limit) -> Verdict:
    """Judge the candidate's collapse over the reference's, in capped nats, with the same weights zeroed in both.

    Not applicable if the reference's set is not critical, or the candidate is rotated.
    """
    found = obstacle(pair, Capability.OVERRIDE)
    if found is not None:
        return found
    chosen = pair.weights
    before = (finite_intact_nats(pair.reference), ablated_nats(pair.reference, chosen))
    not_comparable = _not_comparable_verdict(pair, before)
    if not_comparable is not None:
        return not_comparable
    ids, size = window_starts(pair.reference), vocabulary_size(pair.reference)
    whole = pair.nats()[1]
    if not torch.isfinite(whole).all():
        return not_finite_nats(pair, whole)
    intact = intact_nats_against(pair.candidate, pair.reference)
    places = damaged_candidate(pair).places
    after = (intact, ablated_nats(pair.candidate, places, ids) if places else intact)
    share = collapse_share(after, before, size)
    left = f"{share:.2f} of its capped nats"
    if perplexity_of(intact) >= size:
        left = (
            f"nothing is left to collapse: intact it has {format_perplexity(perplexity_of(intact))}, guessing {size:,}"
        )
    summary = (
        f"{format_count(chosen)} zeroed: perplexity {format_ratio(collapse_ratio(*after))} "
        f"(reference {format_ratio(collapse_ratio(*before))}), {left}"
    )
    fields: dict[str, Any] = {"measured": share, "limit": limit, "unit": "share", "facts": {"kind": "critical"}}
    if limit.holds(share):
        error = share * standard_error(after[1] - after[0]) / max(float((after[1] - after[0]).mean()), 1e-12)
        near = is_near(limit, share, max(STANDARD_ERRORS * error, noise_floor(pair.reference)[0]))
        return pair.verdict(passed_or_near(near), summary, **fields)
    return red_verdict(pair, summary, share=share, **fields)


def _not_comparable_verdict(pair: Pair, before: tuple[torch.Tensor, torch.Tensor]) -> Verdict | None:
    """Return the verdict if the reference, with its intact and ablated nats ``before``, has no collapse to compare."""
    kind, size = collapse_class(collapse_ratio(*before)), vocabulary_size(pair.reference)
    if pair.relation.kind == "rotated":
        summary = f"{pair.relation.words}; there is no single weight to zero"
        return pair.verdict(Outcome.NOT_APPLICABLE, summary, facts={"kind": kind})
    if kind != "critical":
        ratio = format_ratio(collapse_ratio(*before))
        summary = f"the reference's set is {kind} ({ratio}, critical from x{CRITICAL:g})"
        return pair.verdict(Outcome.NOT_APPLICABLE, summary, facts={"kind": kind})
    if capped_collapse(*before, size) > 0:
        return None
    summary = f"its own perplexity is {format_perplexity(perplexity_of(before[0]))}, guessing has {size:,}"
    cause, attempt = "the reference is sick", "check its dtype and weights"
    return pair.verdict(Outcome.INCONCLUSIVE, summary, cause=cause, attempt=attempt, cause_kind="reference")


def finite_intact_nats(subject: Subject) -> torch.Tensor:
    """Return the intact nats that a causal check starts from. Raises ``NotFiniteError`` if one is not finite."""
    nats = intact_nats(subject)
    if not torch.isfinite(nats).all():
        raise NotFiniteError(
            f"the intact perplexity of {subject.name}", "NaN or infinity", "check its dtype and its weights"
        )
    return nats
