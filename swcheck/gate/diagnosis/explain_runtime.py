"""Finds why a candidate that runs in another program is red: what it stores, how it was converted, or its kernels.

The program has no modules to look into. But an engine may load the same stored weights in torch, as ``Runtime.twin``
says. If these lose as much, the file is to blame, and the cause is found in torch; if they do not, the kernels are.
What the super weights write is restored in the program itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from swcheck.base.errors import CheckpointError, SwcheckError
from swcheck.base.formatting import format_ratio
from swcheck.base.limits import DEFAULTS
from swcheck.base.statistics import factor_of, ratio_of
from swcheck.gate.diagnosis.causes import contribution, rounded_inputs, sick_reference
from swcheck.gate.diagnosis.causes.rest_of_the_model import other_shape
from swcheck.gate.diagnosis.evidence.damaged_candidate import LITTLE_LOSS, PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known, ruled_out
from swcheck.gate.diagnosis.explain import explain
from swcheck.gate.diagnosis.twin import load_twin
from swcheck.gate.relation.basis import relation
from swcheck.loading.runtime import Capability
from swcheck.superweights.measurements.residual_stream import residual_errors
from swcheck.superweights.measurements.scores import scores_against
from swcheck.superweights.measurements.weights import weight_values

if TYPE_CHECKING:
    from swcheck.superweights.subject.subject import Subject

DEPARTS: Final = 0.01
"""The residual stream of unquantized weights departs where its error away from the sink is above this."""

AS_FLOATS: Final = 16
"""Weights of at least this many bits are not quantized."""


def explain_in_runtime(damaged: DamagedCandidate) -> Finding:
    """Return why the candidate is red, with the rows of what was ruled out before."""
    answer = sick_reference.find(damaged)
    if isinstance(answer, Finding):
        return answer
    rows, steps = answer, (_super_weights, _stored_weights)
    for step in (*(steps if _weights_changed(damaged) else reversed(steps)), rounded_inputs.find):
        answer = step(damaged)
        if isinstance(answer, Finding):
            return replace(answer, detail=(*answer.detail, *damaged.tried_on, *rows))
        rows = (*rows, *answer)
    found = other_shape(damaged) or _first_departure(damaged)
    return replace(found, detail=(*found.detail, *damaged.tried_on, *rows))


def _shows(damaged: DamagedCandidate, *capabilities: Capability) -> bool:
    return damaged.candidate.runtime.can(*capabilities)


def _weights_changed(damaged: DamagedCandidate) -> bool:
    """Return whether a super weight is stored with another value than the reference's."""
    if not damaged.weights or not _shows(damaged, Capability.VALUES):
        return False
    before, after = weight_values(damaged.reference, damaged.weights), weight_values(damaged.candidate, damaged.places)
    return not all(DEFAULTS["contribution"].holds(ratio_of(*pair)) for pair in zip(after, before, strict=True))


def _super_weights(damaged: DamagedCandidate) -> Finding | Detail:
    """Restore what the super weights write, in the program itself."""
    if damaged.weights and not _shows(damaged, Capability.VALUES, Capability.OVERRIDE):
        return not_known(f"whether the super weights are the cause: {_title(damaged)} does not show what they write")
    return contribution.find(damaged)


def _stored_weights(damaged: DamagedCandidate) -> Finding | Detail:
    """Load the stored weights in torch, and see whether these lose as much."""
    if not damaged.candidate.runtime.twin:
        return not_known("whether the stored weights or the kernels lose it: no engine loads these weights in torch")
    lost = damaged.candidate_nats - damaged.reference_nats  # first: the candidate is freed to make room
    drift = scores_against(damaged.candidate, damaged.reference)[1].mean
    try:
        twin = load_twin(damaged.candidate, damaged.reference)
    except CheckpointError as error:
        advice = f"convert it again; {error.attempt}"
        return Finding(f"conversion: {error.found}", (("stored", str(error.asked)),), advice=advice, kind="conversion")
    except SwcheckError as error:
        return not_known(f"whether the stored weights or the kernels lose it: {error.found}")
    try:
        return _blame(damaged, twin, lost, drift)
    finally:
        twin.discard()


