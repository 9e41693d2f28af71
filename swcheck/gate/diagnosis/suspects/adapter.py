"""An adapter (LoRA) merged once too often, not at all, or into another base: the maps differ by a matrix of low rank.

Training of all weights and rounding change a matrix in its full rank; a merged adapter adds a product of two thin
matrices. R rows, C columns.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from swcheck.gate.diagnosis.evidence.damaged_candidate import LITTLE_LOSS
from swcheck.gate.diagnosis.evidence.reference_matrices import reference_matrix
from swcheck.gate.diagnosis.evidence.suspect import Suspect
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown
from swcheck.lens.architecture.storage import plain_weight
from swcheck.lens.replace import maps_replaced

if TYPE_CHECKING:
    from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
    from swcheck.lens.replace import Matrix

LEAST_ERROR: Final = 2e-3
"""A map is compared if its answers differ by more than this."""

LARGEST_RANK: Final = 256
"""Adapters have a rank of at most this."""

LARGEST_SHARE: Final = 0.25
"""A rank is low if it is at most this share of the smaller width."""

GAP: Final = 4.0
"""The last singular value of an adapter is at least this multiple of the next one, which is rounding."""

TRIED: Final = 3
"""If none of this many maps, those with the largest errors, differs by a low rank, no other is compared."""

DENSE: Final = 0.5
"""An adapter changes at least this share of the rows, and of the columns, of a matrix."""

ALL_OF_IT: Final = 0.95
"""It is said, since it may have been merged twice, if half of the difference returns at least this share of the loss."""

ADVICE: Final = "merge the adapter once, with its own scale, into the base that it was trained on"


def suspects(damaged: DamagedCandidate) -> list[Suspect]:
    """Return a suspect for the maps, two or more, that differ from the reference's by a matrix of one low rank."""
    candidate, reference = damaged.candidate, damaged.reference
    if why_responses_unknown(reference) or damaged.relation.kind in {"permuted", "rotated"}:
        return []
    maps: dict[str, Matrix] = {}
    ranks: Counter[int] = Counter()
    for number, (inner, error) in enumerate(map_errors(candidate, reference)):
        if error < LEAST_ERROR or (number == TRIED and not maps):
            break
        name = f"{candidate.anatomy.path}.{inner}"
        weight, wanted = (
            plain_weight(candidate.module.get_submodule(name)),
            reference_matrix(candidate, reference, name),
        )
        if weight is None or isinstance(wanted, str):
            continue
        rank = rank_of_difference(weight, wanted() if callable(wanted) else wanted)
        if rank:
            ranks[rank] += 1
            maps[name] = wanted
    if len(maps) < 2:
        return []
    words = (
        f"an adapter merged again, not at all, or of another base: {len(maps)} linear maps differ by a matrix of rank"
    )
    words += f" {ranks.most_common(1)[0][0]}{_half_of_it(damaged, maps)}"
    return [Suspect("adapter", words, ADVICE, maps=maps, size=1.5)]


def rank_of_difference(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """Return the rank of ``ours - theirs``, both ``(R, C)``, if it is low and exact up to the rounding of ``ours``; else 0."""
    if ours.shape != theirs.shape:
        return 0
    precision = max(torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0 for one in (ours, theirs))
    theirs = theirs.float().cpu()
    difference = ours.float().cpu() - theirs
    touched = difference.abs() > precision * theirs.abs()
    if min(float(touched.any(dim).float().mean()) for dim in (0, 1)) < DENSE:
        return 0
    tried = min(2 * LARGEST_RANK, min(difference.shape) // 2)
    values = _largest_singular_values(difference, tried)
    left = (difference.square().sum() - values.square().cumsum(0)).clamp_min(0).sqrt()  # beyond each rank
    noise = torch.finfo(values.dtype).eps * values[0].clamp_min(1e-30)
    rank = int((values[:-1] / values[1:].clamp_min(noise)).argmax()) + 1
    is_low = rank <= min(LARGEST_RANK, LARGEST_SHARE * min(difference.shape))
    rounding = max(precision * float(theirs.norm()), 1e-3 * float(difference.norm()))
    is_exact = float(left[rank - 1]) <= rounding and float(values[rank - 1]) >= GAP * float(values[rank])
    return rank if is_low and is_exact else 0


def _largest_singular_values(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """Return the largest ``count`` singular values, from a random sketch: exact where the rank is lower than that."""
    drawn = torch.randn(matrix.shape[1], count, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(matrix @ drawn).Q
    for turned in (matrix.T, matrix):  # orthogonal in between, so that small values are not lost beside large ones
        basis = torch.linalg.qr(turned @ basis).Q
    values: torch.Tensor = torch.linalg.svdvals(basis.T @ matrix)
    return values


def _half_of_it(damaged: DamagedCandidate, maps: dict[str, Matrix]) -> str:
    """Return words for an adapter of which half is enough, as where it was merged twice; else empty."""
    if damaged.candidate_nats - damaged.reference_nats < LITTLE_LOSS:
        return ""
    half = {name: partial(_halfway, damaged, name, wanted) for name, wanted in maps.items()}
    share, _ = damaged.recovered(partial(maps_replaced, maps=half, rows={}))
    return f", and half of it would lose nothing ({share:.0%} of the loss returns)" if share >= ALL_OF_IT else ""


def _halfway(damaged: DamagedCandidate, name: str, wanted: Matrix) -> torch.Tensor:
    weight = plain_weight(damaged.candidate.module.get_submodule(name))
    theirs = wanted() if callable(wanted) else wanted
    return theirs if weight is None else (weight.float() + theirs.to(weight.device).float()) / 2
