"""Norms, biases, embeddings, heads and other parameters that differ, and linear maps whose change has a known form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from swcheck.gate.diagnosis.evidence.reference_matrices import (
    expert_stacks,
    experts_apart,
    other_parameters,
    reference_matrix,
    reference_parameter,
)
from swcheck.gate.diagnosis.evidence.suspect import Suspect
from swcheck.gate.diagnosis.evidence.tensor_change import (
    SAME,
    TensorChange,
    change_in_few_values,
    places_of_rows,
    tensor_change,
)
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown
from swcheck.lens.architecture.norm_gain import gain_offset
from swcheck.lens.architecture.storage import plain_weight
from swcheck.lens.architecture.tracing import is_norm
from swcheck.superweights.measurements.weights import down_name

if TYPE_CHECKING:
    from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
    from swcheck.lens.replace import Matrix

ADVICE: Final = "write the reference's tensor again, or convert it as the others were"
MOST_ROWS: Final = 4
"""At most this many tokens of changed embedding rows are named."""
FEW_ROWS: Final = 0.5
"""The rows of an embedding are named if at most this share of them differs."""
MAP: Final = "linear map"
STACK: Final = "expert tensor"
MOVED: Final = "has others in place"
PLURALS: Final = {"bias": "biases"}
MOST_MATCHED: Final = 24
"""Moved rows are sought in at most this many linear maps, those with the largest errors."""
LEAST_ERROR: Final = 0.15
"""A linear map is compared value by value if its answers differ by more than this."""
LEAST_OF_FEW: Final = 1e-3
MOST_DENSE: Final = 4
"""Single values are sought in maps whose answers differ by more than this, until this many maps differ in all values."""
LARGEST_EXPERT: Final = 2**12
"""At most this many values of each expert, evenly spaced, tell whether experts stand at other places."""


def suspects(damaged: DamagedCandidate, explained: Collection[str] = ()) -> list[Suspect]:
    """Return a suspect for every parameter that differs, and for every linear map with a structural change.

    ``explained`` are names of parameters and maps that another suspect gives back.
    """
    if damaged.relation.kind in {"permuted", "rotated"}:
        return []
    changed = (*_other_parameters(damaged), *_experts(damaged), *_maps(damaged), *_single_values(damaged))
    found = sorted((one for one in changed if one.name not in explained), key=lambda one: -one.size)
    alike: dict[tuple[str, str], list[_Changed]] = {}
    for one in found:
        alike.setdefault((one.what, one.change.words.partition(" (x")[0]), []).append(one)
    return [_suspect(several) for several in alike.values()]


@dataclass(frozen=True)
class _Changed:
    """A tensor that differs: ``what`` it is, its ``name``, how it changed, and the reference's values."""

    what: str
    name: str
    change: TensorChange
    wanted: Matrix
    rows: str = ""

    @property
    def size(self) -> float:
        return self.change.size


def _suspect(several: Sequence[_Changed]) -> Suspect:
    """Return one suspect for tensors of one kind that are changed alike."""
    first = several[0]
    words = f"{first.what} {first.name.removesuffix('.weight')}".strip()
    if len(several) > 1:
        words = f"{len(several)} {PLURALS.get(first.what, first.what + 's')} alike, first {first.name.removesuffix('.weight')}:"
    values = {one.name: one.wanted for one in several}
    maps, parameters = (values, {}) if first.what == MAP else ({}, values)
    return Suspect("tensor", f"{words} {first.change.words}{first.rows}", ADVICE, {}, parameters, maps, first.size)


def _other_parameters(damaged: DamagedCandidate) -> Iterator[_Changed]:
    for name, ours in other_parameters(damaged.candidate).items():
        theirs = reference_parameter(damaged, name)
        if isinstance(theirs, str):
            continue
        common = min(len(ours), len(theirs)) if ours.dim() == 2 else len(ours)
        change = _parameter_change(damaged, name, ours[:common], theirs[:common])
        if change is not None and ours.shape[1:] == theirs.shape[1:] and (ours.dim() == 2 or len(ours) == len(theirs)):
            wanted = theirs if len(theirs) == len(ours) else _padded(ours, theirs)
            rows = _rows_words(damaged, ours[:common], theirs[:common], change) if ours.dim() == 2 else ""
            yield _Changed(_kind_of(damaged, name), name, change, wanted, rows)


def _parameter_change(
    damaged: DamagedCandidate, name: str, ours: torch.Tensor, theirs: torch.Tensor
) -> TensorChange | None:
    """Return how a parameter differs; a norm that is stored less 1 is compared as what it multiplies by."""
    change = tensor_change(ours, theirs)
    if change is None or ours.dim() != 1 or not name.endswith("weight"):
        return change
    module = damaged.candidate.module.get_submodule(name.rpartition(".")[0])
    offset = gain_offset(module) if is_norm(module) else 0.0
    return tensor_change(ours + offset, theirs + offset) if offset else change


def _maps(damaged: DamagedCandidate) -> Iterator[_Changed]:
    candidate, reference = damaged.candidate, damaged.reference
    if why_responses_unknown(reference):
        return
    path = candidate.anatomy.path
    wrong = [name for name, error in map_errors(candidate, reference) if error > LEAST_ERROR]
    moved: set[str] = set()  # the paths inside a layer whose rows were found moved: sought in every layer
    for number, inner in enumerate(wrong):
        name, place = f"{path}.{inner}", inner.partition(".")[2]
        weight = plain_weight(candidate.module.get_submodule(name))
        wanted = reference_matrix(candidate, reference, name)
        if weight is None or isinstance(wanted, str):
            continue
        change = tensor_change(
            weight, wanted() if callable(wanted) else wanted, match_rows=number < MOST_MATCHED or place in moved
        )
        if change is not None and change.is_structural and not _has_super_weight(damaged, name, change):
            moved.add(place)
            yield _Changed(MAP, name, change, wanted)


