"""The checks of the predictions: perplexity, also through a quantized KV cache and in other shapes; KL divergence and top-1 agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from swcheck.base.formatting import format_perplexity, format_ratio
from swcheck.base.limits import DEFAULTS, is_given, scaled_to_confidence
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.base.statistics import (
    STANDARD_ERRORS,
    factor_of,
    is_near,
    is_near_ratio,
    percentiles,
    perplexity_of,
    standard_error,
)
from swcheck.gate.checks.confounds import confound, not_finite_nats
from swcheck.gate.checks.pair import Pair, passed_or_near
from swcheck.gate.checks.red_verdict import finding, improved_verdict, red_verdict
from swcheck.gate.checks.serving.eviction import eviction_beside
from swcheck.gate.checks.serving.kv_cache import WINDOWS, CachePass, cache_pass
from swcheck.gate.checks.serving.shapes import is_swept, sweep
from swcheck.gate.checks.shape_faults import lost_in_a_shape
from swcheck.gate.diagnosis.layer_costs import layer_costs
from swcheck.gate.diagnosis.twin import in_torch, in_torch_words
from swcheck.gate.relation.configurations import configuration_words
from swcheck.gate.relation.linear_maps import not_quantized
from swcheck.superweights.measurements.curves import position_curve
from swcheck.superweights.measurements.generation import first_other_tokens, greedy_text, is_greedy_text_known
from swcheck.superweights.measurements.inputs import (
    text_hash,
    tier_suffix,
    unknown_share,
    vocabulary_size,
    windows,
)
from swcheck.superweights.measurements.scores import (
    intact_scores,
    noise_floor,
    noise_of_two_runs,
    scores_against,
)
from swcheck.superweights.subject.measurement import Slot
from swcheck.superweights.subject.memory import Cost, InBaseline

MOST_NAMED: Final = 3
"""The number of matrices that are named if a quantizer has skipped some; further ones are counted."""

PERCENTILES: Final = ("50", "90", "95", "99", "99.9", "max")
"""The percentiles of the KL divergence that reports have: those that other tools print."""

BOTH_ENDS: Final = ("min", "0.1", "1", "5", "10", *PERCENTILES)
"""The percentiles of the change of a probability, which goes both ways."""

HARDLY: Final = 1.04
"""Up to this perplexity ratio changed predictions are hardly a loss."""

SOME_UNKNOWN: Final = 0.02
MOST_UNKNOWN: Final = 0.33
"""A share of unknown tokens that is worth a warning, and one above which the text measures nothing."""

LEAST_RATIO: Final = 0.9
"""A quantized candidate with a smaller perplexity ratio says something about the text, not about the candidate."""

FAR_FROM_GUESSING: Final = 10
"""A reference is warned of if its perplexity is above the size of the vocabulary over this."""

_CACHE_PASS: Final = Slot[CachePass | None]("cache", Cost.WINDOWS, in_baseline=InBaseline.NO)


def compare_perplexity(pair: Pair, limit: Limit, at_most: float | None) -> Verdict:
    """Judge the perplexity ratio on the same tokens, differences paired; ``at_most`` limits the perplexity itself."""
    found = confound(pair)
    if found is not None:
        return found
    theirs, ours = pair.nats()
    if not torch.isfinite(ours).all():
        return not_finite_nats(pair, ours)
    difference = ours - theirs
    ratio, error = factor_of(float(difference.mean())), standard_error(difference)
    value, base = perplexity_of(ours), perplexity_of(theirs)
    if at_most is not None:
        limit = Limit(None, at_most / base, f"perplexity at most {at_most:g}")
    facts = _facts(pair, value, base, error, ours.numel())
    facts["curves"] = [position_curve(difference, pair.candidate.name or "candidate")]
    fields: dict[str, Any] = {"measured": ratio, "limit": limit, "unit": "x", "facts": facts}
    cache = _through_cache(pair, ours, facts)
    summary = _summary(pair, ratio, facts) + ("" if cache is None else _cache_words(cache))
    if "in_torch" in facts:
        summary += in_torch_words(facts["in_torch"], base)
    evicted, words = eviction_beside(pair.candidate, pair.reference)
    facts |= evicted
    summary += words
    if is_swept(pair.candidate):
        swept = sweep(pair.candidate, pair.reference)
        facts["shapes"], summary = swept.facts, summary + swept.words
    otherwise = _lost_otherwise(pair, limit, cache, summary, fields)
    if otherwise is not None:
        return otherwise
    unfit = None if is_given(limit) or not limit.holds(ratio) else _unfit_text(pair, summary, fields)
    if unfit is not None:
        return unfit
    if limit.holds(ratio) and not (limit.high is None and _proven_loss(pair, ratio)):
        near = is_near_ratio(limit, ratio, max(STANDARD_ERRORS * error, facts["noise"]))
        return pair.verdict(passed_or_near(near), summary, **fields)
    return red_verdict(pair, summary, **fields)


def _facts(pair: Pair, value: float, base: float, error: float, tokens: int) -> dict[str, Any]:
    kind = pair.kind
    layers = (
        {"layer_costs": layer_costs(pair.candidate, pair.reference)}
        if pair.candidate.rank_layers and not pair.is_student
        else {}
    )
    beside = {"in_torch": in_torch(pair.candidate, pair.reference)} if pair.candidate.score_in_torch else {}
    return {
        **layers,
        **beside,
        "perplexity": value,
        "reference_perplexity": base,
        "standard_error": error,
        "tokens": tokens,
        "text_sha256": text_hash(pair.reference),
        "noise": max(noise_floor(pair.reference)[0], noise_of_two_runs(pair.candidate, pair.reference)),
        "unknown_tokens": unknown_share(pair.reference),
        "configuration": list(configuration_words(pair.candidate, pair.reference)),
        "not_quantized": list(not_quantized(pair.candidate, pair.reference)),
        "candidate_kind": kind.name,
        "candidate_kind_why": kind.why,
    }


def _unfit_text(pair: Pair, summary: str, fields: dict[str, Any]) -> Verdict | None:
    """Return the verdict on a candidate whose text measures nothing of it; None where it fits.

    A perplexity that improves is no pass: the text does not fit, unless something beside the rounding was changed.
    """
    unknown, ratio = fields["facts"]["unknown_tokens"], fields["measured"]
    improves = ratio < LEAST_RATIO and pair.kind.name == "quantized"
    if improves:  # the row says which number it is held to
        fields = {**fields, "limit": replace(fields["limit"], low=LEAST_RATIO)}
    if unknown > MOST_UNKNOWN:
        cause = f"the text does not fit the model: {unknown:.0%} of its tokens are unknown"
    elif improves:
        explained = improved_verdict(pair, summary, **fields)
        if explained is not None:
            return explained
        cause = f"perplexity improves to x{ratio:.2f}, which no quantization does: the text does not fit the model"
    else:
        return None
    advice = "measure on a text of the model's own language: --swcheck-text=FILE"
    return pair.verdict(Outcome.INCONCLUSIVE, summary, cause=cause, attempt=advice, cause_kind="text", **fields)


def _summary(pair: Pair, ratio: float, facts: dict[str, Any]) -> str:
    error, value, base = facts["standard_error"], facts["perplexity"], facts["reference_perplexity"]
    spread = f"x{ratio:.4f} +- {ratio * error:.4f}" if ratio < 1000 else format_ratio(ratio)
    return (
        f"perplexity {format_perplexity(value)} for {format_perplexity(base)}: {spread} on {facts['tokens']:,} tokens"
        f"{tier_suffix(pair.reference)}, noise {facts['noise']:.1g} nats{_warnings(pair, facts)}"
        f"{_not_quantized_words(facts['not_quantized'])}"
    )


def _warnings(pair: Pair, facts: dict[str, Any]) -> str:
    """Return words for a text that fits the reference badly, for the end of a summary."""
    share, guessing = facts["unknown_tokens"], vocabulary_size(pair.reference)
    words = f"; {share:.0%} of the tokens are unknown to the tokenizer" if share > SOME_UNKNOWN else ""
    if facts["reference_perplexity"] > guessing / FAR_FROM_GUESSING:
        words += f"; high for a vocabulary of {guessing:,}"
    if facts["configuration"]:
        words += f"; its configuration differs: {', '.join(facts['configuration'])}"
    return words


def _through_cache(pair: Pair, plain: torch.Tensor, facts: dict[str, Any]) -> CachePass | None:
    """Score the first windows through the candidate's quantized cache; None if its config names no such cache."""
    if pair.candidate.is_runtime:
        return None
    ids = windows(pair.reference)[:WINDOWS]
    found = _CACHE_PASS.recall(
        pair.candidate, (pair.reference,), lambda: cache_pass(pair.candidate.module, ids, plain[: len(ids)])
    )
    if found is not None:
        facts["kv_cache"] = {"scheme": found.scheme, "scored": found.nats is not None, "nats": found.nats}
    return found


