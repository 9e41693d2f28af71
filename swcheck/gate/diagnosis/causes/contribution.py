"""The cause: super weights write too little, too much, or with the other sign. Proven by restoring what they write."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from swcheck.base.limits import DEFAULTS
from swcheck.gate.diagnosis.causes import activation
from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known, ruled_out
from swcheck.gate.diagnosis.evidence.weight_change import contribution_change
from swcheck.lens.intervene import set_to
from swcheck.superweights.measurements.contributions import (
    contributions_at,
    contributions_on_default_prompt,
    sink_tokens,
)
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.weights import weight_values


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Restore what all super weights write, and see whether the loss returns."""
    if not damaged.weights:
        if damaged.absent:
            return not_known(f"whether the super weights are the cause: {damaged.absence}")
        why = damaged.relation.words if damaged.relation.kind == "rotated" else "the reference has none"
        return ruled_out(f"the super weights: {why}")
    share, words = _share_restored(damaged)
    if share >= PROVEN:
        names = ", ".join(w.place for w in damaged.weights)
        cause = f"what the super weights write {contribution_change(damaged.ratios)} ({names})"
        return Finding(
            cause, (("proof", f"restored through a hook: {words}"),), damaged.matrix_names(), kind="super_weight"
        )
    ratios = ", ".join(f"x{ratio:z.3f}" for ratio in damaged.ratios)
    return ruled_out(f"what the super weights write ({ratios}; restored through a hook: {words})")


def restoration_rows(damaged: DamagedCandidate) -> Detail:
    """Return rows that say how much of the loss returns when what the super weights write is restored.

    If they write as much as in the reference, the super activation is restored after the layer that loses it instead. A
    row is called a proof if at least half of the loss returns.
    """
    if not damaged.weights:
        return ()
    if all(DEFAULTS["contribution"].holds(ratio) for ratio in damaged.ratios):
        found = () if damaged.candidate.is_runtime else activation.find(damaged)
        rows = tuple(row for row in found.detail if row[0] == "proof") if isinstance(found, Finding) else found
    else:
        share, words = _share_restored(damaged)
        rows = (("proof" if share >= PROVEN else "given back", f"restored through a hook: {words}"),)
    return (*rows, *damaged.tried_on)


def _share_restored(damaged: DamagedCandidate) -> tuple[float, str]:
    """Return the share of the loss that returns if what the super weights write is restored, and words for it."""

    def attempt() -> tuple[float, str]:
        prompt = prompt_ids(damaged.reference)
        expected = contributions_on_default_prompt(damaged.reference, damaged.weights)
        sinks = sink_tokens(damaged.reference, damaged.weights, prompt)
        now = contributions_at(damaged.candidate, damaged.places, prompt, sinks)
        values = weight_values(damaged.candidate, damaged.places), weight_values(damaged.reference, damaged.weights)
        targets = [
            replace(weight, value=_restoring_value(*numbers))
            for weight, *numbers in zip(damaged.places, *values, expected, now, strict=True)
        ]
        return damaged.recovered(partial(set_to, super_weights=targets))

    return damaged.with_contributions_restored(attempt)


def _restoring_value(weight: float, reference_weight: float, expected: float, now: float) -> float:
    """Return the weight that writes ``expected`` if ``weight`` writes ``now``; the reference's if that is near 0."""
    if abs(now) < 1e-3 * abs(expected) or weight == 0:
        return reference_weight
    return weight * expected / now
