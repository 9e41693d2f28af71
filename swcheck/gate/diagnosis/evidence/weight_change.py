"""How a super weight was changed, in words: zeroed, rounded away, moved, clipped, sign flipped, amplified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch

from swcheck.base.limits import DEFAULTS
from swcheck.superweights.measurements.model_sample import model_sample
from swcheck.superweights.measurements.weights import matrix_row, weight_values

if TYPE_CHECKING:
    from swcheck.base.records import SuperWeight
    from swcheck.superweights.subject.subject import Subject

ALIKE: Final = 0.1
"""Two weights within this share of each other count as the same one."""

ENDS: Final = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "float16": 65504.0}
"""The largest finite number of the formats that weights are saturated in."""


def contribution_change(ratios: Sequence[float]) -> str:
    """Return how the contributions changed, by their ratios to the reference's: the worst change of any of them."""
    if any(ratio <= -DEFAULTS["contribution"].low for ratio in ratios):  # type: ignore[operator]
        return "has its sign flipped"
    grown = all(not ratio < 1 for ratio in ratios)
    return "is too large" if grown and any(not DEFAULTS["contribution"].holds(ratio) for ratio in ratios) else "is lost"


def weight_change(candidate: Subject, reference: Subject, weight: SuperWeight, ratio: float) -> str:
    """Return how a super weight was changed that writes ``ratio`` of what it writes in the reference."""
    place = f"super weight at layer {weight.layer} [{weight.row}, {weight.column}]"
    if not math.isfinite(ratio):
        return f"{place} is not finite"
    moved = _moved_to(candidate, reference, weight)
    if abs(ratio) < 0.25 and moved is not None:
        return f"{place} moved to column {moved}"
    if abs(ratio) < 0.02:
        how = {True: "rounded away", False: "zeroed", None: "gone"}[_on_a_grid(candidate, reference, weight)]
        return f"{place} {how} (x{abs(ratio):.2f})"
    if ratio < 0:
        return f"{place} has its sign flipped (x{ratio:.2f})"
    if ratio < 1:
        end = _end_of_range(candidate, weight)
        how = "clipped or rounded down" if _on_a_grid(candidate, reference, weight) else "weakened"
        return f"{place} {f'cut at the end of the range of {end}' if end else how} (x{ratio:.2f})"
    return f"{place} amplified (x{ratio:.2f})"


def _end_of_range(candidate: Subject, weight: SuperWeight) -> str | None:
    """The format whose largest finite number the weight has: larger values were saturated."""
    value = abs(weight_values(candidate, (weight,))[0]) if weight.layer < model_sample(candidate).layers else 0.0
    return next((f"{name} ({end:,.0f})" for name, end in ENDS.items() if value == end), None)


def _moved_to(candidate: Subject, reference: Subject, weight: SuperWeight) -> int | None:
    """The column of the candidate's row that holds the value of ``weight``, and did not in the reference; None if none."""
    before, after = matrix_row(reference, weight), matrix_row(candidate, weight)
    if before is None or after is None or not before[weight.column]:
        return None
    value = before[weight.column]
    new = ((after / value - 1).abs() < ALIKE) & ((before / value - 1).abs() >= ALIKE)
    return int(new.nonzero()[0]) if new.any() else None


def _on_a_grid(candidate: Subject, reference: Subject, weight: SuperWeight) -> bool | None:
    """Whether the candidate's row has few different values where the reference's has many, as a rounded one has.

    None where one of the rows is not known, unless the candidate's own scheme says that it is rounded.
    """
    before, after = matrix_row(reference, weight), matrix_row(candidate, weight)
    if before is None or after is None:
        return True if candidate.scheme is not None and candidate.scheme.weight_bits < 16 else None
    return len(torch.unique(after)) * 2 <= len(torch.unique(before))
