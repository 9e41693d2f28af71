"""Describes how a super weight was changed: zeroed, rounded away, moved, clipped, sign flipped, amplified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch

from swcheck.base.limits import DEFAULTS
from swcheck.superweights.measurements.weights import matrix_row, weight_values

if TYPE_CHECKING:
    from swcheck.base.records import SuperWeight
    from swcheck.superweights.subject.subject import Subject

SAME_VALUE: Final = 0.1
"""Two weights within this share of each other count as the same one."""

LARGEST_FINITE: Final = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "float16": 65504.0}
"""The largest finite number of the float formats that weights may be clipped to."""


def contribution_change(ratios: Sequence[float]) -> str:
    """Return words for the worst change of the contributions, given their ratios to the reference's."""
    if any(ratio <= -DEFAULTS["contribution"].low for ratio in ratios):  # type: ignore[operator]
        return "has its sign flipped"
    grown = all(not ratio < 1 for ratio in ratios)
    return "is too large" if grown and any(not DEFAULTS["contribution"].holds(ratio) for ratio in ratios) else "is lost"


def weight_change(candidate: Subject, reference: Subject, weight: SuperWeight, there: SuperWeight, ratio: float) -> str:
    """Return words for how a super weight was changed, given the ratio of its contribution to the reference's.

    ``there`` is its place in the candidate, also in what follows.
    """
    place = f"super weight at {weight.place}"
    if not math.isfinite(ratio):
        return f"{place} is not finite"
    moved = new_column(candidate, reference, weight, there)
    if abs(ratio) < 0.25 and moved is not None:
        return f"{place} moved to column {moved}"
    if abs(ratio) < 0.02:
        how = {True: "rounded away", False: "zeroed", None: "gone"}[_is_rounded(candidate, reference, weight, there)]
        return f"{place} {how} (x{abs(ratio):.2f})"
    if ratio < 0:
        return f"{place} has its sign flipped (x{ratio:.2f})"
    if ratio < 1:
        end = _saturated_format(candidate, there)
        how = "clipped or rounded down" if _is_rounded(candidate, reference, weight, there) else "weakened"
        return f"{place} {f'cut at the end of the range of {end}' if end else how} (x{ratio:.2f})"
    return f"{place} amplified (x{ratio:.2f})"


def _saturated_format(candidate: Subject, weight: SuperWeight) -> str | None:
    """Return the format whose largest finite number the weight is: larger values are clipped to it; else None."""
    value = abs(weight_values(candidate, (weight,))[0])
    return next((f"{name} ({end:,.0f})" for name, end in LARGEST_FINITE.items() if value == end), None)


def new_column(candidate: Subject, reference: Subject, weight: SuperWeight, there: SuperWeight) -> int | None:
    """Return the column of the row that has the value of ``weight`` in the candidate only; None if there is none."""
    before, after = matrix_row(reference, weight), matrix_row(candidate, there)
    if before is None or after is None or not before[weight.column]:
        return None
    value = before[weight.column]
    new = ((after / value - 1).abs() < SAME_VALUE) & ((before / value - 1).abs() >= SAME_VALUE)
    return int(new.nonzero()[0]) if new.any() else None


def _is_rounded(candidate: Subject, reference: Subject, weight: SuperWeight, there: SuperWeight) -> bool | None:
    """Return whether the candidate's row is rounded: it has at most half as many different values as the reference's.

    If a row is not known, the candidate's scheme decides; None if that does not say that it is quantized.
    """
    before, after = matrix_row(reference, weight), matrix_row(candidate, there)
    if before is None or after is None:
        return True if candidate.scheme is not None and candidate.scheme.weight_bits < 16 else None
    return len(torch.unique(after)) * 2 <= len(torch.unique(before))
