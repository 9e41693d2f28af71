"""What a candidate predicts beside its reference: perplexity, also through its own cache, KL divergence, likeliest token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch

from swcheck.cached import WINDOWS, CachePass, cache_pass
from swcheck.coverage import unquantized
from swcheck.limits import DEFAULTS, for_confidence
from swcheck.pair import Pair
from swcheck.ratios import ERRORS, LARGEST_EXPONENT, as_read, near, near_ratio, perplexity_of, standard_error, times
from swcheck.records import Limit, Verdict

SHOWN: Final = 3
"""So many names of matrices that a quantizer skipped are said; the rest is counted."""


def compare_perplexity(pair: Pair, limit: Limit, at_most: float | None) -> Verdict:
    """The perplexity on the same tokens, differences paired."""
    confound = pair.confound()
    if confound is not None:
        return confound
    theirs, ours = pair.both()
    if not torch.isfinite(ours).all():
        return pair.not_finite(pair.broken(ours))
    difference = ours - theirs
    ratio, error = math.exp(min(LARGEST_EXPONENT, float(difference.mean()))), standard_error(difference)
    value, base = perplexity_of(ours), perplexity_of(theirs)
    if at_most is not None:
        limit = Limit(None, at_most / base, f"perplexity at most {at_most:g}")
    kind, floor, skipped = pair.kind, pair.reference.noise()[0], unquantized(pair.candidate, pair.reference)
    spread = f"x{ratio:.4f} +- {ratio * error:.4f}" if ratio < 1000 else times(ratio)
    where = f"{ours.numel():,} tokens{pair.reference.tier_words}"
    summary = f"perplexity {as_read(value)} for {as_read(base)}: {spread} on {where}"
    summary += f", noise {floor:.1g} nats{_unquantized_words(skipped)}"
    facts: dict[str, Any] = {
        "perplexity": value,
        "reference_perplexity": base,
        "standard_error": error,
        "tokens": ours.numel(),
        "text_sha256": pair.reference.text_hash,
        "noise": floor,
        "not_quantized": list(skipped),
        "candidate_kind": kind.name,
        "candidate_kind_why": kind.why,
    }
    more: dict[str, Any] = {"measured": ratio, "limit": limit, "unit": "x", "facts": facts}
    cache = _cache(pair, ours, facts)
    summary += "" if cache is None else _cache_words(cache)
    if cache is not None and cache.nats is not None and limit.holds(ratio):
        total = math.exp(min(LARGEST_EXPONENT, math.log(ratio) + cache.nats))
        if not (math.isfinite(cache.nats) and limit.holds(total)):
            return _cache_loses(pair, total, summary, more)
    if limit.holds(ratio) and not (limit.high is None and _lost(pair, ratio)):
        return pair.verdict(pair.passed(near_ratio(limit, ratio, max(ERRORS * error, floor))), summary, **more)
    return pair.red(summary, **more)


def _cache(pair: Pair, plain: torch.Tensor, facts: dict[str, Any]) -> CachePass | None:
    """The first windows scored through the candidate's quantized cache, where it says that it has one."""
    ids = pair.reference.windows()[:WINDOWS]
    found = pair.candidate.beside(
        pair.reference, ("cache",), lambda: cache_pass(pair.candidate.live, ids, plain[: len(ids)])
    )
    if found is not None:
        facts["kv_cache"] = {"scheme": found.scheme, "scored": found.nats is not None, "nats": found.nats}
    return found


def _cache_loses(pair: Pair, total: float, summary: str, more: dict[str, Any]) -> Verdict:
    """Red for its cache alone, through which the ratio is ``total``."""
    both = f"perplexity {times(total)} through it, {times(more['measured'])} without"
    advice = "more bits for the cache, or its first tokens unquantized"
    return pair.failed(f"the quantized KV cache loses it ({both})", summary, advice, **{**more, "measured": total})


def _lost(pair: Pair, ratio: float) -> bool:
    """Whether a loss that no limit judges is proven to be one of super weights: that is red whatever the kind."""
    if DEFAULTS["perplexity"].holds(ratio) or not pair.weights:
        return False
    return any(name == "proof" for name, _ in pair.finding().detail)


def compare_predictions(pair: Pair, kl: Limit, top1: Limit) -> Verdict:
    """The mean KL divergence and the agreement on the likeliest token, at sampled positions."""
    confound = pair.confound()
    if confound is not None:
        return confound
    ours = pair.both()[1]
    if not torch.isfinite(ours).all():
        return pair.not_finite(pair.broken(ours))
    drift, expected = pair.candidate.against(pair.reference)[1], pair.reference.intact()[1]
    top1 = for_confidence(top1, expected.confidence)
    median, high, highest = (f"{drift.percentile(share):.4f}" for share in (0.5, 0.95, 0.99))
    least = "" if top1.low is None else f" (limit >= {top1.low:.1%})"
    summary = (
        f"KL {drift.mean:.4f} nats (median {median}, 95th percentile {high}, 99th {highest}), "
        f"same top token {drift.top1:.1%}{least}, "
        f"{expected.covered:.1%} of the mass covered, {len(drift.kl):,} positions"
    )
    facts = {"kl": drift.mean, "top1": drift.top1, "covered": expected.covered, "confidence": expected.confidence}
    more: dict[str, Any] = {"measured": drift.mean, "limit": kl, "unit": "nats", "facts": facts}
    if kl.holds(drift.mean) and top1.holds(drift.top1):
        floor = max(ERRORS * drift.error, pair.reference.noise()[0])
        close = near(kl, drift.mean, floor) or near(top1, drift.top1, ERRORS * drift.top1_error)
        return pair.verdict(pair.passed(close), summary, **more)
    if not top1.holds(drift.top1):
        more["detail"] = (("top token", f"same {drift.top1:.1%}, limit >= {top1.low or 0:.1%} ({top1.source})"),)
    return pair.red(summary, **more)


def _unquantized_words(names: Sequence[str]) -> str:
    """What the quantizer silently skipped, for the end of a summary."""
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; not quantized, though no one excluded it: {', '.join(names[:SHOWN])}{more}"


def _cache_words(cache: CachePass) -> str:
    """What its quantized cache costs, or why that is not known, for the end of a summary."""
    if cache.nats is None:
        return f"; its {cache.scheme} KV cache was not scored: {cache.reason}"
    cost = math.exp(min(LARGEST_EXPONENT, cache.nats)) if math.isfinite(cache.nats) else cache.nats
    return f"; through its {cache.scheme} KV cache {times(cost)} on {cache.tokens:,} tokens"
