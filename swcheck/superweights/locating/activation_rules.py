"""Decides which values of a residual stream are super activations, and which layer wrote one.

A super activation is not simply the largest value: it persists over the later layers and stands at few tokens. These are
pure functions of recorded tensors. T tokens, H residual width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from swcheck.base.records import SuperActivation


@dataclass(frozen=True)
class Rules:
    """What counts as a super activation and as a super weight.

    All are ratios, never absolute numbers, because magnitudes differ by four orders between families. The first two
    give the threshold; the fifth detector of a follow-up paper, the one with the fewest extra detections, has the same.
    """

    above_median: float = 50.0
    """The threshold is at least this many times the median magnitude of the residual stream."""
    below_peak: float = 0.1
    """The threshold is at least this share of the largest magnitude of the residual stream."""
    band: float = 0.5
    """A layer or token carries an activation if it has at least this share of the peak."""
    carried: float = 0.5
    """At least this share of the later layers has to carry the activation, locally in this share of the carrying ones."""
    tokens: float = 0.25
    """At most this share of the tokens of the prompt may carry the activation; one token always may."""
    written: float = 0.2
    """A layer writes an activation if it adds at least this share of it."""
    share: float = 0.2
    """A super weight writes at least this share of what its layer adds to the activation."""
    drop: float = 0.1
    """The activation has to fall by at least this share when the weight is zeroed.

    In the intact model the weight has to write at least this share of what its layer adds.
    """
    inputs: int = 32
    """At most this many inner neurons of a layer are examined: those that write most.

    Where the weight is packed, they are those with the largest inputs.
    """
    rounds: int = 8
    """At most this many rounds of zeroing weights and running the pass again are made."""


DEFAULT_RULES: Final = Rules()


def spikes(
    residual: torch.Tensor, threshold: float, rules: Rules, *, first: torch.Tensor | None = None
) -> tuple[SuperActivation, ...]:
    """Return the super activations of the residual stream ``(L, T, H)``, largest first, at most one per channel.

    ``threshold`` is the least magnitude. ``first`` ``(L, T, H)`` is the stream in which a channel has to be local, if
    that is another one: a shorter pass cannot tell what stands at few tokens. The output of the last layer is left out,
    so a model of fewer than three layers has none.
    """
    inner = residual[:-1]
    if len(inner) < 2:
        return ()
    peaks = inner.abs().amax(0)
    largest = peaks.amax(0)
    found = []
    for channel in ((largest >= threshold) & (largest > 0)).nonzero().flatten().tolist():
        series, order = inner[:, :, channel].abs(), peaks[:, channel].argsort(descending=True)
        local = local_layers((inner if first is None else first[:-1])[:, :, channel], rules).tolist()
        for position in order[peaks[order, channel] >= threshold].tolist():
            layers = _carrying_layers(series[:, position].tolist(), local, rules)
            if layers is not None:
                value, median = float(inner[layers[0], position, channel]), median_of(inner[layers[0]].abs())
                found.append(SuperActivation(layers[0], channel, position, value, median, layers[1]))
                break
    return tuple(sorted(found, key=lambda spike: -abs(spike.value)))


def left_standing(
    spikes: Sequence[SuperActivation],
    intact: Sequence[SuperActivation],
    values: Sequence[float],
    threshold: float,
    rules: Rules,
) -> tuple[SuperActivation, ...]:
    """Return the super activations of a pass with weights zeroed, largest first, at most one per channel.

    ``spikes`` are those that this pass has by itself. ``intact`` are those of the intact model, and ``values`` what stands
    at their layers, tokens and channels in this pass: one that kept ``rules.band`` of its value has to be explained, so it
    takes the place of a spike of its channel at another token, which the zeroing may have raised.
    """
    standing = {
        one.channel: replace(one, value=value)
        for one, value in zip(intact, values, strict=True)
        if abs(value) >= threshold and value / one.value >= rules.band
    }
    raised = [spike for spike in spikes if spike.channel not in standing]
    return tuple(sorted([*standing.values(), *raised], key=lambda spike: -abs(spike.value)))


def _carrying_layers(series: Sequence[float], local: Sequence[bool], rules: Rules) -> tuple[int, int] | None:
    """Return the first and the last layer that carry a value at one token, None where it does not persist.

    ``series`` has its magnitude and ``local`` whether the channel is local, by layer. The layer after the onset has to
    carry the value, and enough of the later ones; and the channel has to be local in enough of those that carry it.
    """
    least = rules.band * max(series)
    carrying = [layer for layer, magnitude in enumerate(series) if magnitude >= least]
    onset, later = carrying[0], len(series) - carrying[0] - 1
    persists = onset + 1 in carrying and len(carrying) - 1 >= rules.carried * later
    is_local = sum(local[layer] for layer in carrying) >= rules.carried * len(carrying)
    return (onset, carrying[-1]) if persists and is_local else None


def local_layers(series: torch.Tensor, rules: Rules) -> torch.Tensor:
    """Return in which layers, bool ``(L,)``, one channel of the residual stream, ``(L, T)``, is large at few tokens.

    A channel that is large at many tokens is an outlier feature, not a super activation.
    """
    magnitudes = series.abs()
    holders = (magnitudes >= rules.band * magnitudes.amax(1, keepdim=True)).sum(1)
    return holders <= max(1, int(rules.tokens * series.shape[1]))


def median_of(magnitudes: torch.Tensor) -> float:
    """Return the median of finite float32 values, the lower of the two middle ones, as ``torch.median`` does.

    numpy's partition takes a ninth of the time of torch's.
    """
    values: Any = magnitudes.flatten().clone().numpy()
    middle = (len(values) - 1) // 2
    values.partition(middle)
    return float(values[middle])


def earliest_writer(spike: SuperActivation, written: Sequence[float], rules: Rules, after: int = -1) -> int | None:
    """Return the first layer whose down projection adds at least ``rules.written`` of the spike, with its sign.

    ``written`` is what the down projection of each layer adds at the token and channel of the spike. Layers behind
    ``after``, up to the onset, are searched; None if none of them does. The earliest writer is wanted, not the largest,
    because a later one may only echo it.
    """
    sign = 1 if spike.value > 0 else -1
    least = rules.written * abs(spike.value)
    layers = range(after + 1, min(spike.layer + 1, len(written)))
    return next((layer for layer in layers if sign * written[layer] >= least), None)