def _single_values(damaged: DamagedCandidate) -> Iterator[_Changed]:
    """Yield the linear maps with small errors in which a few values differ that are no super weights."""
    candidate, reference = damaged.candidate, damaged.reference
    if why_responses_unknown(reference):
        return
    path, dense = candidate.anatomy.path, 0
    for inner, error in map_errors(candidate, reference):
        if not LEAST_OF_FEW < error <= LEAST_ERROR or dense == MOST_DENSE:
            continue
        name = f"{path}.{inner}"
        weight, wanted = (
            plain_weight(candidate.module.get_submodule(name)),
            reference_matrix(candidate, reference, name),
        )
        if weight is None or isinstance(wanted, str):
            continue
        change = change_in_few_values(weight, wanted() if callable(wanted) else wanted)
        dense += change is None
        if change is not None and not _has_super_weight(damaged, name, change):
            yield _Changed(MAP, name, change, wanted)


def _has_super_weight(damaged: DamagedCandidate, name: str, change: TensorChange) -> bool:
    """Return whether a super weight is among the few values that differ: what it writes is restored by another cause."""
    mine = {
        (weight.row, weight.column)
        for weight in damaged.places
        if down_name(damaged.candidate, weight.layer, weight.expert) == name
    }
    return bool(mine.intersection(change.places))


def _experts(damaged: DamagedCandidate) -> Iterator[_Changed]:
    """Yield the stacks of experts in which some are zeroed, drawn again, scaled, or stand at another place."""
    for name, ours in expert_stacks(damaged.candidate).items():
        theirs = reference_parameter(damaged, name)
        if isinstance(theirs, str) or theirs.shape != ours.shape:
            continue
        stacks = [experts_apart(damaged.candidate, name, one) for one in (ours, theirs)]
        for words, numbers in _changed_experts(damaged, *stacks).items():
            change = TensorChange(words, len(numbers) / len(stacks[0]), is_structural=True)
            yield _Changed(STACK, name, change, partial(_parameter, damaged, name), _in_experts(words, numbers))


def _changed_experts(damaged: DamagedCandidate, ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, list[int]]:
    """Return by words for a change the experts of a stack ``(E, ., .)`` that have it."""
    stride = max(1, ours[0].numel() // LARGEST_EXPERT)
    places = places_of_rows(*(one.flatten(1)[:, ::stride].float().cpu() for one in (ours, theirs)))
    if places is not None:
        return {MOVED: (places != torch.arange(len(places))).nonzero().flatten().tolist()}
    alike: dict[str, list[int]] = {}
    heavy = {weight.expert for weight in damaged.places}
    for number in range(len(ours)):
        change = tensor_change(ours[number], theirs[number], match_rows=False)
        if change is not None and change.is_structural and not (change.places and number in heavy):
            alike.setdefault(change.words, []).append(number)
    return alike


def _parameter(damaged: DamagedCandidate, name: str) -> torch.Tensor:
    value = reference_parameter(damaged, name)
    if isinstance(value, str):
        raise FileNotFoundError(value)
    return value


def _in_experts(words: str, numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:MOST_ROWS])) + ", ..." * (len(numbers) > MOST_ROWS)
    return f" {'of' if words == MOVED else 'in'} expert{'s' * (len(numbers) > 1)} {shown}" if numbers else ""


def _padded(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return the reference's rows in a table of the candidate's size, which keeps its own rows beyond them."""
    common = min(len(ours), len(theirs))
    return torch.cat([theirs[:common].to(ours), ours[common:]])


def _kind_of(damaged: DamagedCandidate, name: str) -> str:
    """Return the word for a parameter: embedding, head, norm, bias, or tensor."""
    model = damaged.candidate.module
    module = model.get_submodule(name.rpartition(".")[0])
    if module is model.get_input_embeddings():  # type: ignore[operator]
        return "embedding"
    if module is model.get_output_embeddings():  # type: ignore[operator]
        return "head"
    if name.endswith("bias"):
        return "bias"
    return "norm" if "norm" in type(module).__name__.lower() or "norm" in name.lower() else "tensor"


def _rows_words(damaged: DamagedCandidate, ours: torch.Tensor, theirs: torch.Tensor, change: TensorChange) -> str:
    """Return words for the rows of an embedding or head that differ, with the tokens they belong to."""
    errors = (ours.float() - theirs.float()).norm(dim=1) / theirs.float().norm(dim=1).clamp_min(1e-12)
    rows = (errors > SAME).nonzero().flatten().tolist()
    if not rows or len(rows) > FEW_ROWS * len(ours) or "scaled" in change.words:
        return ""
    tokenizer = damaged.candidate.tokenizer
    tokens = [] if tokenizer is None else tokenizer.convert_ids_to_tokens(rows[:MOST_ROWS])
    named = f": {', '.join(map(repr, tokens))}{', ...' * (len(rows) > MOST_ROWS)}" if tokens else ""
    return f" in {len(rows)} of {len(ours):,} rows, {rows[0]} to {rows[-1]}{named}"
