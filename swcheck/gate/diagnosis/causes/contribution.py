"""The super weights write too little, too much, or with the other sign; proven by restoring what they write."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from swcheck.base.limits import DEFAULTS
from swcheck.gate.diagnosis.causes import activation
from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, ruled_out
from swcheck.gate.diagnosis.evidence.weight_change import contribution_change
from swcheck.lens.intervene import set_to
from swcheck.superweights.measurements.contributions import contributions_at, sink_tokens, written
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.model_sample import model_sample
from swcheck.superweights.measurements.weights import weight_values


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Restore what all super weights write."""
    if not damaged.weights:
        why = damaged.relation.words if damaged.relation.kind == "rotated" else "the reference has none"
        return ruled_out(f"the super weights: {why}")
    share, words = _restored(damaged)
    if share >= PROVEN:
        names = ", ".join(f"layer {w.layer} [{w.row}, {w.column}]" for w in damaged.weights)
        cause = f"what the super weights write {contribution_change(damaged.ratios)} ({names})"
        return Finding(cause, (("proof", f"restored through a hook: {words}"),), damaged.matrix_names())
    ratios = ", ".join(f"x{ratio:z.3f}" for ratio in damaged.ratios)
    return ruled_out(f"what the super weights write ({ratios}; restored through a hook: {words})")


def restoration_rows(damaged: DamagedCandidate) -> Detail:
    """Return rows that say how much of the loss returns when what the super weights write is restored.

    Where they write as much as in the reference, what a later layer has lost of it is restored instead. The row is a
    proof from half of the loss on.
    """
    layers = model_sample(damaged.candidate).layers
    if not damaged.weights or any(weight.layer >= layers for weight in damaged.places):
        return ()
    if all(DEFAULTS["contribution"].holds(ratio) for ratio in damaged.ratios):
        found = activation.find(damaged)
        rows = tuple(row for row in found.detail if row[0] == "proof") if isinstance(found, Finding) else found
    else:
        share, words = _restored(damaged)
        rows = (("proof" if share >= PROVEN else "given back", f"restored through a hook: {words}"),)
    return (*rows, *damaged.tried_on)


def _restored(damaged: DamagedCandidate) -> tuple[float, str]:
    """The share of the loss that returns with what the super weights write restored, and words for it."""

    def attempt() -> tuple[float, str]:
        prompt = prompt_ids(damaged.reference)
        due = written(damaged.reference, damaged.weights)
        sinks = sink_tokens(damaged.reference, damaged.weights, prompt)
        now = contributions_at(damaged.candidate, damaged.places, prompt, sinks)
        values = weight_values(damaged.candidate, damaged.places), weight_values(damaged.reference, damaged.weights)
        targets = [
            replace(weight, value=_restoring(*four))
            for weight, *four in zip(damaged.places, *values, due, now, strict=True)
        ]
        return damaged.recovered(partial(set_to, super_weights=targets))

    return damaged.with_contributions_restored(attempt)


def _restoring(value: float, expected: float, due: float, now: float) -> float:
    """The weight that writes ``due`` at the input where it now writes ``now``; the reference's own where that is 0."""
    if abs(now) < 1e-3 * abs(due) or value == 0:
        return expected
    return value * due / now
