"""The cause: an engine rounds the inputs of linear maps, in a range that a super activation makes wide.

Proven in the reference: with its inputs rounded so, and nothing else changed, it loses as much as the candidate.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

from swcheck.base.formatting import format_ratio
from swcheck.gate.diagnosis.evidence.damaged_candidate import LITTLE_LOSS, PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known, ruled_out
from swcheck.lens.kl_divergence import compare_predictions
from swcheck.lens.likelihood import token_nats
from swcheck.lens.linear_maps import inputs_of, linear_maps
from swcheck.lens.replace import inputs_rounded
from swcheck.superweights.measurements.inputs import prompt_ids, windows
from swcheck.superweights.measurements.scores import intact_scores, scores_against
from swcheck.superweights.measurements.weights import is_quickly_measurable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swcheck.lens.linear_maps import LinearMap

ADVICE: Final = "a range for each token, or these inputs in floats"


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Round the inputs of the reference's linear maps; then those of the map with the widest range alone."""
    scheme = damaged.candidate.scheme
    if scheme is None or not scheme.rounds_inputs:
        return ()
    bits = f"{scheme.activation_bits:g}"
    if not is_quickly_measurable(damaged.reference):
        return not_known(
            f"whether the inputs of linear maps, rounded to {bits} bits, are the cause: that needs the reference"
        )
    maps = linear_maps(damaged.reference.module)
    share, words = _lost(damaged, maps)
    if not share >= PROVEN:
        return ruled_out(f"inputs of linear maps in {bits} bits (the reference with its inputs rounded so: {words})")
    rows = (("proof", f"the reference with its inputs rounded so, and nothing else changed: {words}"),)
    widest = _widest(damaged, maps)
    alone, words = _lost(damaged, [widest])
    name = f"{damaged.reference.anatomy.path}.{widest.layer}.{widest.path}"
    if alone < PROVEN:
        cause = f"the inputs of all linear maps are rounded to {bits} bits, in one range for all tokens"
        return Finding(cause, rows, (), ADVICE, kind="rounded_inputs")
    cause = f"the input of {name} is rounded to {bits} bits, in a range that one token makes wide"
    return Finding(cause, (*rows, ("this map alone", words)), (name,), ADVICE, kind="rounded_inputs")


def _lost(damaged: DamagedCandidate, maps: Sequence[LinearMap]) -> tuple[float, str]:
    """Return the share of the candidate's loss that the reference has with the inputs of these maps rounded, and words.

    As in a proof, predictions are compared where little was lost.
    """
    reference, scheme = damaged.reference, damaged.candidate.scheme
    rounded = partial(inputs_rounded, [one.module for one in maps], 8 if scheme is None else scheme.activation_bits)
    lost = damaged.candidate_nats - damaged.reference_nats
    if lost >= LITTLE_LOSS:
        with rounded():
            now = float(token_nats(reference.scorer, damaged.ids).mean()) - damaged.reference_nats
        words = f"perplexity {format_ratio(math.exp(now))}, where the candidate has {format_ratio(math.exp(lost))}"
        return now / lost, words
    drift, expected = scores_against(damaged.candidate, reference)[1].mean, intact_scores(reference)[1]
    with rounded():
        now = compare_predictions(reference.scorer, windows(reference), expected)[1].mean
    return now / drift if drift else 0.0, f"KL {now:.4f} nats, where the candidate has {drift:.4f}"


def _widest(damaged: DamagedCandidate, maps: Sequence[LinearMap]) -> LinearMap:
    """Return the map whose input has the widest range beside what most of its values need, on the default prompt."""
    inputs = inputs_of(damaged.reference.module, maps, prompt_ids(damaged.reference))
    return max(
        inputs, key=lambda one: float(inputs[one].abs().max() / inputs[one].abs().float().median().clamp_min(1e-9))
    )
