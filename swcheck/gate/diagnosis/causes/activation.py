"""The cause: a layer loses the super activation although the super weights write it. Proven by restoring it there."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from swcheck.base.limits import DEFAULTS
from swcheck.base.statistics import ratio_of
from swcheck.gate.diagnosis.causes.saturation import END, saturated
from swcheck.gate.diagnosis.evidence.damaged_candidate import KEEP_PLACE, PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known, ruled_out
from swcheck.gate.diagnosis.evidence.worst_maps import worst_maps_of_layer
from swcheck.lens.replace import residual_replaced
from swcheck.superweights.measurements.inputs import has_bos, prompt_ids
from swcheck.superweights.measurements.prompt_readings import readings
from swcheck.superweights.measurements.residual_stream import activation_profile, super_activations
from swcheck.superweights.measurements.weights import is_quickly_measurable

if TYPE_CHECKING:
    from swcheck.base.records import SuperActivation
    from swcheck.superweights.subject.subject import Subject


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """For each super activation find the first layer after which it is outside its limits, and restore it there."""
    rows: Detail = ()
    cut = saturated(damaged)
    if cut is not None:
        words = f"the super activation of channel {cut.channel}, which float16 cuts off at {END:,.0f}, is the cause"
        return not_known(f"whether {words}: it cannot be given back in float16")
    weights = (*damaged.weights, *(weight for weight, _ in damaged.absent))
    for place in super_activations(damaged.reference, weights) if weights else ():
        there = damaged.place_of(place)
        lost = losing_layer(damaged.candidate, damaged.reference, place, there)
        if isinstance(lost, str):
            rows += ruled_out(f"the super activation of channel {there.channel} ({lost})")
            continue
        layer, ratio = lost
        wanted = reference_values(damaged, place, layer)
        if wanted is None:
            words = f"x{ratio:.2f} after layer {layer}; not given back: its tokens need the reference"
            rows += not_known(f"whether the lost super activation of channel {there.channel} is the cause ({words})")
            continue
        restored = partial(residual_replaced, layer=layer, channel=there.channel, wanted=wanted)
        share, words = damaged.recovered(restored)
        evidence = f"x{ratio:.2f} after layer {layer}; restored through a hook: {words}"
        if share >= PROVEN:
            return _finding(damaged, layer, f"channel {there.channel} (x{ratio:.2f})", (("proof", evidence), *rows))
        rows += ruled_out(f"the super activation of channel {there.channel} ({evidence})")
    return rows


def _finding(damaged: DamagedCandidate, layer: int, what: str, detail: Detail) -> Finding:
    if damaged.absent:
        cause = f"{damaged.absence}; layer {layer} loses the super activation of {what}"
        return Finding(cause, detail, (), KEEP_PLACE, kind="super_weight")
    kept = all(DEFAULTS["contribution"].holds(ratio) for ratio in damaged.ratios)
    cause = f"layer {layer} loses the super activation of {what}"
    cause += ", what the super weights write is kept" if kept else ""
    return Finding(cause, detail, worst_maps_of_layer(damaged, layer), kind="super_activation")


def losing_layer(
    candidate: Subject, reference: Subject, place: SuperActivation, there: SuperActivation
) -> tuple[int, float] | str:
    """Return the first layer, from the onset on, after which an activation is outside its limits, and its ratio there.

    ``place`` is in the reference's channels, ``there`` in the candidate's. If it is within its limits after every
    layer, return words with the range of the ratios.
    """
    prompt = prompt_ids(reference)
    pairs = list(
        zip(activation_profile(candidate, there, prompt), activation_profile(reference, place, prompt), strict=False)
    )
    ratios = {layer: ratio_of(*pairs[layer]) for layer in range(place.layer, min(place.last + 1, len(pairs)))}
    for layer, ratio in ratios.items():
        if not DEFAULTS["activation"].holds(ratio):
            return layer, ratio
    if not ratios:
        return "its layers are gone"
    return f"x{min(ratios.values()):.3f} to x{max(ratios.values()):.3f} after layers {min(ratios)} to {max(ratios)}"


def first_losing_layer(damaged: DamagedCandidate) -> int | None:
    """Return the first layer that loses a super activation; None if no layer does."""
    for place in super_activations(damaged.reference, damaged.weights):
        lost = losing_layer(damaged.candidate, damaged.reference, place, damaged.place_of(place))
        if not isinstance(lost, str):
            return lost[0]
    return None


def reference_values(damaged: DamagedCandidate, place: SuperActivation, layer: int) -> torch.Tensor | None:
    """Return the reference's value in the channel of ``place`` after ``layer``, NaN except at each window's sink.

    Float32 ``(1, P)`` if the sink is a BOS at position 0, where causality makes it one number, else ``(B, P)``; P is
    the length of a window start. None if the reference has to be run on the windows and takes long to load.
    """
    reference = damaged.reference
    if has_bos(reference) and place.position == 0:
        wanted = torch.full((1, damaged.ids.shape[1]), math.nan)
        wanted[0, 0] = activation_profile(reference, place, prompt_ids(reference))[layer]
        return wanted
    wanted = torch.full(tuple(damaged.ids.shape), math.nan)
    if not is_quickly_measurable(reference):
        return None
    lengths = (damaged.ids.shape[1],) * len(damaged.ids)
    for number, reading in enumerate(readings(reference, replace(place, layer=layer), damaged.ids, lengths)):
        wanted[number, reading.position] = reading.value
    return wanted
