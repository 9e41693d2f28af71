"""The cause: the range of most linear maps is clipped. Proven by giving back the values beyond it, and no others.

Rounding leaves an error of at most half a step. A value whose error is far larger than those of its neighbours, and
which stands at their end, was cut off.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, ruled_out
from swcheck.gate.diagnosis.evidence.reference_matrices import reference_matrix
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown
from swcheck.lens.architecture.storage import plain_weight
from swcheck.lens.replace import maps_replaced

if TYPE_CHECKING:
    from swcheck.lens.replace import Matrix

NEIGHBOURS: Final = 32
"""The error of a value is compared with those of this many consecutive ones: quantizers share a step among so many."""

BEYOND_ROUNDING: Final = 6.0
"""Errors of rounding are at most twice their median; one above this multiple of it is none."""

MOST_MAPS: Final = 0.5
"""The range is a cause of its own if it is clipped in at least this share of all linear maps."""

ADVICE: Final = "a wider range: clip less, or keep the largest values apart from the grid"


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Give back the values that were cut off, in all linear maps."""
    candidate, reference = damaged.candidate, damaged.reference
    if why_responses_unknown(reference) or damaged.relation.kind in {"permuted", "rotated"}:
        return ()
    maps: dict[str, Matrix] = {}
    kept, count, total = [], 0, 0
    errors = [name for name, error in map_errors(candidate, reference) if error > 0]
    for name in (f"{candidate.anatomy.path}.{inner}" for inner in errors):
        weight, wanted = (
            plain_weight(candidate.module.get_submodule(name)),
            reference_matrix(candidate, reference, name),
        )
        if weight is None or isinstance(wanted, str):
            continue
        theirs = (wanted() if callable(wanted) else wanted).float().cpu()
        cut = cut_off(weight.float().cpu(), theirs)
        total += weight.numel()
        if bool(cut.any()):
            maps[name] = partial(_unclipped, weight, wanted)
            kept.append(float((weight.float().cpu()[cut] / theirs[cut]).median()))
            count += int(cut.sum())
    if not maps or len(maps) < MOST_MAPS * len(map_errors(candidate, reference)):
        return ()
    share, words = damaged.recovered(partial(maps_replaced, maps=maps, rows={}))
    values = f"{count:,} values, {count / total:.2%} of all, are cut to {statistics.median(kept):.0%} in the median"
    if share < PROVEN:
        return ruled_out(f"a clipped range ({values}; given back: {words})")
    cause = f"a clipped range: the largest values of {len(maps)} linear maps are cut off"
    rows = (("proof", f"these values alone given back: {words}"), ("clipped", values))
    return Finding(cause, rows, (), ADVICE, kind="clipping")


def cut_off(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return which values of a matrix ``(R, C)`` were cut off at the end of a range, bool ``(R, C)``."""
    width = NEIGHBOURS if ours.shape == theirs.shape and ours.shape[1] % NEIGHBOURS == 0 else ours.shape[1]
    if ours.shape != theirs.shape:
        return torch.zeros_like(ours, dtype=torch.bool)
    one, other = ours.reshape(-1, width), theirs.reshape(-1, width)
    errors = (one - other).abs()
    beyond = errors > BEYOND_ROUNDING * errors.median(1, keepdim=True).values
    at_the_end = torch.where(other > 0, one >= one.amax(1, keepdim=True), one <= one.amin(1, keepdim=True))
    return (beyond & at_the_end & (one != 0) & (other.abs() > one.abs())).reshape(ours.shape)


def _unclipped(weight: torch.Tensor, wanted: Matrix) -> torch.Tensor:
    ours, theirs = weight.float().cpu(), (wanted() if callable(wanted) else wanted).float().cpu()
    return torch.where(cut_off(ours, theirs), theirs, ours)
