"""The cause: a super weight made the grid of its quantization block coarse, and the other weights lost precision.

Proven by replacing the rows of the super weights with the reference's, then their whole matrices.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN, DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding, not_known, ruled_out
from swcheck.gate.diagnosis.evidence.reference_matrices import reference_down_matrix
from swcheck.gate.diagnosis.evidence.weight_change import new_column
from swcheck.lens.replace import maps_replaced
from swcheck.superweights.measurements.weights import down_name, matrix_row

if TYPE_CHECKING:
    from swcheck.lens.replace import Matrix

ADVICE: Final = "write the reference's row again: no quantizer moves a weight"
"""What to do where a super weight stands in another column."""


def find(damaged: DamagedCandidate) -> Finding | Detail:
    """Replace the rows that hold super weights with the reference's, then their whole matrices."""
    if not damaged.weights:
        return ()
    if damaged.relation.channels or [w.column for w in damaged.weights] != [w.column for w in damaged.places]:
        return not_known("whether their blocks' neighbours pay: channels or neurons are permuted")
    if any(isinstance(weight.expert, int) for weight in damaged.weights):
        return not_known("whether their blocks' neighbours pay: no hook replaces the matrix of one expert")
    layers = ", ".join(dict.fromkeys(f"layer {weight.layer}" for weight in damaged.weights))
    tried = []
    whole, unknown = _matrices(damaged)
    for what, maps, rows, why in (
        (*_rows(damaged), "the reference is not here or keeps it packed"),
        ("its whole matrix", whole, {}, unknown),
    ):
        if len(maps) < len(damaged.matrix_names()):
            tried.append(f"{what}: not known, {why}")
            continue
        share, words = damaged.recovered(partial(maps_replaced, maps=maps, rows=rows))
        tried.append(f"{what} given back: {words}")
        if share >= PROVEN:
            proof = (("proof", f"{what} given back through a hook: {words}"),)
            moved = _moved(damaged)
            if moved:
                return Finding(f"super weight moved: {moved}", proof, (), ADVICE, kind="super_weight")
            cause = f"block neighbours of the super weight pay ({layers}, {what})"
            return Finding(cause, proof, damaged.matrix_names(), kind="block_neighbours")
    return ruled_out(f"neighbours in the super weights' blocks ({'; '.join(tried)})")


def _moved(damaged: DamagedCandidate) -> str:
    """Return words for super weights whose values stand in other columns, where they do harm; empty if none does."""
    pairs = zip(damaged.weights, damaged.places, strict=True)
    columns = {weight: new_column(damaged.candidate, damaged.reference, weight, there) for weight, there in pairs}
    return ", ".join(f"{weight.place} to column {new}" for weight, new in columns.items() if new is not None)


def _rows(damaged: DamagedCandidate) -> tuple[str, dict[str, torch.Tensor], dict[str, list[int]]]:
    """Return words for the reference's rows with super weights, their values ``(N, F)`` and indices by module."""
    maps: dict[str, torch.Tensor] = {}
    rows: dict[str, list[int]] = {}
    reference = damaged.reference
    known = reference.is_measurable or all(matrix_row.knows(reference, weight) for weight in damaged.weights)
    found = [(weight, matrix_row(reference, weight)) for weight in damaged.weights] if known else []
    for weight, row in found:
        name = down_name(damaged.candidate, weight.layer, weight.expert)
        if row is not None and weight.row not in rows.get(name, []):
            rows.setdefault(name, []).append(weight.row)
            maps[name] = torch.cat([*([maps[name]] if name in maps else []), row[None].to(maps.get(name, row).dtype)])
    return f"row {', '.join(str(row) for several in rows.values() for row in several)}", maps, rows


def _matrices(damaged: DamagedCandidate) -> tuple[dict[str, Matrix], str]:
    """Return the reference's matrices that hold super weights by module, and words why one of them is not known."""
    found: dict[str, Matrix] = {}
    why = ""
    for key in dict.fromkeys((weight.layer, weight.expert) for weight in damaged.weights):
        name = down_name(damaged.candidate, *key)
        whole = reference_down_matrix(damaged, key, name)
        if isinstance(whole, str):
            why = whole
        else:
            found[name] = whole
    return found, why
