"""The last cause: the loss does not come from the super weights. Names the linear maps that lost it, or coarse rounding.

A few maps with far larger errors than the others are named if the loss returns with the reference's in their place.
Otherwise, if it returns with all maps of the reference, they were all rounded, or changed, too much.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known
from swcheck.gate.diagnosis.evidence.reference_matrices import (
    expert_stacks,
    other_parameters,
    reference_matrix,
    reference_parameter,
)
from swcheck.gate.diagnosis.evidence.suspect import Suspect, given_back
from swcheck.gate.diagnosis.suspects.order import missing_layers
from swcheck.gate.relation.candidate_kind import Kind, is_on_grid, kind_from_weights, weight_sample
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown
from swcheck.lens.architecture.storage import plain_weight
from swcheck.lens.replace import maps_replaced
from swcheck.superweights.measurements.model_sample import are_sizes_told, model_sample
from swcheck.superweights.measurements.residual_stream import residual_errors

if TYPE_CHECKING:
    from swcheck.superweights.subject.subject import Subject

NOT_THE_SUPER_WEIGHTS: Final = "not the super weights"

CHANGES: Final = {"pruned": "pruning", "finetuned": "training"}
"""What changed all linear maps, by the kind of the candidate; in JSON as well."""

MOST_MAPS: Final = 5
"""The number of linear maps that are named."""

OUTLIER: Final = 3.0
LEAST_OUTLIER: Final = 0.05
"""A map stands out if its error is above this multiple of the median of all maps, and above this."""

FEW_MAPS: Final = 0.25
"""At most this share of all maps can stand out."""

ROWS: Final = 8
"""This many rows tell whether a matrix was rounded."""

RANGE_OF_A_GROUP: Final = 0.75
"""The largest of 128 normal values is at 2.6 standard deviations; over sqrt(12) that is this factor."""


def find(damaged: DamagedCandidate) -> Finding:
    """Find the linear maps that stand out, or how coarse all of them are rounded, and give back the reference's."""
    candidate, reference = damaged.candidate, damaged.reference
    smaller = other_shape(damaged)
    if smaller is not None:
        return smaller
    if candidate.anatomy.refusal or damaged.relation.kind == "rotated":
        cannot = candidate.anatomy.refusal or f"which layer and matrices: {damaged.relation.words}"
        advice = "" if candidate.anatomy.refusal else "gate it before it is rotated"
        return Finding(NOT_THE_SUPER_WEIGHTS, not_known(cannot), (), advice, kind="unknown")
    layer, rise = first_bad_layer(candidate, reference, damaged.relation.channels)
    detail: Detail = (("layers", f"the error away from the sink rises most in layer {layer} (to {rise:.1%})"),)
    cannot, advice = _why_maps_unknown(damaged)
    if cannot:
        cause = _beside(damaged, f"the rest of the model (most in layer {layer})")
        return Finding(cause, (*detail, *not_known(cannot)), (), advice, kind="unknown")
    errors = dict(map_errors(candidate, reference))
    wrong = [name for name, error in errors.items() if error > 0]
    if not wrong:
        words = "whether its linear maps are the cause: they answer as the reference's"
        return Finding(f"{NOT_THE_SUPER_WEIGHTS}, nor the linear maps", (*detail, *not_known(words)), kind="unknown")
    worst = wrong[:MOST_MAPS]
    path = candidate.anatomy.path
    detail += tuple((f"layers.{name}", f"answers {errors[name]:.1%} off") for name in worst)
    outstanding = _outstanding(errors)
    share, rows = _given_back(damaged, [f"{path}.{name}" for name in outstanding or worst])
    detail += rows
    if outstanding and share >= PROVEN:
        return _named_maps(damaged, outstanding, detail)
    everything, rows = _given_back(damaged, [f"{path}.{name}" for name in wrong])
    if everything < PROVEN:
        everything, rows = _all_given_back(damaged, [f"{path}.{name}" for name in wrong])
    kind, cause = "unknown", f"the rest of the model (most in layer {layer})"
    if everything >= PROVEN:
        kind, cause = _what_changed_all(damaged, statistics.median(errors.values()), _are_on_grids(damaged, wrong))
    names = tuple(f"{path}.{name}" for name in worst)
    return Finding(_beside(damaged, cause), (*detail, *rows, _bits_row(errors)), names, kind=kind)


