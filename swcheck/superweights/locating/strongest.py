"""Which single scalar, beside the super weights, a model depends on most: also where it has no super weight.

One scalar is tried in each layer: the one that writes most into the value which the layer adds most to. T tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.intervene import zeroed
from swcheck.lens.likelihood import token_nats
from swcheck.superweights.locating.located import Strongest
from swcheck.superweights.locating.passes import Passes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from swcheck.lens.architecture.anatomy import Anatomy
    from swcheck.superweights.locating.writers import Written

MOST_TRIED: Final = 8
"""At most this many scalars are zeroed, those that write most, relative to the median of the stream that they write into."""

KNOWN_AT_MOST: Final = 16
"""So many scalars of a row are looked at, since the largest ones may be super weights."""

SHORTEST_START: Final = 64
"""They are scored on the first quarter of each window, which has at least this many tokens."""


def strongest_scalar(
    model: nn.Module, body: Anatomy, ids: torch.Tensor, known: Sequence[SuperWeight], token_ids: torch.Tensor
) -> Strongest | None:
    """Return the scalar that costs most when it is zeroed alone, ``known`` ones left out; None if none can be zeroed.

    ``ids`` ``(1, T)`` is the prompt that tells what is written, ``token_ids`` ``(B, T)`` are scored.
    """
    tried = largest_writers(model, body, ids, known)
    starts = token_ids[:, : max(SHORTEST_START, token_ids.shape[1] // 4)]
    if not tried:
        return None
    intact = float(token_nats(model, starts).mean())
    costs = []
    for weight in tried:
        with zeroed(model, [weight]):
            costs.append(float(token_nats(model, starts).mean()) - intact)
    costs = [math.inf if math.isnan(cost) else cost for cost in costs]
    return Strongest(tried[costs.index(max(costs))], max(costs), len(tried))


def largest_writers(
    model: nn.Module, body: Anatomy, ids: torch.Tensor, known: Sequence[SuperWeight]
) -> list[SuperWeight]:
    """Return at most one scalar of each layer, with its value; those that write most come first."""
    found: list[tuple[float, SuperWeight]] = []
    with evaluating(model):
        first = Passes(model, body, ids).first
        for layer, stream in enumerate(first.residual):
            added = (stream - first.residual[layer - 1] if layer else stream).abs()
            position, channel = divmod(int(added.argmax()), added.shape[1])
            scalars = [s for one in first.writers.of_layer(layer, position, channel) for s in _scalars(one, channel)]
            written, weight = max((s for s in scalars if s[1] not in known), default=(0.0, None))
            if weight is not None:
                found.append((written / max(1e-30, float(stream.abs().median())), weight))
    return [weight for _, weight in sorted(found, reverse=True)[:MOST_TRIED]]


def _scalars(one: Written, channel: int) -> list[tuple[float, SuperWeight]]:
    """Return the scalars that write most into a channel, as many as may be known already and one more, with what they write."""
    if one.down.weight is None:
        return []
    row = one.down.weight[channel]
    written = (one.read.float() * row.float() * one.gain).abs()
    key = one.down.key
    return [
        (float(size), SuperWeight(key.layer, channel, int(column), float(row[column]), key.expert))
        for size, column in zip(*written.topk(min(KNOWN_AT_MOST, len(written))), strict=True)
    ]
