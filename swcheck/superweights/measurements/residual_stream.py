"""The residual stream of a subject on a prompt: the super activations in it, and a sketch to compare it by.

B batch, T tokens, H residual width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from swcheck.base.count_sketch import count_sketch
from swcheck.base.records import SuperActivation, SuperWeight
from swcheck.lens.architecture.anatomy import MapKey
from swcheck.lens.architecture.storage import device_of, evaluating
from swcheck.lens.intervene import zeroed
from swcheck.lens.likelihood import token_nats
from swcheck.lens.non_finite import NonFinite
from swcheck.lens.non_finite import first_non_finite as first_non_finite_module
from swcheck.lens.observe import Observation, observe
from swcheck.superweights.measurements.contributions import down_input
from swcheck.superweights.measurements.in_runtime import layer_in_runtime, residual_in_runtime
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.subject.measurement import Slot, measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject

INPUTS_KEPT: Final = 256
"""The inputs of every down projection are kept for a prompt of at most this many tokens, until the weights are freed."""

SINK_RATIO: Final = 8
"""A token is a sink if its largest magnitude is more than this many times that of the median token."""
SKETCH_VALUES: Final = 2**13
"""At most this many numbers are kept of a residual stream, 40 kB in a file."""
LAYER_VALUES: Final = 256
"""At most this many numbers are kept of one layer."""


DOWN_PEAKS: Final = Slot[tuple[tuple[int, float, float], ...]]("peaks", Cost.PROMPT)
"""The layer of each dense down projection, and the value of largest magnitude of its input and of its output, signed.

