"""Completes a red verdict with its cause and the proof of it, and with a fix, its price and the proof that it helps."""

from __future__ import annotations

from typing import Any, Final

from swcheck.base.records import NOT_ENOUGH, Limit, Outcome, Verdict
from swcheck.gate.checks.correspondence import damaged_candidate
from swcheck.gate.checks.pair import Pair
from swcheck.gate.checks.shape_faults import shape_of_loss
from swcheck.gate.diagnosis.evidence.damaged_candidate import KEEP_PLACE, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Finding
from swcheck.gate.diagnosis.explain import cause_beside_super_weights, cause_of_improvement, explain
from swcheck.gate.diagnosis.explain_runtime import explain_in_runtime
from swcheck.gate.diagnosis.remedy import remedy
from swcheck.superweights.subject.measurement import Slot
from swcheck.superweights.subject.memory import Cost, InBaseline

JUDGED_FACT: Final = {
    "perplexity": "perplexity", "super weights": "written", "super activations": "written",
    "predictions": "kl", "dependence": "dependence",
}  # fmt: skip
"""For each check, the measured fact of a fixed candidate that has to be within the limit if the fix is to be enough."""

IN_WORDS: Final = {"kl": "KL {:.4g} nats", "dependence": "dependence {:.3f}"}
"""How a fact is said with the fix, for one that the words of all fixes leave out."""

ALL_MAPS: Final = frozenset({"rounding", "pruning", "training", "all_maps"})
"""The causes that lie in all linear maps: the worst ones are advised to be spared only if that returns enough."""

_FINDING: Final = Slot[Finding]("finding", Cost.DIAGNOSIS, in_baseline=InBaseline.NO)


def red_verdict(pair: Pair, summary: str, *, share: float | None = None, **fields: Any) -> Verdict:
    """Return a red verdict with its cause, the proof of it, and what to try. A sick reference makes it inconclusive.

    ``summary`` says what is outside its limit. ``share`` is the dependence that is left, given only if that is red.
    """
    if pair.is_student:  # nothing of its teacher can be given back
        cause, advice = (
            "the student falls short of its teacher",
            "distil longer, on more text, or into a larger student",
        )
        return pair.failed(cause, summary, advice, cause_kind="distillation", **fields)
    damaged = damaged_candidate(pair, share)
    found = _finding(pair, damaged)
    fields["detail"] = (*found.detail, *fields.get("detail", ()))
    if found.blame == "reference":
        return pair.verdict(
            Outcome.INCONCLUSIVE, summary, cause=found.cause, attempt=found.advice, cause_kind=found.kind, **fields
        )
    return with_remedy(pair, found, summary, damaged, **fields)


def cause_beside(damaged: DamagedCandidate) -> Finding | None:
    """Return the proven cause that only looks like a change of a super weight, or that there is no place for one."""
    other = None if damaged.candidate.is_runtime else cause_beside_super_weights(damaged)
    if other is not None or not damaged.absent:
        return other
    return Finding(damaged.absence, (), (), KEEP_PLACE, kind="super_weight")


def is_nearer(limit: Limit, value: float, than: float) -> bool:
    """Return whether ``value`` is within the limit, or on its way there from ``than``, which is outside of it."""
    below = limit.low is not None and than < limit.low
    return limit.holds(value) or (value > than if below else value < than)


def finding(pair: Pair, share: float | None = None) -> Finding:
    """Return the cause. It is searched once for all checks, but separately for a lost dependence (``share``)."""
    return _finding(pair, damaged_candidate(pair, share))


def _finding(pair: Pair, damaged: DamagedCandidate) -> Finding:
    inputs = (pair.reference, damaged.weights, damaged.absent, damaged.share is not None)
    return _FINDING.recall(pair.candidate, inputs, lambda: _search(pair, damaged))


def _search(pair: Pair, damaged: DamagedCandidate) -> Finding:
    """Return the shape in which nothing is lost, where there is one; else the cause among weights and configuration."""
    by_shape = shape_of_loss(pair) if damaged.share is None else None
    return by_shape or (explain_in_runtime if pair.candidate.is_runtime else explain)(damaged)


def improved_verdict(pair: Pair, summary: str, **fields: Any) -> Verdict | None:
    """Return the red verdict on a perplexity that improves, with its cause; None where no change is proven."""
    if pair.candidate.is_runtime:
        return None
    damaged = damaged_candidate(pair)
    found = cause_of_improvement(damaged)
    if found is None:
        return None
    fields["detail"] = (*found.detail, ("perplexity", "it improves, which no quantization does"))
    return with_remedy(pair, found, summary, damaged, **fields)


def with_remedy(pair: Pair, found: Finding, summary: str, damaged: DamagedCandidate, **fields: Any) -> Verdict:
    """Return a red verdict. If the finding names matrices, it has a snippet that keeps them, its price and proof."""
    fields["cause_kind"] = found.kind
    if not found.matrices:
        return pair.failed(found.cause, summary, found.advice, **fields)
    weights = damaged.weights, damaged.places
    fix = remedy(pair.candidate, pair.reference, found.matrices, weights, kind=pair.kind.name)
    name = JUDGED_FACT.get(pair.check, "")
    fixed = None if name == "kl" and fields["unit"] != "nats" else fix.facts.get(name)  # else the top token is judged
    said = f", {IN_WORDS[name].format(fixed)}" if name in IN_WORDS and fixed is not None else ""
    not_enough = fixed is not None and fix.facts["proven"] and not fields["limit"].holds(fixed)
    fields["detail"] = (*fields.get("detail", ()), ("fix", f"{fix.proof}{said}{NOT_ENOUGH * not_enough}"))
    fields["facts"] = {**fields.get("facts", {}), "fix": dict(fix.facts)}
    words = fix.words_for_all_maps if found.kind in ALL_MAPS else fix.words
    if name in IN_WORDS and fixed is not None and not is_nearer(fields["limit"], fixed, fields["measured"]):
        words = fix.words_without_help
    return pair.failed(found.cause, summary, words, **fields)