def _blame(damaged: DamagedCandidate, twin: Subject, lost: float, drift: float) -> Finding:
    """Return the cause in torch if the twin loses as much as the candidate, else the kernels."""
    in_torch = replace(damaged, candidate=twin, relation=relation(twin, damaged.reference))
    lost_there = in_torch.candidate_nats - damaged.reference_nats
    if lost < LITTLE_LOSS:  # where hardly a loss shows, the predictions do
        lost, lost_there = drift, scores_against(twin, damaged.reference)[1].mean
        words = f"KL {lost_there:.4f} nats in torch, {lost:.4f} in {_title(damaged)}"
    else:
        words = f"perplexity {_ratio(lost_there)} in torch, {_ratio(lost)} in {_title(damaged)}"
    if not lost_there >= PROVEN * lost:
        cause = f"the kernels: {_title(damaged)} loses what the same stored weights keep in torch"
        advice = "another version or build of it, or other settings of cache and attention"
        return Finding(cause, (("proof", words), *_departure_rows(damaged)), (), advice, kind="kernels")
    found = explain(in_torch)
    row = ruled_out(f"the kernels: the stored weights lose as much ({words})")
    if not _is_float(damaged):
        return replace(found, detail=(*found.detail, *row))
    detail = (*_departure_rows(damaged), *found.detail, *row)
    cause = f"conversion, not quantization: {found.cause}"
    return Finding(cause, detail, advice=found.advice or "convert it again", kind="conversion")


def _first_departure(damaged: DamagedCandidate) -> Finding:
    """Return the last cause: where the residual stream departs, in a candidate that was not quantized a conversion."""
    rows = _departure_rows(damaged)
    if _is_float(damaged):
        cause = "conversion or kernels, not quantization: its weights are floats"
        return Finding(cause, rows, (), "compare the export with the reference, layer by layer", kind="conversion")
    if damaged.weights and not _shows(damaged, Capability.VALUES, Capability.OVERRIDE):
        cause = "the cause is not known, for this runtime does not show what the super weights write"
        return Finding(cause, rows, (), "gate the same weights in torch: their directory or file", kind="unknown")
    advice = "more bits or smaller groups, or gate the float export first"
    return Finding("not the super weights", rows, (), advice, kind="unknown")


def _departure_rows(damaged: DamagedCandidate) -> Detail:
    """Return a row with the first layer after which the residual stream departs; of a quantized one, departs most."""
    if not _shows(damaged, Capability.VALUES) or damaged.relation.kind == "other shape":
        return not_known(f"which layer: {_title(damaged)} shows none")
    if other_shape(damaged) is not None:
        return not_known("which layer: it has another number of them, or of inner neurons, than the reference")
    errors = residual_errors(damaged.candidate, damaged.reference)
    rises = [now - before for before, now in zip([0.0, *errors], errors, strict=False)]
    first = next((layer for layer, error in enumerate(errors) if not error <= DEPARTS), None)
    if first is None:
        return (("layers", f"none departs: at most {max(errors):.2%} away from the sink"),)
    layer = first if _is_float(damaged) else rises.index(max(rises))
    words = "departs first in" if _is_float(damaged) else "departs most in"
    return (("layers", f"the residual stream {words} layer {layer} (to {errors[layer]:.1%} away from the sink)"),)


def _is_float(damaged: DamagedCandidate) -> bool:
    scheme = damaged.candidate.scheme
    return scheme is not None and scheme.weight_bits >= AS_FLOATS


def _title(damaged: DamagedCandidate) -> str:
    return damaged.candidate.runtime.title


def _ratio(nats: float) -> str:
    return format_ratio(factor_of(nats))
