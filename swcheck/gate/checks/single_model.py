"""The checks of a model alone: it has super weights, and its perplexity is better than guessing."""

from __future__ import annotations

import math

import torch

from swcheck.base.formatting import format_perplexity
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.base.statistics import perplexity_of
from swcheck.gate.checks.serving.eviction import eviction_beside
from swcheck.superweights.measurements.curves import labelled, layer_curves
from swcheck.superweights.measurements.inputs import text_hash, text_name, tier_suffix, vocabulary_size
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.scores import intact_scores
from swcheck.superweights.subject.subject import Subject


def no_super_weight(check: str, subject: Subject, candidate: str | None = None) -> Verdict:
    """Return the verdict of a check that needs super weights, if ``subject`` has none; ``candidate`` is a name."""
    reason = located(subject).reason.removeprefix("none found: ")
    return Verdict(check, subject.name, Outcome.NOT_APPLICABLE, f"no super weight: {reason}", candidate)


def super_weights_found(subject: Subject) -> Verdict:
    """Return a passed verdict that lists the super weights of a model; not applicable if it has none."""
    found = located(subject)
    if not found.super_weights:
        return no_super_weight("super weights", subject)
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
        facts={
            "super_weights": [weight.as_json() for weight in found.super_weights],
            "curves": layer_curves(labelled(subject, subject), found.super_weights),
        },
    )


def perplexity_at_most(subject: Subject, at_most: float | None) -> Verdict:
    """Judge the perplexity: finite, and at most ``at_most``; for None at most the vocabulary size, as for guessing."""
    nats = intact_scores(subject)[0]
    source = "given" if at_most is not None else "the size of its vocabulary: above it a model is worse than guessing"
    limit = Limit(None, float(vocabulary_size(subject)) if at_most is None else at_most, source)
    value = perplexity_of(nats) if torch.isfinite(nats).all() else math.nan
    passed = limit.holds(value)
    digest = text_hash(subject)
    text = text_name(subject) + ("" if digest is None else f" (sha256 {digest[:10]})")
    evicted, more = eviction_beside(subject, subject)
    where = f"{nats.numel():,} tokens in {len(nats)} windows of {text}{tier_suffix(subject)}"
    return Verdict(
        "perplexity",
        subject.name,
        Outcome.PASSED if passed else Outcome.FAILED,
        f"perplexity {format_perplexity(value)} on {where}{more}",
        measured=value,
        limit=limit,
        unit="perplexity",
        cause="" if passed else ("not finite" if math.isnan(value) else "perplexity too high"),
        attempt="" if passed else "check dtype, tokenizer and BOS of this checkpoint",
        cause_kind="" if passed else ("not_finite" if math.isnan(value) else "perplexity"),
        facts={"tokens": nats.numel(), "nats": float(nats.sum()), "text_sha256": digest, **evicted},
    )
