"""What became of a super weight, in words: zeroed, rounded away, moved, clipped, flipped, amplified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch

from swcheck.limits import DEFAULTS

if TYPE_CHECKING:
    from swcheck.records import SuperWeight
    from swcheck.subject import Subject

ALIKE: Final = 0.1
"""Two weights within this share of each other count as the same one."""

ENDS: Final = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "float16": 65504.0}
"""The largest finite number of the formats that weights are saturated in."""


def fate_of(ratios: Sequence[float]) -> str:
    """What became of what the super weights write, by its ratios to the reference's: the gravest that is true of one."""
    if any(ratio <= -DEFAULTS["contribution"].low for ratio in ratios):  # type: ignore[operator]
        return "has its sign flipped"
    grown = all(not ratio < 1 for ratio in ratios)
    return "is too large" if grown and any(not DEFAULTS["contribution"].holds(ratio) for ratio in ratios) else "is lost"


def weight_cause(candidate: Subject, reference: Subject, weight: SuperWeight, ratio: float) -> str:
    """What became of a super weight that writes ``ratio`` of what it should."""
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
    """The format whose largest number now stands there: larger ones were saturated."""
    value = abs(candidate.weights((weight,))[0]) if weight.layer < candidate.portrait().layers else 0.0
    return next((f"{name} ({end:,.0f})" for name, end in ENDS.items() if value == end), None)


def _moved_to(candidate: Subject, reference: Subject, weight: SuperWeight) -> int | None:
    """The column that now holds what stood at ``weight``, where it did not before."""
    before, after = reference.row(weight), candidate.row(weight)
    if before is None or after is None or not before[weight.column]:
        return None
    value = before[weight.column]
    new = ((after / value - 1).abs() < ALIKE) & ((before / value - 1).abs() >= ALIKE)
    return int(new.nonzero()[0]) if new.any() else None


def _on_a_grid(candidate: Subject, reference: Subject, weight: SuperWeight) -> bool | None:
    """Whether the candidate's row knows few values where the reference's knows many, as a rounded one does.

    None where one of the rows is not known, unless the candidate's own scheme says that it is rounded.
    """
    before, after = reference.row(weight), candidate.row(weight)
    if before is None or after is None:
        return True if candidate.scheme is not None and candidate.scheme.weight_bits < 16 else None
    return len(torch.unique(after)) * 2 <= len(torch.unique(before))
