"""Confounds: problems that look like damaged super weights but are none. They are ruled out before a comparison.

In this order: another width, a candidate or a reference with NaN or infinity, another tokenizer or BOS policy, another
base model.
"""

from __future__ import annotations

import statistics
from typing import Final

import torch

from swcheck.base.records import Outcome, Verdict
from swcheck.gate.checks.pair import Pair
from swcheck.gate.checks.single_model import no_super_weight
from swcheck.gate.checks.tokenizers import tokenizer_confound
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown
from swcheck.lens.architecture.anatomy import MapKey
from swcheck.loading.runtime import Capability
from swcheck.superweights.measurements.inputs import prompt_ids, windows
from swcheck.superweights.measurements.located import located_on
from swcheck.superweights.measurements.residual_stream import answers_finite, first_non_finite
from swcheck.superweights.measurements.weights import non_finite_parameters
from swcheck.superweights.one_reading.together import measure_prompt_together

SAME_LAYERS: Final = 0.5
"""The linear maps of two models answer alike if their median error is below this; those of unrelated ones differ by 1.4."""


def confound(pair: Pair) -> Verdict | None:
    """Return the verdict on the first confound that is found; None if there is none."""
    relation, ids = pair.relation, prompt_ids(pair.reference)
    attempt = "give the reference this candidate was made from"
    if relation.kind == "other shape" and not pair.is_student:
        return pair.failed("wrong base model", relation.words, attempt, cause_kind="base_model")
    broken = _not_finite_anywhere(pair, ids)
    if broken is not None:
        return broken
    other_tokens = tokenizer_confound(pair)
    if other_tokens is not None:
        return other_tokens
    if relation.kind == "other model" and not pair.is_student and not _has_the_same_layers(pair):
        return pair.failed("wrong base model", relation.words, attempt, cause_kind="base_model")
    return None


def _has_the_same_layers(pair: Pair) -> bool:
    """Return whether most linear maps answer as the reference's: then its embedding alone is another one."""
    if why_responses_unknown(pair.reference):
        return False
    errors = [error for _, error in map_errors(pair.candidate, pair.reference)]
    return bool(errors) and statistics.median(errors) < SAME_LAYERS


def _not_finite_anywhere(pair: Pair, ids: torch.Tensor) -> Verdict | None:
    """Return the verdict on a candidate or a reference with NaN or infinity, in its answer to ``ids`` or its weights."""
    if pair.candidate is not pair.reference:
        measure_prompt_together(pair.candidate, ids)
    if not answers_finite(pair.candidate, ids):
        return not_finite(pair, ids)
    if not answers_finite(pair.reference, ids):
        summary = "the reference itself answers NaN or infinity"
        return pair.verdict(
            Outcome.INCONCLUSIVE,
            summary,
            cause="the reference is sick",
            attempt="check its dtype",
            cause_kind="reference",
        )
    return _stored_non_finite(pair)


def obstacle(pair: Pair, needed: Capability = Capability.VALUES) -> Verdict | None:
    """Return what prevents a comparison of super weights: a confound, or a reference without super weights.

    A candidate that runs in another program has to show what is ``needed``.
    """
    found = confound(pair)
    if found is None and pair.is_student:
        return _of_a_student(pair)
    if found is None and pair.weights:
        return _not_shown(pair, needed) if pair.candidate.is_runtime else _unreachable(pair)
    if found is not None:
        return found
    return no_super_weight(
        pair.check, pair.reference, None if pair.candidate is pair.reference else pair.candidate.name
    )


def _of_a_student(pair: Pair) -> Verdict:
    """Return the verdict on a distilled candidate, which names the super weights that it has of its own."""
    own = ""
    if not pair.candidate.is_runtime:
        found = located_on(pair.candidate, prompt_ids(pair.reference))
        places = ", ".join(
            f"{w.place} writes {v:+.4g}" for w, v in zip(found.super_weights, found.written, strict=True)
        )
        own = f"; of its own it has {places or f'none ({found.reason})'}"
    return pair.verdict(Outcome.NOT_APPLICABLE, f"a student has none of its teacher's weights{own}")


