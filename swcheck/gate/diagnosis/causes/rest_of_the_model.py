"""The last cause: the loss does not come from the super weights. Names the layer and linear maps with most damage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known
from swcheck.gate.diagnosis.evidence.reference_matrices import reference_matrix
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown
from swcheck.lens.replace import maps_replaced
from swcheck.superweights.measurements.model_sample import model_sample
from swcheck.superweights.measurements.residual_stream import residual_errors

if TYPE_CHECKING:
    from swcheck.superweights.subject.subject import Subject

MOST_MAPS: Final = 5
"""The number of linear maps that are named."""


def find(damaged: DamagedCandidate) -> Finding:
    """Find the layer where the error rises most and the worst linear maps; replace these with the reference's."""
    cause, candidate, reference = "not the super weights", damaged.candidate, damaged.reference
    depths = model_sample(candidate).layers, model_sample(reference).layers
    if depths[0] != depths[1]:
        words = f"{depths[0]} layers, where the reference has {depths[1]}: compared layer by layer they mean nothing"
        advice = "heal a pruned depth by training, or raise the limit"
        return Finding(f"{cause}, but another depth", (("depth", words),), (), advice)
    if not depths[0]:
        return Finding(cause, not_known(f"where: {candidate.anatomy.refusal}"), (), "compare it layer by layer")
    if damaged.relation.kind == "rotated":
        words = f"which layer and matrices: {damaged.relation.words}"
        return Finding(cause, not_known(words), (), "gate it before it is rotated")
    layer, rise = first_bad_layer(candidate, reference, damaged.relation.channels)
    cause += f", but the rest of the model (most in layer {layer})"
    detail: Detail = (("layers", f"the error away from the sink rises most in layer {layer} (to {rise:.1%})"),)
    if damaged.relation.kind == "permuted":
        words = "which matrices: channels are permuted"
        return Finding(cause, (*detail, *not_known(words)), (), "gate it before they are permuted")
    unknown = why_responses_unknown(reference)
    if unknown:
        advice = "run the gate once with the reference instead of its baseline"
        return Finding(cause, (*detail, *not_known(f"which matrices: {unknown}")), (), advice)
    worst = [(name, error) for name, error in map_errors(candidate, reference) if error > 0][:MOST_MAPS]
    names = tuple(f"{candidate.anatomy.path}.{name}" for name, _ in worst)
    detail += tuple((f"layers.{name}", f"answers {error:.1%} off") for name, error in worst)
    detail += _given_back(damaged, names) if names else ()
    return Finding(cause, detail, names, "" if names else "compare it layer by layer")


def _given_back(damaged: DamagedCandidate, names: Sequence[str]) -> Detail:
    """Return a row with the loss that returns if these maps are replaced by the reference's that are known."""
    found = {name: reference_matrix(damaged.candidate, damaged.reference, name) for name in names}
    maps = {name: weight for name, weight in found.items() if not isinstance(weight, str)}
    if not maps:
        return ()
    words = damaged.recovered(partial(maps_replaced, maps=maps, rows={}))[1]
    what = "this matrix" if len(maps) == 1 else f"these {len(maps)} matrices"
    return (("given back", f"{what} through a hook: {words}"),)


def first_bad_layer(candidate: Subject, reference: Subject, channels: Sequence[int] = ()) -> tuple[int, float]:
    """Return the layer after which the error of the residual stream has risen most, and that error; sinks are left out.

    The error is relative to the reference's norm. ``channels`` gives for each channel of the reference its place in the
    candidate.
    """
    errors = residual_errors(candidate, reference, channels)
    rises = [now - before for before, now in zip([0.0, *errors], errors, strict=False)]
    layer = max(range(len(rises)), key=lambda number: rises[number])
    return layer, errors[layer]
