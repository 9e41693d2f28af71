"""Whether a model hangs on its super weights: on its own, beside its reference, and against nulls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from swcheck import causal
from swcheck.errors import NotFiniteError, OptionError
from swcheck.limits import CRITICAL, kind_of
from swcheck.pair import Pair
from swcheck.ratios import (
    ERRORS,
    as_read,
    capped_collapse,
    collapse_ratio,
    count,
    near,
    perplexity_of,
    standard_error,
    times,
)
from swcheck.records import Limit, Outcome, SuperWeight, Verdict
from swcheck.solo import none_found
from swcheck.subject import Subject


def collapse(subject: Subject, weights: Sequence[SuperWeight], limit: Limit) -> Verdict:
    """How far a model collapses without ``weights``, together and one by one."""
    if not weights:
        return none_found("collapse when zeroed", subject)
    intact, ablated = _intact(subject), causal.without(subject, weights)
    ratio = collapse_ratio(intact, ablated)
    nats = float(ablated.mean() - intact.mean())
    alone = [ratio] if len(weights) == 1 else [collapse_ratio(intact, causal.without(subject, [w])) for w in weights]
    passed = limit.holds(ratio) or (limit.low is not None and not math.isfinite(ratio))
    asked = " as much as asked" if kind_of(ratio) == "critical" else ""
    worse = ", worse than guessing" if perplexity_of(ablated) > subject.vocabulary else ""
    told = f"perplexity {times(ratio)} ({nats:+.2f} nats) on {ablated.numel():,} tokens"
    return Verdict(
        "collapse when zeroed",
        subject.name,
        Outcome.PASSED if passed else Outcome.FAILED,
        f"{count(weights)} zeroed: {told}, {kind_of(ratio)}{worse}",
        measured=ratio,
        limit=limit,
        unit="x",
        cause=""
        if passed
        else f"the model does not hang on its super weights{asked} ({times(ratio)}, {kind_of(ratio)})",
        attempt="" if passed else "relocate: swcheck locate; a set may be incomplete, or the model leans on none",
        detail=tuple((f"{w} alone", times(x)) for w, x in zip(weights, alone, strict=True)) if len(alone) > 1 else (),
        facts={
            "nats": nats,
            "tokens": ablated.numel(),
            "capped_nats": capped_collapse(intact, ablated, subject.vocabulary),
            "kind": kind_of(ratio),
            "alone": alone,
        },
    )


def compare_dependence(pair: Pair, limit: Limit) -> Verdict:
    """How much of the reference's collapse the candidate still shows when the same weights are zeroed."""
    obstacle = pair.obstacle()
    if obstacle is not None:
        return obstacle
    chosen = pair.weights
    before = (_intact(pair.reference), causal.without(pair.reference, chosen))
    nothing = _nothing_to_lose(pair, before)
    if nothing is not None:
        return nothing
    ids, size = causal.starts(pair.reference), pair.reference.vocabulary
    intact = pair.both()[1]
    if not torch.isfinite(intact).all():
        return pair.not_finite(pair.broken(intact))
    intact = causal.against(pair.candidate, pair.reference)
    after = (intact, causal.without(pair.candidate, pair.followed(chosen)[0], ids))
    share = max(0.0, capped_collapse(*after, size) / capped_collapse(*before, size))
    left = f"{share:.2f} of its capped nats"
    if perplexity_of(intact) >= size:
        left = f"nothing is left to collapse: intact it has {as_read(perplexity_of(intact))}, guessing {size:,}"
    summary = (
        f"{count(chosen)} zeroed: perplexity {times(collapse_ratio(*after))} "
        f"(reference {times(collapse_ratio(*before))}), {left}"
    )
    more: dict[str, Any] = {"measured": share, "limit": limit, "unit": "share", "facts": {"kind": "critical"}}
    if limit.holds(share):
        error = share * standard_error(after[1] - after[0]) / max(float((after[1] - after[0]).mean()), 1e-12)
        close = near(limit, share, max(ERRORS * error, pair.reference.noise()[0]))
        return pair.verdict(pair.passed(close), summary, **more)
    return pair.red(summary, share=share, **more)


def _nothing_to_lose(pair: Pair, before: tuple[torch.Tensor, torch.Tensor]) -> Verdict | None:
    """The verdict where the reference, intact and without its super weights, has no collapse to compare with."""
    kind, size = kind_of(collapse_ratio(*before)), pair.reference.vocabulary
    if pair.kin.kind == "rotated":
        summary = f"{pair.kin.words}; there is no single weight to zero"
        return pair.verdict(Outcome.NOT_APPLICABLE, summary, facts={"kind": kind})
    if kind != "critical":
        summary = f"the reference's set is {kind} ({times(collapse_ratio(*before))}, critical from x{CRITICAL:g})"
        return pair.verdict(Outcome.NOT_APPLICABLE, summary, facts={"kind": kind})
    if capped_collapse(*before, size) > 0:
        return None
    summary = f"its own perplexity is {as_read(perplexity_of(before[0]))}, guessing has {size:,}"
    cause, attempt = "the reference is sick", "check its dtype and weights"
    return pair.verdict(Outcome.INCONCLUSIVE, summary, cause=cause, attempt=attempt)


def matched_null(subject: Subject, weights: Sequence[SuperWeight], limit: Limit, draws: int) -> Verdict:
    """As many weights of matched magnitude from the same matrices, ``draws`` times; the worst draw counts."""
    if draws < 1:
        raise OptionError(f"draws = {draws}", "a null without a draw proves nothing", "1 or more")
    if not weights:
        return none_found("null: matched weights", subject)
    intact = _intact(subject)
    ratios = []
    for seed in range(draws):
        drawn = causal.without_matched(subject, weights, seed)
        if isinstance(drawn, str):
            return _unranked("null: matched weights", subject, drawn)
        ratios.append(collapse_ratio(intact, drawn))
    summary = f"{count(weights)} of the next-largest of the same matrix zeroed, worst of {draws}: x{max(ratios):.4f}"
    return _null("null: matched weights", subject, max(ratios), limit, summary, {"draws": ratios})


def largest_null(subject: Subject, weights: Sequence[SuperWeight], limit: Limit) -> Verdict:
    """The largest other weights of every matrix; the limit is at most the square root of the collapse."""
    if not weights:
        return none_found("null: largest others", subject)
    intact = _intact(subject)
    found = causal.without_largest(subject, weights)
    if isinstance(found, str):
        return _unranked("null: largest others", subject, found)
    ablated, removed = found
    root = math.sqrt(max(1.0, collapse_ratio(intact, causal.without(subject, weights))))
    if limit.high is not None and root < limit.high:
        limit = replace(limit, high=root, source="the square root of the collapse ratio")
    ratio = collapse_ratio(intact, ablated)
    summary = f"the {removed:,} largest others (0.01 % of every matrix) zeroed: x{ratio:.4f}"
    return _null("null: largest others", subject, ratio, limit, summary, {"weights": removed})


def _unranked(check: str, subject: Subject, found: str) -> Verdict:
    summary = f"no null can be drawn, magnitudes cannot be ranked here: {found}"
    return Verdict(check, subject.name, Outcome.NOT_APPLICABLE, summary)


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


def _intact(subject: Subject) -> torch.Tensor:
    """The intact nats that a causal check starts from; a model that has none that are finite cannot be asked."""
    nats = causal.intact(subject)
    if not torch.isfinite(nats).all():
        raise NotFiniteError(
            f"the intact perplexity of {subject.name}", "NaN or infinity", "check its dtype and its weights"
        )
    return nats
