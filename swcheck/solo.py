"""Verdicts on one model, without another beside it: located, healthy, collapsing, and the two nulls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from swcheck.errors import NotFiniteError, OptionError
from swcheck.limits import kind_of
from swcheck.ratios import capped_collapse, collapse_ratio, count, perplexity_of, times
from swcheck.records import Limit, Outcome, SuperWeight, Verdict
from swcheck.subject import Subject


def none_found(check: str, subject: Subject, candidate: str | None = None) -> Verdict:
    """The verdict of every check that has no super weight to check."""
    reason = subject.located().reason.removeprefix("none found: ")
    return Verdict(check, subject.name, Outcome.NOT_APPLICABLE, f"no super weight: {reason}", candidate)


def located(subject: Subject) -> Verdict:
    """Whether a model has super weights, and which."""
    found = subject.located()
    if not found.super_weights:
        return none_found("super weights", subject)
    detail = tuple(
        (str(w), f"writes {value:+.4g}") for w, value in zip(found.super_weights, found.written, strict=True)
    )
    words = "; ".join(f"{name} {text}" for name, text in detail) + f"; {found.reason}"
    return Verdict(
        "super weights",
        subject.name,
        Outcome.PASSED,
        words,
        measured=float(len(found.super_weights)),
        limit=Limit(1.0, None, "a model without any is not_applicable"),
        detail=detail,
        facts={"super_weights": [weight.as_json() for weight in found.super_weights]},
    )


def healthy(subject: Subject, at_most: float | None) -> Verdict:
    """Whether a model on its own is fit to be measured against: finite, and better than guessing."""
    nats = subject.intact()[0]
    source = "given" if at_most is not None else "the size of its vocabulary: above it a model is worse than guessing"
    limit = Limit(None, float(subject.vocabulary) if at_most is None else at_most, source)
    value = perplexity_of(nats) if torch.isfinite(nats).all() else math.nan
    passed = limit.holds(value)
    digest = subject.text_hash
    text = subject.text_name + ("" if digest is None else f" (sha256 {digest[:10]})")
    return Verdict(
        "perplexity",
        subject.name,
        Outcome.PASSED if passed else Outcome.FAILED,
        f"perplexity {value:.4g} on {nats.numel():,} tokens in {len(nats)} windows of {text}{subject.tier_words}",
        measured=value,
        limit=limit,
        unit="perplexity",
        cause="" if passed else ("not finite" if math.isnan(value) else "perplexity too high"),
        attempt="" if passed else "check dtype, tokenizer and BOS of this checkpoint",
        facts={"tokens": nats.numel(), "nats": float(nats.sum()), "text_sha256": digest},
    )


def collapse(subject: Subject, weights: Sequence[SuperWeight], limit: Limit) -> Verdict:
    """How far a model collapses without ``weights``, together and one by one."""
    if not weights:
        return none_found("collapse when zeroed", subject)
    intact, ablated = causal_intact(subject), subject.causal_nats(weights)
    ratio = collapse_ratio(intact, ablated)
    nats = float(ablated.mean() - intact.mean())
    alone = [ratio] if len(weights) == 1 else [collapse_ratio(intact, subject.causal_nats([w])) for w in weights]
    passed = limit.holds(ratio) or (limit.low is not None and not math.isfinite(ratio))
    worse = ", worse than guessing" if perplexity_of(ablated) > subject.vocabulary else ""
    return Verdict(
        "collapse when zeroed",
        subject.name,
        Outcome.PASSED if passed else Outcome.FAILED,
        f"{count(weights)} zeroed: perplexity {times(ratio)} ({nats:+.2f} nats), {kind_of(ratio)}{worse}",
        measured=ratio,
        limit=limit,
        unit="x",
        cause="" if passed else f"the model does not hang on its super weights ({times(ratio)}, {kind_of(ratio)})",
        attempt="" if passed else "relocate: swcheck locate; a set may be incomplete, or the model leans on none",
        detail=tuple((f"{w} alone", times(x)) for w, x in zip(weights, alone, strict=True)) if len(alone) > 1 else (),
        facts={
            "nats": nats,
            "capped_nats": capped_collapse(intact, ablated, subject.vocabulary),
            "kind": kind_of(ratio),
            "alone": alone,
        },
    )


def matched_null(subject: Subject, weights: Sequence[SuperWeight], limit: Limit, draws: int) -> Verdict:
    """As many weights of matched magnitude from the same matrices, ``draws`` times; the worst draw counts."""
    if draws < 1:
        raise OptionError(f"draws = {draws}", "a null without a draw proves nothing", "1 or more")
    if not weights:
        return none_found("null: matched weights", subject)
    intact = causal_intact(subject)
    ratios = []
    for seed in range(draws):
        drawn = subject.nats_without_matched(weights, seed)
        if isinstance(drawn, str):
            return _unranked("null: matched weights", subject, drawn)
        ratios.append(collapse_ratio(intact, drawn))
    summary = f"{count(weights)} of the next-largest of the same matrix zeroed, worst of {draws}: x{max(ratios):.4f}"
    return _null("null: matched weights", subject, max(ratios), limit, summary, {"draws": ratios})


def largest_null(subject: Subject, weights: Sequence[SuperWeight], limit: Limit) -> Verdict:
    """The largest other weights of every matrix; the limit is at most the square root of the collapse."""
    if not weights:
        return none_found("null: largest others", subject)
    intact = causal_intact(subject)
    found = subject.nats_without_largest(weights)
    if isinstance(found, str):
        return _unranked("null: largest others", subject, found)
    ablated, removed = found
    root = math.sqrt(max(1.0, collapse_ratio(intact, subject.causal_nats(weights))))
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


def causal_intact(subject: Subject) -> torch.Tensor:
    """The intact nats that a causal check starts from; a model that has none that are finite cannot be asked."""
    nats = subject.causal_intact()
    if not torch.isfinite(nats).all():
        raise NotFiniteError(
            f"the intact perplexity of {subject.name}", "NaN or infinity", "check its dtype and its weights"
        )
    return nats
