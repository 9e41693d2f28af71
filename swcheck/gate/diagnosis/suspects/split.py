"""Rows of one linear map that ended up in another: a fused matrix (q, k and v, or gate and up) that was split wrongly.

The maps beside each other in a module that have the same input are taken as one matrix. If nearly every row of the
candidate's is a row of the reference's, and many belong to another map, the fused matrix was cut at other rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from swcheck.gate.diagnosis.evidence.reference_matrices import reference_matrix
from swcheck.gate.diagnosis.evidence.suspect import Suspect
from swcheck.gate.diagnosis.evidence.tensor_change import MATCHED_ROWS, SAME_ROW
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown
from swcheck.lens.architecture.storage import plain_weight

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
    from swcheck.lens.replace import Matrix

WRONG: Final = 0.3
"""The answers of a map with rows of another one differ by more than this: a twentieth of its rows gives as much."""

SAMPLED_ROWS: Final = 512
"""At most this many rows of the maps beside each other, evenly spaced, are sought."""

LEAST_ELSEWHERE: Final = 0.05
"""The matrix was split wrongly if at least this share of the rows belongs to another map."""

MOST_GROUPS: Final = 64
"""At most this many groups of maps are compared."""

ADVICE: Final = "split the fused matrix as its family stores it: by head, or in whole parts"


def suspects(damaged: DamagedCandidate) -> list[Suspect]:
    """Return a suspect for the maps that hold each other's rows; those of one kind in several layers are one."""
    if why_responses_unknown(damaged.reference) or damaged.relation.kind in {"permuted", "rotated"}:
        return []
    found: dict[tuple[str, ...], dict[str, Matrix]] = {}
    layers: dict[tuple[str, ...], list[int]] = {}
    for names in list(_wrong_groups(damaged))[:MOST_GROUPS]:
        wanted = _wanted_if_mixed(damaged, names)
        if wanted:
            paths = tuple(name.partition(".")[2].rpartition(".")[2] for name in names)
            found.setdefault(paths, {}).update(wanted)
            layers.setdefault(paths, []).append(int(names[0].partition(".")[0]))
    return [
        Suspect("order", _words(paths, sorted(layers[paths])), ADVICE, maps=maps, size=2.0)
        for paths, maps in found.items()
    ]


def _words(paths: Sequence[str], layers: Sequence[int]) -> str:
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers, first layer {layers[0]},"
    return (
        f"{', '.join(paths[:-1])} and {paths[-1]} of {where} hold each other's rows: a fused matrix was split wrongly"
    )


def _wrong_groups(damaged: DamagedCandidate) -> Iterator[list[str]]:
    """Yield the names (``1.self_attn.q_proj``) of maps in one module that have the same input width, two of them wrong."""
    groups: dict[tuple[str, int], list[str]] = {}
    errors = dict(map_errors(damaged.candidate, damaged.reference))
    order = {name: number for number, (name, _) in enumerate(damaged.candidate.module.named_modules())}
    path = damaged.candidate.anatomy.path
    for name in sorted(errors, key=lambda name: order.get(f"{path}.{name}", 0)):
        weight = plain_weight(damaged.candidate.module.get_submodule(f"{path}.{name}"))
        if weight is not None:
            groups.setdefault((name.rpartition(".")[0], weight.shape[1]), []).append(name)
    for names in groups.values():
        wrong = [name for name in names if errors[name] > WRONG]
        if len(wrong) > 1:
            yield wrong


def _wanted_if_mixed(damaged: DamagedCandidate, names: Sequence[str]) -> dict[str, Matrix]:
    """Return the reference's matrices by name if the candidate's rows are theirs, and stand in other maps; else nothing."""
    path = damaged.candidate.anatomy.path
    wanted: dict[str, Matrix] = {}
    ours, theirs = [], []
    for name in (f"{path}.{name}" for name in names):
        weight = plain_weight(damaged.candidate.module.get_submodule(name))
        matrix = reference_matrix(damaged.candidate, damaged.reference, name)
        if weight is None or isinstance(matrix, str):
            return {}
        wanted[name] = matrix
        ours.append(weight.float().cpu())
        theirs.append((matrix() if callable(matrix) else matrix).float().cpu())
    return wanted if are_mixed(ours, theirs) else {}


def are_mixed(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    """Return whether the rows of several matrices ``(R, C)`` are those of ``theirs``, and some stand in another one."""
    ours_of, theirs_of = (
        torch.cat([torch.full((len(matrix),), number) for number, matrix in enumerate(several)])
        for several in (ours, theirs)
    )
    ours_rows, theirs_rows = (_unit_rows(torch.cat(list(several))) for several in (ours, theirs))
    sampled = torch.linspace(0, len(ours_rows) - 1, min(SAMPLED_ROWS, len(ours_rows))).long()
    best = (ours_rows[sampled] @ theirs_rows.T).max(1)
    found = best.values >= SAME_ROW
    elsewhere = found & (theirs_of[best.indices] != ours_of[sampled])
    return float(found.float().mean()) >= MATCHED_ROWS and float(elsewhere.float().mean()) >= LEAST_ELSEWHERE


def _unit_rows(matrix: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(matrix, dim=1)
