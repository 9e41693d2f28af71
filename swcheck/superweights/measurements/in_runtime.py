"""Reads a candidate that runs in another program, in place of hooks. T tokens, H residual width, L layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swcheck.base.records import SuperWeight
from swcheck.lens.likelihood import token_nats
from swcheck.loading.runtime import Capability
from swcheck.superweights.subject.subject import Subject


def residual_in_runtime(subject: Subject, ids: torch.Tensor) -> tuple[bool, torch.Tensor]:
    """Return whether the answer to ``ids`` ``(1, T)`` is finite, and the residual stream, float32 ``(L, T, H)``.

    L is 0 where the runtime does not show the stream.
    """
    runtime = subject.runtime
    finite = bool(torch.isfinite(token_nats(runtime, ids)).all())
    if not runtime.can(Capability.VALUES) or runtime.sizes is None:
        return finite, torch.zeros(0, ids.shape[1], 1)
    layers = range(runtime.sizes[0])
    values = runtime.values(ids[0], residual=layers)[0]
    return finite, torch.stack([values[layer].float() for layer in layers])


def layer_in_runtime(subject: Subject, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """Return the residual stream after one layer on the prompt ``ids``, int64 ``(T,)``: float32 ``(T, H)``."""
    return subject.runtime.values(ids, residual=[layer])[0][layer].float()


def contributions_in_runtime(
    subject: Subject, super_weights: Sequence[SuperWeight], ids: torch.Tensor, positions: Sequence[int]
) -> tuple[float, ...]:
    """Return what each scalar writes at its own token: the weight as it is stored times the input as it is computed."""
    runtime, layers = subject.runtime, sorted({weight.layer for weight in super_weights})
    inputs = runtime.values(ids[0], inputs=layers)[1]
    return tuple(
        runtime.weight_value(weight) * float(inputs[weight.layer][position, weight.column])
        for weight, position in zip(super_weights, positions, strict=True)
    )
