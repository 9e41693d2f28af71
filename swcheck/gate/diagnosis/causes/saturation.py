"""The cause: a super activation is cut off where float16 ends. Proven by its value: it is that number.

What is larger becomes infinite in plain float16; kernels that saturate, and models that clamp, cut it off there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from swcheck.gate.diagnosis.evidence.finding import Finding
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.residual_stream import activation_profile, super_activations

if TYPE_CHECKING:
    from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
    from swcheck.superweights.subject.subject import Subject

END: Final = float(torch.finfo(torch.float16).max)
"""The largest finite number of float16, 65,504."""

AT_THE_END: Final = 1e-3
"""A value is the end of float16 if it is within this share of it: half a step there, and a little added to it."""

ADVICE: Final = "compute in bfloat16 or float32 (--swcheck-dtype), or keep this layer's output in float32"


@dataclass(frozen=True)
class Saturated:
    """A super activation that is cut off: its channel and token in the candidate, the layers, the reference's value."""

    channel: int
    position: int
    layers: tuple[int, ...]
    theirs: float


def saturated(damaged: DamagedCandidate) -> Saturated | None:
    """Return the first super activation that is the end of float16 where the reference's is larger; None if none is."""
    prompt = prompt_ids(damaged.reference)
    for place in super_activations(damaged.reference, damaged.weights) if damaged.weights else ():
        there = damaged.place_of(place)
        ours = activation_profile(damaged.candidate, there, prompt)
        theirs = activation_profile(damaged.reference, place, prompt)
        layers = tuple(
            layer
            for layer, (one, other) in enumerate(zip(ours, theirs, strict=False))
            if abs(abs(one) - END) <= AT_THE_END * END and abs(other) > (1 + 10 * AT_THE_END) * END
        )
        if layers:
            return Saturated(there.channel, there.position, layers, theirs[layers[0]])
    return None


def finding_of(cut: Saturated) -> Finding:
    """Return the cause: where float16 ends, and how large the value is in the reference."""
    place = f"super activation of channel {cut.channel} at token {cut.position}"
    first, last = cut.layers[0], cut.layers[-1]
    where = f"after layer {first}" if first == last else f"after layers {first} to {last}"
    proof = f"{where} it is {END:,.0f}, the largest number of float16; the reference has {cut.theirs:,.0f}"
    return Finding(
        f"float16 ends at {END:,.0f}: the {place} is cut off", (("proof", proof),), (), ADVICE, kind="overflow"
    )


def share_of_float16(candidate: Subject, damaged: DamagedCandidate) -> float:
    """Return the largest super activation of a candidate in float16 over the end of its range; 0 for other dtypes."""
    if candidate.is_runtime or next(candidate.module.parameters()).dtype != torch.float16:
        return 0.0
    prompt = prompt_ids(damaged.reference)
    places = super_activations(damaged.reference, damaged.weights)
    values = (v for one in places for v in activation_profile(candidate, damaged.place_of(one), prompt))
    return max(map(abs, values), default=0.0) / END
