"""Verdicts on one model, without another beside it: located, and healthy."""

from __future__ import annotations

import math

import torch

from swcheck.ratios import as_read, perplexity_of
from swcheck.records import Limit, Outcome, Verdict
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
        f"perplexity {as_read(value)} on {nats.numel():,} tokens in {len(nats)} windows of {text}{subject.tier_words}",
        measured=value,
        limit=limit,
        unit="perplexity",
        cause="" if passed else ("not finite" if math.isnan(value) else "perplexity too high"),
        attempt="" if passed else "check dtype, tokenizer and BOS of this checkpoint",
        facts={"tokens": nats.numel(), "nats": float(nats.sum()), "text_sha256": digest},
    )