def _beside(damaged: DamagedCandidate, cause: str) -> str:
    """Return the cause with whether it is the super weights: not those that were tried; what is absent was not."""
    if damaged.absent:
        return f"{cause}; {damaged.absence}"
    return f"{NOT_THE_SUPER_WEIGHTS}, but {cause}" if damaged.weights else cause


def other_shape(damaged: DamagedCandidate) -> Finding | None:
    """Return the finding on a candidate with another number of layers, or another inner width; None for others.

    A runtime that does not tell its sizes is taken to have the reference's.
    """
    if not are_sizes_told(damaged.candidate):
        return None
    ours, theirs = model_sample(damaged.candidate), model_sample(damaged.reference)
    if ours.layers != theirs.layers:
        return _other_depth(damaged, (ours.layers, theirs.layers))
    if ours.inner and theirs.inner and ours.inner != theirs.inner:
        return _other_width(damaged, ours.inner, theirs.inner)
    return None


def _other_depth(damaged: DamagedCandidate, depths: tuple[int, int]) -> Finding:
    missing = missing_layers(damaged)
    what = f"without the reference's layer {', '.join(map(str, missing))}" if missing else "another depth"
    count = f"{depths[0]} layer{'s' * (depths[0] != 1)}"
    words = f"{count}, where the reference has {depths[1]}: compared layer by layer they mean nothing"
    advice = "heal a pruned depth by training, or raise the limit"
    return Finding(_beside(damaged, what), (("depth", words),), (), advice, kind="depth")


def _other_width(damaged: DamagedCandidate, ours: int, theirs: int) -> Finding:
    what = f"{ours} inner neurons, where the reference has {theirs}"
    words = "its linear maps have another size: compared one by one they mean nothing"
    advice = "heal a pruned width by training, or raise the limit"
    return Finding(_beside(damaged, what), (("width", words),), (), advice, kind="pruning")


def _why_maps_unknown(damaged: DamagedCandidate) -> tuple[str, str]:
    """Return why the linear maps cannot be compared, and what to do; empty if they can."""
    unknown = why_responses_unknown(damaged.reference)
    if damaged.relation.kind == "permuted":
        return "which matrices: channels are permuted", "gate it before they are permuted"
    if unknown:
        return f"which matrices: {unknown}", "run the gate once with the reference instead of its baseline"
    return "", ""


def _outstanding(errors: Mapping[str, float]) -> list[str]:
    """Return the names of the maps whose error stands out, largest first; empty if none or too many do."""
    least = max(LEAST_OUTLIER, OUTLIER * statistics.median(errors.values()))
    names = [name for name, error in errors.items() if error > least]
    return names if len(names) <= max(1, FEW_MAPS * len(errors)) else []


def _named_maps(damaged: DamagedCandidate, names: Sequence[str], detail: Detail) -> Finding:
    first = f"layers.{names[0]}"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    path = damaged.candidate.anatomy.path
    matrices = tuple(f"{path}.{name}" for name in names)
    cause = _beside(damaged, f"{'' if damaged.weights else 'linear map '}{first}{more}")
    weights = [plain_weight(damaged.candidate.module.get_submodule(name)) for name in matrices]
    if damaged.candidate.scheme is None and all(
        weight is not None and not is_on_grid(weight[:ROWS]) for weight in weights
    ):
        return Finding(cause, detail, (), "no quantizer changed it: write the reference's matrix again", kind="matrix")
    return Finding(cause, detail, matrices, kind="matrix")