Its input is the prompt ids ``(1, T)``. It is filled by the pass that ``residual_stream`` runs.
"""


@measurement("residuals", Cost.PROMPT, in_baseline=InBaseline.NO)
def _whole_pass(subject: Subject, ids: torch.Tensor) -> tuple[bool, torch.Tensor]:
    """Run one pass over the prompt ``ids`` ``(1, T)``; return whether all nats are finite, and the residual stream.

    For a short prompt the subject also remembers the inputs of the down projections.
    """
    if subject.is_runtime:
        return residual_in_runtime(subject, ids)
    model = subject.module
    body, is_short = subject.anatomy, ids.shape[1] <= INPUTS_KEPT
    layers = range(len(body.layers))
    keys = [down.key for layer in layers for down in body.down_maps(layer) if not down.is_routed]
    wanted = keys if is_short and subject.memory is not None else ()
    dense = [key for key in wanted if key.expert is None]
    with observe(model, residual=layers, inputs=wanted, outputs=dense) as sight:
        nats = token_nats(model, ids)
    if wanted:
        _remember_maps(subject, ids, sight)
    if not layers:  # of a model whose layers are not known
        return bool(torch.isfinite(nats).all()), torch.zeros(0, ids.shape[1], 1)
    return bool(torch.isfinite(nats).all()), _stacked(sight)


def remember_pass(subject: Subject, ids: torch.Tensor, sight: Observation, *, is_finite: bool) -> None:
    """Remember what a pass over the prompt ``ids`` ``(1, T)`` has shown, as if ``residual_stream`` had run it.

    ``sight`` has every layer, and the inputs and outputs of every dense down projection.
    """
    if ids.shape[1] <= INPUTS_KEPT:
        _remember_maps(subject, ids, sight)
    _whole_pass.recall(subject, (ids,), lambda: (is_finite, _stacked(sight)))


def _remember_maps(subject: Subject, ids: torch.Tensor, sight: Observation) -> None:
    """Remember the inputs of the down projections, and the largest values of the dense ones."""
    seen = {MapKey(key) if isinstance(key, int) else key: key for key in sight.inputs}
    for key, name in seen.items():
        down_input.recall(subject, (key.layer, ids, key.expert), partial(sight.inputs[name].__getitem__, 0))
    dense = {key: name for key, name in seen.items() if key.expert is None}  # layers for images do not run
    peaks = tuple(
        (key.layer, _largest(sight.inputs[name]), _largest(sight.outputs[name])) for key, name in dense.items()
    )
    if peaks:
        DOWN_PEAKS.recall(subject, (ids,), lambda: peaks)


def _stacked(sight: Observation) -> torch.Tensor:
    """Return the residual stream of every layer, float32 ``(L, T, H)`` on the CPU."""
    return torch.stack([sight.residual[layer][0].float().cpu() for layer in sorted(sight.residual)])


def _largest(values: torch.Tensor) -> float:
    flat = values.float().flatten()
    return float(flat[flat.abs().argmax()])


def residual_stream(subject: Subject, ids: torch.Tensor) -> torch.Tensor:
    """Return the residual stream after every layer on the prompt ``ids`` ``(1, T)``, float32 ``(L, T, H)``."""
    return _whole_pass(subject, ids)[1]


def is_residual_known(subject: Subject, ids: torch.Tensor) -> bool:
    """Return whether ``residual_stream`` is remembered, so that it needs no pass."""
    return _whole_pass.knows(subject, ids)


@measurement("finite", Cost.PROMPT)
def answers_finite(subject: Subject, ids: torch.Tensor) -> bool:
    """Return whether the model answers the prompt ``ids``, int64 ``(1, T)``, with finite logits."""
    return _whole_pass(subject, ids)[0]


@measurement("breakdown", Cost.PROMPT, in_baseline=InBaseline.NO)
def first_non_finite(subject: Subject, ids: torch.Tensor) -> NonFinite | None:
    """Return where a pass over ``ids`` ``(B, T)`` stops being finite, None where it does not."""
    if subject.is_runtime:
        return None
    return first_non_finite_module(subject.module, ids.to(device_of(subject.module)))


@measurement("norm", Cost.PROMPT)
def token_norm(subject: Subject, layer: int, position: int, ids: torch.Tensor) -> float:
    """Return the norm of the residual stream after a layer at one token of the prompt ``ids`` ``(1, T)``.

    It is the same in every basis of the residual stream.
    """
    if subject.is_runtime:
        return float(layer_in_runtime(subject, ids[0], layer)[position].norm())
    model = subject.module
    with evaluating(model), observe(model, residual=[layer], stop=True) as sight:
        model(ids.to(device_of(model)), use_cache=False)
    return float(sight.residual[layer][0, position].float().norm())


@measurement("places", Cost.PROMPT)
def super_activations(subject: Subject, super_weights: Sequence[SuperWeight]) -> tuple[SuperActivation, ...]:
    """Return the super activations that these scalars write on the default prompt, one for each row, at its onset."""
    residual = residual_stream(subject, prompt_ids(subject))
    return tuple(
        _activation_of_row(residual, row, min(weight.layer for weight in super_weights if weight.row == row))
        for row in dict.fromkeys(weight.row for weight in super_weights)
    )


def _activation_of_row(residual: torch.Tensor, row: int, first: int) -> SuperActivation:
    """Return the super activation in channel ``row``, at the token where its magnitude is largest.

    Only layers from ``first`` on count, without the last one. The onset is the first layer with half of the maximum.
    """
    series = residual[first:-1, :, row].abs() if first < len(residual) - 1 else residual[first:, :, row].abs()
    position = int(series.amax(0).argmax())
    carrying = (series[:, position] >= 0.5 * series[:, position].max()).nonzero().flatten()
    onset = first + int(carrying[0])
    value, median = float(residual[onset, position, row]), float(residual[onset].abs().median())
    return SuperActivation(onset, row, position, value, median, first + int(carrying[-1]))


@measurement("profile", Cost.PROMPT)
def activation_profile(subject: Subject, place: SuperActivation, ids: torch.Tensor) -> tuple[float, ...]:
    """Return the residual value at the channel and token of ``place`` after every layer, on the prompt ``ids`` ``(1, T)``."""
    return tuple(residual_stream(subject, ids)[:, place.position, place.channel].tolist())


@measurement("zeroed", Cost.PROMPT)
def zeroed_profile(
    subject: Subject, place: SuperActivation, removed: Sequence[SuperWeight], ids: torch.Tensor
) -> tuple[float, ...]:
    """Return ``activation_profile`` with the scalars ``removed`` zeroed together."""
    model, layers = subject.module, range(len(subject.anatomy.layers))
    with evaluating(model), zeroed(model, removed), observe(model, residual=layers, stop=True) as sight:
        model(ids.to(device_of(model)), use_cache=False)
    return tuple(float(sight.residual[layer][0, place.position, place.channel]) for layer in layers)


def remember_zeroed_profile(
    subject: Subject,
    inputs: tuple[SuperActivation, tuple[SuperWeight, ...], torch.Tensor],
    residual: torch.Tensor,
) -> None:
    """Remember ``zeroed_profile`` of these ``inputs``, read off the residual stream ``(L, T, H)`` of a pass that was run."""
    place = inputs[0]
    if place.position < residual.shape[1]:
        zeroed_profile.recall(subject, inputs, lambda: tuple(residual[:, place.position, place.channel].tolist()))


@dataclass(frozen=True)
class ResidualSketch:
    """What is kept of a residual stream ``(L, T, H)`` to tell how far another one differs, layer by layer.

    ``away``, bool ``(L, T)``, marks the tokens that are not sinks. ``norms``, float32 ``(L,)``, are the norms over these
    tokens, and ``values``, float32 ``(L, K)``, are count sketches of them with K numbers each.
    """

    away: torch.Tensor
    norms: torch.Tensor
    values: torch.Tensor


@measurement("stream", Cost.PROMPT)
def residual_sketch(subject: Subject, ids: torch.Tensor) -> ResidualSketch:
    """Return the sketch of the residual stream on the prompt ``ids`` ``(1, T)``."""
    return sketch_of(residual_stream(subject, ids))


def sketch_of(residual: torch.Tensor) -> ResidualSketch:
    """Return the sketch of a residual stream, float32 ``(L, T, H)``. A layer with no other tokens than sinks keeps all."""
    largest = residual.abs().amax(2)
    away = largest <= SINK_RATIO * largest.median(1, keepdim=True).values
    away |= ~away.any(1, keepdim=True)
    count = max(1, min(LAYER_VALUES, SKETCH_VALUES // len(residual)))
    values = torch.stack([count_sketch(layer[kept], count) for layer, kept in zip(residual, away, strict=True)])
    norms = torch.stack([layer[kept].norm() for layer, kept in zip(residual, away, strict=True)])
    return ResidualSketch(away, norms, values)


def sketch_errors(residual: torch.Tensor, expected: ResidualSketch) -> list[float]:
    """Return how far a residual stream ``(L, T, H)`` of the same prompt differs from the expected one after every layer.

    Sinks are left out; the difference is relative to the expected norm.
    """
    rows = zip(residual, expected.away, expected.norms, expected.values, strict=True)
    return [
        float((count_sketch(layer[kept], len(values)) - values).norm() / norm.clamp_min(1e-12))
        for layer, kept, norm, values in rows
    ]


def residual_errors(subject: Subject, reference: Subject, channels: Sequence[int] = ()) -> list[float]:
    """Return ``sketch_errors`` of the subject against a reference, on the reference's default prompt.

    ``channels`` gives for each channel of the reference its channel in the subject; empty means the same.
    """
    ids = prompt_ids(reference)
    residual = residual_stream(subject, ids)
    return sketch_errors(residual[..., list(channels)] if channels else residual, residual_sketch(reference, ids))