def _lost_otherwise(
    pair: Pair, limit: Limit, cache: CachePass | None, summary: str, fields: dict[str, Any]
) -> Verdict | None:
    """Return the red verdict of a candidate that is within its limit, and not through its cache or in other shapes."""
    if not limit.holds(fields["measured"]):
        return None
    if cache is not None and cache.nats is not None:
        total = factor_of(math.log(fields["measured"]) + cache.nats)
        if not (math.isfinite(cache.nats) and limit.holds(total)):
            return _lost_by_cache(pair, total, summary, fields)
    return lost_in_a_shape(pair, limit, summary, fields)


def _lost_by_cache(pair: Pair, total: float, summary: str, fields: dict[str, Any]) -> Verdict:
    """Return the red verdict of a candidate that fails only through its cache, with the perplexity ratio ``total``."""
    both = f"perplexity {format_ratio(total)} through it, {format_ratio(fields['measured'])} without"
    advice = "more bits for the cache, or its first tokens unquantized"
    return pair.failed(
        f"the quantized KV cache loses it ({both})",
        summary,
        advice,
        **{**fields, "measured": total},
        cause_kind="kv_cache",
    )


def _proven_loss(pair: Pair, ratio: float) -> bool:
    """Return whether a loss without a limit is proven to come from super weights: then it is red for every kind."""
    if DEFAULTS["perplexity"].holds(ratio) or not pair.weights or pair.is_student:
        return False
    return any(name == "proof" for name, _ in finding(pair).detail)


