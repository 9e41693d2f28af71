"""Which values of a residual stream are super activations, and which layer wrote them: pure functions of what was seen.

Not the loudest value counts but one that persists over the later layers and stands at few tokens. T time, H residual
width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from swcheck.base.records import SuperActivation


@dataclass(frozen=True)
class Rules:
    """What counts. Ratios, never absolute numbers: magnitudes span four orders between families.

    ``above_median`` and ``below_peak`` make the bar (a follow-up's fifth detector, the one with the fewest extras, has
    the same two); ``band`` is how much of its peak a value keeps to count as carried on, ``carried`` the share of the
    later layers that have to; ``tokens`` the share of the prompt that may hold it; ``written`` the least part of the
    peak that a writer adds, ``share`` the least part of a writer's output that one weight explains; ``drop`` the least
    part of the activation that goes when its weights do; ``inputs`` how many inner neurons of a writer are looked at,
    the strongest first; ``rounds`` how often at most is removed and looked again.
    """

    above_median: float = 50.0
    below_peak: float = 0.1
    band: float = 0.5
    carried: float = 0.5
    tokens: float = 0.25
    written: float = 0.2
    share: float = 0.2
    drop: float = 0.1
    inputs: int = 32
    rounds: int = 8


USUAL: Final = Rules()


def spikes(
    residual: torch.Tensor, bar: float, rules: Rules, *, first: torch.Tensor | None = None
) -> tuple[SuperActivation, ...]:
    """The persistent, local spikes of the residual stream ``(L, T, H)``, strongest first, one per channel.

    ``bar`` is the least magnitude; ``first`` ``(L, T, H)`` is the stream in which a channel has to be local, this one if
    none is given. The last layer's output is left out, so that a model of fewer than three layers has none.
    """
    inner = residual[:-1]
    if len(inner) < 2:
        return ()
    peaks = inner.abs().amax(0)
    loudest = peaks.amax(0)
    found = []
    for channel in ((loudest >= bar) & (loudest > 0)).nonzero().flatten().tolist():
        series, order = inner[:, :, channel].abs(), peaks[:, channel].argsort(descending=True)
        local = local_layers((inner if first is None else first[:-1])[:, :, channel], rules).tolist()
        for position in order[peaks[order, channel] >= bar].tolist():
            layers = _held(series[:, position].tolist(), local, rules)
            if layers is not None:
                value, median = float(inner[layers[0], position, channel]), median_of(inner[layers[0]].abs())
                found.append(SuperActivation(layers[0], channel, position, value, median, layers[1]))
                break
    return tuple(sorted(found, key=lambda spike: -abs(spike.value)))


def _held(series: Sequence[float], local: Sequence[bool], rules: Rules) -> tuple[int, int] | None:
    """The first and the last layer that hold one token's magnitude; None where it does not persist, locally.

    The layer after the onset has to hold it, and enough of the later ones; where they do, the channel has to be local.
    """
    least = rules.band * max(series)
    holds = [layer for layer, size in enumerate(series) if size >= least]
    onset, later = holds[0], len(series) - holds[0] - 1
    persists = onset + 1 in holds and len(holds) - 1 >= rules.carried * later
    stands_alone = sum(local[layer] for layer in holds) >= rules.carried * len(holds)
    return (onset, holds[-1]) if persists and stands_alone else None


def local_layers(series: torch.Tensor, rules: Rules) -> torch.Tensor:
    """In which layers ``(L,)`` one channel of the residual stream, ``(L, T)``, is large at few tokens only.

    A channel that is large everywhere is an outlier feature, not a super activation.
    """
    size = series.abs()
    holders = (size >= rules.band * size.amax(1, keepdim=True)).sum(1)
    return holders <= max(1, int(rules.tokens * series.shape[1]))


def median_of(magnitudes: torch.Tensor) -> float:
    """The median of finite float32 values, the lower one of two, as torch has it; a partition takes a ninth of the time."""
    values: Any = magnitudes.flatten().clone().numpy()
    middle = (len(values) - 1) // 2
    values.partition(middle)
    return float(values[middle])


def earliest_writer(spike: SuperActivation, written: Sequence[float], rules: Rules, after: int = -1) -> int | None:
    """The first layer whose down projection adds a good part of the spike, with its sign; None if none does.

    ``written`` is what each layer's down projection adds at the spike's token and channel, looked at from the layer
    behind ``after`` to the spike's onset. The earliest, not the largest: a later writer may only echo.
    """
    sign = 1 if spike.value > 0 else -1
    least = rules.written * abs(spike.value)
    layers = range(after + 1, min(spike.layer + 1, len(written)))
    return next((layer for layer in layers if sign * written[layer] >= least), None)
