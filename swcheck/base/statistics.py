"""The arithmetic of verdicts: pure functions of losses in nats and of ratios.

Shapes: B windows, T tokens. A loss is nats per predicted token; a window of T tokens has T - 1 of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import torch

from swcheck.base.records import Limit

STANDARD_ERRORS: Final = 3.0
"""A measured value that is at most this many standard errors inside its limit has the outcome ``near``."""

LARGEST_EXPONENT: Final = 700.0
"""Larger exponents are cut to this one, because exp(710) overflows a float64."""


Nats: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
"""The losses of the same tokens before and after an edit."""


def capped_collapse(intact: torch.Tensor, ablated: torch.Tensor, vocabulary: int) -> float:
    """Return by how many nats the mean loss rises when weights are zeroed, at most up to the loss of guessing.

    ``intact`` and ``ablated`` are losses before and after. The cap is ln(``vocabulary``) minus the intact mean, and 0
    if the intact model is no better than guessing. A rise that is not finite counts as the cap.
    """
    cap = max(0.0, math.log(vocabulary) - float(intact.mean()))
    rise = float(ablated.mean()) - float(intact.mean())
    return min(rise, cap) if math.isfinite(rise) else cap


def collapse_share(ours: Nats, theirs: Nats, vocabulary: int) -> float:
    """Return the ``capped_collapse`` of a candidate over that of its reference, which is above 0; at least 0.

    Each is the losses intact and with the super weights zeroed.
    """
    return max(0.0, capped_collapse(*ours, vocabulary) / capped_collapse(*theirs, vocabulary))


def collapse_ratio(intact: torch.Tensor, ablated: torch.Tensor) -> float:
    """Return the perplexity with weights zeroed over the perplexity intact, not capped; infinite if it overflows."""
    rise = float(ablated.mean()) - float(intact.mean())
    return math.exp(rise) if rise < LARGEST_EXPONENT else math.inf


def factor_of(nats: float) -> float:
    """Return the ratio of two perplexities that are ``nats`` per token apart, which is no NaN; cut to ``LARGEST_EXPONENT``."""
    return math.exp(min(LARGEST_EXPONENT, nats))


def perplexity_of(nats: torch.Tensor) -> float:
    """Return the perplexity of these losses. NaN stays NaN; the mean is cut to ``LARGEST_EXPONENT``."""
    if math.isnan(float(nats.mean())):
        return math.nan
    return factor_of(float(nats.mean()))


def ratio_of(one: float, other: float) -> float:
    """Return ``one`` over ``other``; NaN if ``other`` is zero."""
    return one / other if other else math.nan


def worst_of(ratios: Sequence[float], limit: Limit) -> int:
    """Return the index of the worst ratio: outside the limit before inside, then the farthest from 1."""

    def severity(ratio: float) -> tuple[bool, float]:
        distance = abs(math.log(ratio)) if math.isfinite(ratio) and ratio > 0 else math.inf
        return not limit.holds(ratio), distance

    return max(range(len(ratios)), key=lambda number: severity(ratios[number]))


def standard_error(difference: torch.Tensor) -> float:
    """Return the standard error of the mean of paired loss differences ``(B, T - 1)``.

    The windows are the independent samples. With a single window, its tokens are.
    """
    means = difference.mean(1)
    if len(means) < 2:
        return float(difference.std() / math.sqrt(difference.numel())) if difference.numel() > 1 else 0.0
    return float(means.std() / math.sqrt(len(means)))


def is_near(limit: Limit, measured: float, slack: float) -> bool:
    """Return whether ``measured`` is within ``slack`` of an end of its limit."""
    ends = [end for end in (limit.low, limit.high) if end is not None]
    return any(abs(measured - end) <= slack for end in ends)


def is_near_ratio(limit: Limit, ratio: float, slack: float) -> bool:
    """Return whether ``ratio`` is within ``slack`` of an end of its limit; ``slack`` is a log difference, in nats."""
    ends = [end for end in (limit.low, limit.high) if end]
    return ratio > 0 and any(abs(math.log(ratio / end)) <= slack for end in ends)


def percentiles(values: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return percentiles of ``values`` by their names: "min", "max", or a number from 0 to 100 as text."""
    ends = {"min": 0.0, "max": 1.0}
    shares = [ends[name] if name in ends else float(name) / 100 for name in names]
    found = values.double().flatten().quantile(torch.tensor(shares, dtype=torch.float64))
    return dict(zip(names, found.tolist(), strict=True))
