"""What a report draws of a verdict, as plain numbers in its facts: curves of the reference and the candidate.

A curve record has a title, the names of both axes, the number of the first point, its step, and the values of each line
by its name. Nothing is measured for a curve that the check beside it, or one short prompt, does not give. B windows, T
tokens, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from swcheck.base.records import SuperWeight
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.residual_stream import (
    DOWN_PEAKS,
    activation_profile,
    is_residual_known,
    residual_stream,
    super_activations,
    zeroed_profile,
)
from swcheck.superweights.subject.subject import Subject

MOST_POINTS: Final = 64
"""A curve over token positions has at most this many points, each the mean of as many positions."""

DIGITS: Final = 5


def curve(title: str, x: str, y: str, lines: Mapping[str, Sequence[float]], step: int = 1) -> dict[str, Any]:
    """Return the record of one picture; points stand at 0, ``step``, twice ``step``."""
    rounded = {name: [_rounded(value) for value in values] for name, values in lines.items()}
    return {"title": title, "x": x, "y": y, "step": step, "lines": rounded}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else value


def layer_curves(
    subjects: Mapping[str, Subject], weights: Sequence[SuperWeight], channels: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Return figures 3 and 4 of the paper on the default prompt, the lines of all ``subjects`` over each other.

    The first subject is the reference, whose coordinates ``weights`` are; ``channels`` gives for each of its channels
    that of the others, empty means the same. What would need weights that are not in memory is left out.
    """
    ids = prompt_ids(next(iter(subjects.values())))
    for subject in subjects.values():
        if not is_residual_known(subject, ids) and not DOWN_PEAKS.knows(subject, ids) and subject.held.in_memory:
            residual_stream(subject, ids)
    return [*_activation_curves(subjects, weights, ids, channels), *_down_curves(subjects, ids)]


def labelled(reference: Subject, candidate: Subject) -> dict[str, Subject]:
    """Return two subjects by the names that a picture gives them."""
    if candidate is reference:
        return {reference.name or "reference": reference}
    if not reference.name or not candidate.name or reference.name == candidate.name:
        return {"reference": reference, "candidate": candidate}
    return {reference.name: reference, candidate.name: candidate}


def _down_curves(subjects: Mapping[str, Subject], ids: torch.Tensor) -> list[dict[str, Any]]:
    found = {
        name: DOWN_PEAKS.recall(subject, (ids,), tuple)
        for name, subject in subjects.items()
        if DOWN_PEAKS.knows(subject, ids)
    }
    heads = (("input", 1), ("output", 2))
    return [
        curve(
            f"Largest {word} of down_proj by layer",
            "layer",
            "magnitude, on the default prompt",
            {name: _by_layer(peaks, place) for name, peaks in found.items()},
        )
        for word, place in heads
        if found
    ]


def _by_layer(peaks: Sequence[tuple[int, float, float]], place: int) -> list[float]:
    """Return the magnitudes by layer; NaN for a layer without a dense down projection."""
    values = {peak[0]: abs(float(peak[place])) for peak in peaks}
    return [values.get(layer, math.nan) for layer in range(max(values, default=-1) + 1)]


def _activation_curves(
    subjects: Mapping[str, Subject], weights: Sequence[SuperWeight], ids: torch.Tensor, channels: Sequence[int]
) -> list[dict[str, Any]]:
    if not weights:
        return []
    (name, reference), *others = subjects.items()
    place = max(super_activations(reference, tuple(weights)), key=lambda one: abs(one.value))
    there = replace(place, channel=channels[place.channel]) if channels else place
    lines: dict[str, Sequence[float]] = {name: activation_profile(reference, place, ids)}
    for other, subject in others:
        if is_residual_known(subject, ids):
            lines[other] = activation_profile(subject, there, ids)
    if zeroed_profile.knows(reference, place, tuple(weights), ids) or reference.held.in_memory:
        lines[f"{name}, super weights zeroed"] = zeroed_profile(reference, place, tuple(weights), ids)
    what = f"value in channel {place.channel} at token {place.position} of the default prompt"
    return [curve("Super activation through the layers", "after layer", what, lines)]


def position_curve(difference: torch.Tensor, name: str) -> dict[str, Any]:
    """Return the mean nats that a candidate loses at each token position; ``difference`` is ``(B, T - 1)``."""
    by_position = difference.double().mean(0)
    step = -(-len(by_position) // MOST_POINTS)
    values = [float(part.mean()) for part in torch.split(by_position, step)]
    return curve("Nats lost by token position", "token", "nats lost, mean of all windows", {name: values}, step)
