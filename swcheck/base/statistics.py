"""The arithmetic of verdicts: pure functions of nats and ratios, and how their numbers are said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from swcheck.base.records import Limit

STANDARD_ERRORS: Final = 3.0
"""What is within so many of its standard errors is noise: a ratio that near to its limit is ``near``."""

LARGEST_EXPONENT: Final = 700.0
"""The largest exponent that is taken; e to the 710 overflows a float64."""


def capped_collapse(intact: torch.Tensor, ablated: torch.Tensor, vocabulary: int) -> float:
    """The rise of the mean loss in nats, at most ln(vocabulary) minus the intact loss; not finite counts as the cap.

    Where the intact loss is that of guessing already, the cap is 0.
    """
    cap = max(0.0, math.log(vocabulary) - float(intact.mean()))
    rise = float(ablated.mean()) - float(intact.mean())
    return min(rise, cap) if math.isfinite(rise) else cap


def collapse_ratio(intact: torch.Tensor, ablated: torch.Tensor) -> float:
    """Perplexity without the weights over perplexity with them, as measured; infinite where that overflows."""
    rise = float(ablated.mean()) - float(intact.mean())
    return math.exp(rise) if rise < LARGEST_EXPONENT else math.inf


def perplexity_of(nats: torch.Tensor) -> float:
    """The exponential of the mean; NaN stays NaN, what would overflow stays finite."""
    if math.isnan(float(nats.mean())):
        return math.nan
    return math.exp(min(LARGEST_EXPONENT, float(nats.mean())))


def ratio_of(one: float, other: float) -> float:
    """``one`` over ``other``; NaN over zero."""
    return one / other if other else math.nan


def worst_of(ratios: Sequence[float], limit: Limit) -> int:
    """The index of the worst ratio: one outside the limit before one inside, then the one farthest from 1."""

    def badness(ratio: float) -> tuple[bool, float]:
        distance = abs(math.log(ratio)) if math.isfinite(ratio) and ratio > 0 else math.inf
        return not limit.holds(ratio), distance

    return max(range(len(ratios)), key=lambda number: badness(ratios[number]))


def standard_error(difference: torch.Tensor) -> float:
    """The standard error of a mean of paired differences ``(B, T - 1)``, windows taken as the independent units."""
    means = difference.mean(1)
    if len(means) < 2:
        return float(difference.std() / math.sqrt(difference.numel())) if difference.numel() > 1 else 0.0
    return float(means.std() / math.sqrt(len(means)))


def is_near(limit: Limit, measured: float, slack: float) -> bool:
    """Whether a value inside its limit is within ``slack`` of an end of it."""
    ends = [end for end in (limit.low, limit.high) if end is not None]
    return any(abs(measured - end) <= slack for end in ends)


def is_near_ratio(limit: Limit, ratio: float, slack: float) -> bool:
    """As ``near`` for a ratio, whose ``slack`` is in nats: a part of it."""
    ends = [end for end in (limit.low, limit.high) if end]
    return ratio > 0 and any(abs(math.log(ratio / end)) <= slack for end in ends)