def compare_predictions(pair: Pair, kl: Limit, top1: Limit) -> Verdict:
    """Judge the mean KL divergence in nats, and the agreement on the likeliest token, at sampled positions."""
    found = confound(pair)
    if found is not None:
        return found
    theirs, ours = pair.nats()
    if not torch.isfinite(ours).all():
        return not_finite_nats(pair, ours)
    drift, expected = scores_against(pair.candidate, pair.reference)[1], intact_scores(pair.reference)[1]
    top1 = scaled_to_confidence(top1, expected.confidence)
    spread = percentiles(drift.kl, PERCENTILES)
    least = "" if top1.low is None else f" (limit >= {top1.low:.1%})"
    summary = (
        f"KL {drift.mean:.4f} nats (median {spread['50']:.4f}, 95th percentile {spread['95']:.4f}, "
        f"99th {spread['99']:.4f}), "
        f"same top token {drift.top1:.1%}{least}, "
        f"{expected.covered:.1%} of the mass covered, {len(drift.kl):,} positions"
    )
    facts = {
        "kl": drift.mean,
        "kl_percentiles": spread,
        "kl_reverse": float(drift.reverse.mean()),
        "kl_reverse_percentiles": percentiles(drift.reverse, PERCENTILES),
        "right_token": _change_of_right_token(theirs, ours),
        "greedy_text": _greedy_text(pair),
        "top1": drift.top1,
        "covered": expected.covered,
        "confidence": expected.confidence,
    }
    fields: dict[str, Any] = {"measured": drift.mean, "limit": kl, "unit": "nats", "facts": facts}
    if kl.holds(drift.mean) and top1.holds(drift.top1):
        floor = max(STANDARD_ERRORS * drift.error, noise_floor(pair.reference)[0])
        near = is_near(kl, drift.mean, floor) or is_near(top1, drift.top1, STANDARD_ERRORS * drift.top1_error)
        return pair.verdict(passed_or_near(near), summary, **fields)
    if kl.holds(drift.mean):  # the row shows the number that is outside its limit
        fields |= {"measured": drift.top1, "limit": top1, "unit": "share"}
        fields["detail"] = (("perplexity", _why_red_without_loss(pair, drift.top1)),)
    elif not top1.holds(drift.top1):
        source = f"as for KL{top1.source.removeprefix(kl.source)}" if top1.source.startswith(kl.source) else top1.source
        words = f"same {drift.top1:.1%}, limit >= {top1.low or 0:.1%} ({source})"
        fields["detail"] = (("top token", words),)
    return red_verdict(pair, summary, **fields)


def _change_of_right_token(theirs: torch.Tensor, ours: torch.Tensor) -> dict[str, Any]:
    """Return how the probability of the right token changes, from nats ``(B, T - 1)``: -1 to 1, all tokens."""
    change = (-ours).exp() - (-theirs).exp()
    rms = float(change.square().mean().sqrt())
    return {"mean": float(change.mean()), "rms": rms, "percentiles": percentiles(change, BOTH_ENDS)}


def _greedy_text(pair: Pair) -> dict[str, Any] | None:
    """Return after how many generated tokens the candidate goes on otherwise, by prompt; None where not known."""
    if not is_greedy_text_known(pair.reference) or not (first := first_other_tokens(pair.candidate, pair.reference)):
        return None
    count = greedy_text(pair.reference).shape[2] // 2
    return {"tokens": count, "first_other": [after if after < count else None for after in first]}


def _why_red_without_loss(pair: Pair, top1: float) -> str:
    """Return words for what the perplexity says beside too many other likeliest tokens."""
    theirs, ours = pair.nats()
    ratio = factor_of(float((ours - theirs).mean()))
    more = ": hardly a loss on this text, and yet another model" if ratio <= HARDLY else ""
    return f"{format_ratio(ratio)} on the same tokens, where {1 - top1:.1%} of the likeliest tokens are others{more}"


def _not_quantized_words(names: Sequence[str]) -> str:
    """Return words for the matrices that the quantizer skipped without being told to, for the end of a summary."""
    if not names:
        return ""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"; not quantized, though no one excluded it: {', '.join(names[:MOST_NAMED])}{more}"


def _cache_words(cache: CachePass) -> str:
    """Return words for the cost of a quantized cache, or why it is not known, for the end of a summary."""
    if cache.nats is None:
        return f"; its {cache.scheme} KV cache was not scored: {cache.reason}"
    cost = factor_of(cache.nats) if math.isfinite(cache.nats) else cache.nats
    return f"; through its {cache.scheme} KV cache {format_ratio(cost)} on {cache.tokens:,} tokens"