def _are_on_grids(damaged: DamagedCandidate, names: Sequence[str]) -> bool:
    """Return whether most of the maps that can be read, a few of the ``names``, know few levels only."""
    modules = (damaged.candidate.module.get_submodule(f"{damaged.candidate.anatomy.path}.{name}") for name in names)
    weights = [weight for module in modules if (weight := plain_weight(module)) is not None]
    found = [is_on_grid(weight[:ROWS]) for weight in weights[:: max(1, len(weights) // ROWS)]]
    return 2 * sum(found) > len(found)


def _what_changed_all(damaged: DamagedCandidate, error: float, on_grids: bool) -> tuple[str, str]:
    """Return kind and words of the cause if all linear maps are changed, by ``error`` in the median."""
    candidate, reference = damaged.candidate, damaged.reference
    found, bits = Kind("quantized", ""), bits_of_error(error)
    if candidate.scheme is None and (weight_sample.knows(reference) or reference.is_measurable):
        found = kind_from_weights(weight_sample(candidate), weight_sample(reference))
    if found.name in CHANGES:
        return CHANGES[found.name], f"{CHANGES[found.name]}: all linear maps answer {error:.0%} off"
    if candidate.scheme is None and found.scheme is None and not on_grids:
        return "all_maps", f"all linear maps were changed, and not by rounding: they answer {error:.0%} off"
    return "rounding", f"coarse rounding: all linear maps answer as with {bits:.1f} bits"


def _bits_row(errors: Mapping[str, float]) -> tuple[str, str]:
    """Return a row with the bits of each layer, from the median error of its maps."""
    layers: dict[str, list[float]] = {}
    for name, error in errors.items():
        layers.setdefault(name.partition(".")[0], []).append(error)
    bits = {int(layer): bits_of_error(statistics.median(found)) for layer, found in layers.items()}
    ranked = sorted(bits, key=lambda layer: bits[layer])
    shown = ", ".join(f"{bits[layer]:.1f} in layer {layer}" for layer in ranked[:MOST_MAPS])
    return "bits by layer", f"{shown}{'' if len(ranked) <= MOST_MAPS else f', at most {bits[ranked[-1]]:.1f}'}"


def bits_of_error(error: float) -> float:
    """Return the bits at which symmetric rounding of normal values in groups of 128 gives this relative error.

    The step is 2.6 standard deviations over 2^(bits - 1) - 1 levels, the error a step over sqrt(12).
    """
    return math.inf if error <= 0 else 1 + math.log2(1 + RANGE_OF_A_GROUP / error)


def _given_back(damaged: DamagedCandidate, names: Sequence[str]) -> tuple[float, Detail]:
    """Return the share of the loss that returns if these maps are replaced by the reference's that are known, and a row."""
    found = {name: reference_matrix(damaged.candidate, damaged.reference, name) for name in names}
    maps = {name: weight for name, weight in found.items() if not isinstance(weight, str)}
    if not maps:
        return 0.0, ()
    share, words = damaged.recovered(partial(maps_replaced, maps=maps, rows={}))
    what = "this matrix" if len(maps) == 1 else f"these {len(maps)} matrices"
    return share, (("given back", f"{what} through a hook: {words}"),)


def _all_given_back(damaged: DamagedCandidate, names: Sequence[str]) -> tuple[float, Detail]:
    """Return the same with experts, norms, biases, embedding and head given back as well."""
    candidate = damaged.candidate
    found = {name: reference_matrix(candidate, damaged.reference, name) for name in names}
    maps = {name: weight for name, weight in found.items() if not isinstance(weight, str)}
    parameters = {
        name: value
        for name, ours in {**other_parameters(candidate), **expert_stacks(candidate)}.items()
        if not isinstance(value := reference_parameter(damaged, name), str) and value.shape == ours.shape
    }
    everything = Suspect("all_maps", "all weights", "", parameters=parameters, maps=maps)
    share, words = damaged.recovered(lambda model: given_back(candidate, model, [everything]))
    return share, (("given back", f"all weights: {words}"),)


def first_bad_layer(candidate: Subject, reference: Subject, channels: Sequence[int] = ()) -> tuple[int, float]:
    """Return the layer after which the error of the residual stream has risen most, and that error; sinks are left out.

    The error is relative to the reference's norm. ``channels`` gives for each channel of the reference its place in the
    candidate.
    """
    errors = residual_errors(candidate, reference, channels)
    rises = [now - before for before, now in zip([0.0, *errors], errors, strict=False)]
    layer = max(range(len(rises)), key=lambda number: rises[number])
    return layer, errors[layer]