def _not_shown(pair: Pair, needed: Capability) -> Verdict | None:
    """Return the verdict on a candidate whose runtime does not have a capability, or no down projections of experts."""
    runtime = pair.candidate.runtime
    if not runtime.can(needed):
        words = f"this runtime does not show {needed.value} ({runtime.title})"
        return pair.verdict(Outcome.NOT_APPLICABLE, f"{words}; {runtime.advice}" if runtime.advice else words)
    routed = next((weight for weight in pair.weights if weight.expert is not None), None)
    if routed is not None:
        return pair.verdict(Outcome.NOT_APPLICABLE, f"{routed.place}: experts are not read in {runtime.title}")
    return None


def _unreachable(pair: Pair) -> Verdict | None:
    """Return the verdict on a candidate in which an expert with a super weight is packed, where no hook reaches it."""
    if pair.candidate is pair.reference:
        return None
    body = pair.candidate.anatomy
    if body.refusal:
        return pair.verdict(Outcome.NOT_APPLICABLE, f"the candidate: {body.refusal}")
    for weight in pair.weights:
        if isinstance(weight.expert, int) and weight.layer < len(body.layers):
            maps = {down.key: down for down in body.down_maps(weight.layer)}
            down = maps.get(MapKey(weight.layer, weight.expert))
            others = any(isinstance(key.expert, int) for key in maps)  # then this one is no part of the candidate
            if not (others if down is None else down.is_reachable):
                words = "the candidate keeps its experts packed, and computes them in a kernel that no hook reaches"
                return pair.verdict(Outcome.NOT_APPLICABLE, f"{weight.place}: {words}")
    return None


def not_finite(pair: Pair, ids: torch.Tensor) -> Verdict:
    """Return the verdict on a candidate that answers ``ids`` ``(B, T)`` with NaN or infinity.

    It names the module where that begins, and the dtype if its range was exceeded.
    """
    found = first_non_finite(pair.candidate, ids)
    if found is None:
        advice = "load it in float32 or bfloat16; check its scales"
        return pair.failed("not finite", "the candidate answers NaN or infinity", advice, cause_kind="not_finite")
    if not found.overflow:
        advice = "check how its weights were written; they are no numbers any more"
        return pair.failed("not finite", f"NaN in the weights of {found.module}", advice, cause_kind="not_finite")
    made = "holds larger numbers in its weights" if found.stored else "makes a larger number out of finite ones"
    summary = f"{found.module} {made}: {found.dtype} ends at {found.largest:.6g}"
    advice = "load it in bfloat16 or float32: --swcheck-dtype"
    if "float8" in found.dtype or found.stored:
        advice = "keep this module in bfloat16 or float32, or scale it"
    return pair.failed(
        f"not finite: out of the range of {found.dtype} in {found.module}", summary, advice, cause_kind="not_finite"
    )


def _stored_non_finite(pair: Pair) -> Verdict | None:
    """Return the verdict on a candidate with NaN or infinity among weights that no text has used yet."""
    found = {} if pair.candidate is pair.reference else non_finite_parameters(pair.candidate)
    known = non_finite_parameters(pair.reference) if found and pair.reference.held.in_memory else {}
    for name, rows in found.items():
        if name not in known:
            summary = f"NaN or infinity in the weights of {name.rpartition('.')[0]}, row {', '.join(map(str, rows))}"
            advice = "check how its weights were written; they are no numbers any more"
            return pair.failed("not finite", summary, advice, cause_kind="not_finite")
    return None


def not_finite_nats(pair: Pair, nats: torch.Tensor) -> Verdict:
    """Return the verdict on the first of the reference's windows whose nats, ``(B, T - 1)``, are not all finite."""
    bad = int((~torch.isfinite(nats)).any(1).nonzero()[0])
    return not_finite(pair, windows(pair.reference)[bad : bad + 1])
