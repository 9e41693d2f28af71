"""Measures whether a fix helps: the candidate with some matrices left unquantized.

If an installed engine makes such a candidate, the reference is quantized again with these matrices left out. Otherwise
the candidate is measured with the reference's own matrices put in by a hook. The text of the result says which of the
two was done, and whether the fix helps. One model is in memory at a time, unless a caller keeps both. With a baseline
in place of the reference, no model is loaded that is larger than the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from swcheck.base.errors import brief_message
from swcheck.base.formatting import format_ratio
from swcheck.base.limits import collapse_class
from swcheck.base.statistics import capped_collapse, collapse_ratio, collapse_share, factor_of, ratio_of
from swcheck.gate.diagnosis.evidence.reference_matrices import ROUNDED, matrix_in_memory, reference_matrix
from swcheck.gate.relation.basis import relation
from swcheck.lens.architecture.storage import device_of, first_tensor
from swcheck.lens.kl_divergence import compare_predictions
from swcheck.lens.replace import maps_replaced
from swcheck.loading import engines
from swcheck.superweights.measurements.ablation import (
    ablated_nats,
    intact_nats,
    knows_ablated,
    nats_on_starts,
    window_starts,
)
from swcheck.superweights.measurements.contributions import (
    contributions_at,
    contributions_on_default_prompt,
    sink_tokens,
)
from swcheck.superweights.measurements.inputs import prompt_ids, vocabulary_size, windows
from swcheck.superweights.measurements.scores import intact_scores, scores_against
from swcheck.superweights.measurements.weights import is_small, stored_bytes, stored_tensor
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.held_model import HeldModel

if TYPE_CHECKING:
    from swcheck.base.records import Loaded, SuperWeight
    from swcheck.lens.replace import Matrix
    from swcheck.superweights.subject.subject import Subject

LEAST_RECOVERED: Final = 0.02
"""A fix that recovers less than this share of the lost nats does not help. The limit judges whether it is enough."""

NO_LOSS: Final = 0.005
"""A loss of at most this many nats per token, half of the tightest limit, counts as none. Then a fix helps if it brings
the contribution nearer to the reference's."""

COLUMNS: Final = 32
"""How many columns of a matrix, those with the largest norms, are compared to see whether it is rescaled."""

PARALLEL: Final = 0.95
"""Two vectors with a larger cosine similarity count as parallel."""

RESCALED: Final = 0.1
"""Rounding changes the norm of most columns of a matrix by less than this share; the factors of AWQ by far more."""

SMALL_FILES: Final = 2**28
"""A reference of at most this many bytes is always loaded: Python with torch takes as many before there is a model."""

SIZE_ALLOWANCE: Final = 1.1
"""With a baseline, no model is loaded that takes more than this multiple of the candidate's bytes."""

Weights: TypeAlias = "tuple[Sequence[SuperWeight], Sequence[SuperWeight]]"
"""The super weights in the coordinates of the reference, and in those of the candidate."""


@dataclass(frozen=True)
class _Measured:
    """What is measured of a candidate, red or fixed.

    ``nats`` are those of every token of the reference's windows, float64 ``(B, T - 1)``, ``written`` is what each super
    weight writes, ``kl`` the mean divergence from the reference. ``dependence`` is the share of its collapse, None where
    that is not measured.
    """

    nats: torch.Tensor
    written: tuple[float, ...]
    kl: float
    dependence: float | None = None


@dataclass(frozen=True)
class Fix:
    """A fix of a red candidate: leave ``matrices``, by their qualified names in it, unquantized.

    ``spec`` is the engine's spec of the fixed candidate, None if no installed engine can make it. ``weights`` are the
    super weights.
    """

    candidate: Subject
    reference: Subject
    matrices: tuple[str, ...]
    spec: str | None
    weights: Weights

    @property
    def sinks(self) -> tuple[int, ...]:
        """The token of the default prompt at which each super weight writes its contribution."""
        chosen = self.weights[0]
        return sink_tokens(self.reference, chosen, prompt_ids(self.reference)) if chosen else ()


class _ImpossibleError(Exception):
    """A way to try the fix is not possible here; the message says why."""


def try_fix(fix: Fix) -> tuple[str, dict[str, Any]]:
    """Try the fix in the first possible way of ``_WAYS``; return the result, or why none is possible, and facts."""
    reference, (chosen, places) = fix.reference, fix.weights
    nats, drift = scores_against(fix.candidate, reference)
    expected = contributions_on_default_prompt(reference, chosen) if chosen else ()
    now = contributions_at(fix.candidate, places, prompt_ids(reference), fix.sinks) if chosen else ()
    reasons: list[str] = []
    failed = ""
    for how, measure in _WAYS.items():
        try:
            fixed = measure(fix)
        except _ImpossibleError as error:
            reasons.append(str(error))
        except Exception as error:  # a quantizer may raise anything; the verdict does not need this proof
            reasons.append(f"{how}: {brief_message(error)}")
            failed = f"; {reasons[-1]}"
        else:
            words, facts = _compare(intact_scores(reference)[0], _Measured(nats, now, drift.mean), fixed, expected)
            helps = "" if facts["proven"] else "this does not help, "
            more = {"by": how, "spec": fix.spec, "instead": "; ".join(reasons)}
            return f"{helps}{how}: {words}{failed}", {**facts, **more}
    return f"not proven: {'; '.join(reasons)}", {"proven": False}


def _compare(
    intact: torch.Tensor, before: _Measured, after: _Measured, expected: Sequence[float]
) -> tuple[str, dict[str, Any]]:
    """Compare ``before`` and ``after`` the fix: nats above ``intact`` ones, contributions over ``expected`` ones."""
    lost, left = (float((one.nats - intact).mean()) for one in (before, after))
    was, now = (factor_of(nats) for nats in (lost, left))
    words = f"perplexity {format_ratio(now)} (was {format_ratio(was)})"
    red, fixed = _worst_ratio(before.written, expected), _worst_ratio(after.written, expected)
    if expected:
        words += f", the super weight writes {_factor(fixed)} (was {_factor(red)})"
    nearer = bool(expected) and _closeness(fixed) > _closeness(red) / 2
    works = bool(torch.isfinite(after.nats).all()) and (
        lost - left > LEAST_RECOVERED * abs(lost) or (nearer and left <= max(lost, NO_LOSS))
    )
    facts = {"proven": works, "perplexity": now, "before": was, "written": fixed if expected else None}
    return words, {**facts, "kl": after.kl, "dependence": after.dependence}


def _factor(ratio: float) -> str:
    return f"x{ratio:z.3f}" if math.isfinite(ratio) else "no finite value"


def _measure_quantized_again(fix: Fix) -> _Measured:
    """Measure what ``fix.spec`` makes of the reference, while all other models are freed; then free it."""
    reference = fix.reference
    if fix.spec is None:
        raise _ImpossibleError("no engine of this machine makes such a candidate")
    if not reference.source:
        raise _ImpossibleError("where the reference lies is not known, so that it cannot be quantized again")
    _check_room(fix)
    ids, prompt, sinks, known = windows(reference), prompt_ids(reference), fix.sinks, intact_scores(reference)[1]
    made = as_subject(
        _make_third_model(fix, fix.spec)
        if _is_kept_by_caller(reference)
        else fix.candidate.remake(fix.spec, reference.source)
    )
    try:
        now = contributions_at(made, fix.weights[0], prompt, sinks) if fix.weights[0] else ()
        nats, drift = compare_predictions(made.scorer, ids, known)
        return _Measured(nats, now, drift.mean, _dependence(fix, made, nats))
    finally:
        made.discard()


def _dependence(fix: Fix, made: Subject, nats: torch.Tensor) -> float | None:
    """Return the share of the reference's collapse that a fixed candidate has, whose ``nats`` ``(B, T - 1)`` are given.

    None where the reference's was not measured before, or it is none that a candidate is held to.
    """
    reference, chosen = fix.reference, fix.weights[0]
    if not chosen or not knows_ablated(reference, chosen):
        return None
    ids, size = window_starts(reference), vocabulary_size(reference)
    theirs = intact_nats(reference), ablated_nats(reference, chosen)
    if collapse_class(collapse_ratio(*theirs)) != "critical" or not capped_collapse(*theirs, size) > 0:
        return None
    ours = nats_on_starts(made, nats, ids), ablated_nats(made, chosen, ids)
    return collapse_share(ours, theirs, size)


def _check_room(fix: Fix) -> None:
    """Raise ``_ImpossibleError`` if a baseline replaces the reference, and that is larger than the candidate."""
    needed, available = stored_bytes(fix.reference), stored_bytes(fix.candidate)
    if not fix.reference.is_measurable and needed > max(SMALL_FILES, SIZE_ALLOWANCE * available):
        words = f"beside its baseline the reference is not loaded: {needed:,} bytes, the candidate has {available:,}"
        raise _ImpossibleError(words)


def _is_kept_by_caller(reference: Subject) -> bool:
    """Return whether a caller keeps the reference in memory, so that it cannot be freed meanwhile."""
    return reference.held.in_memory and not reference.held.is_reloadable


def _make_third_model(fix: Fix, spec: str) -> Loaded:
    """Load what ``spec`` makes of the directory of a reference in memory, if both have the same ``fix.matrices``."""
    reference = fix.reference
    if not is_small(reference):
        raise _ImpossibleError("a third model beside the two in memory need not fit")
    path = fix.candidate.anatomy.path
    for name in fix.matrices:
        here, stored = _plain_weight(reference, path, name).float().cpu(), stored_tensor(reference, f"{name}.weight")
        if not isinstance(stored, str) and not torch.allclose(here, stored.float(), rtol=ROUNDED, atol=1e-6):
            raise _ImpossibleError(f"the reference in memory has another {name} than its directory")
    fix.candidate.free_until_needed()
    dtype = str(reference.module.dtype).removeprefix("torch.")
    place = str(device_of(reference.module))
    return engines.load(
        spec, reference=reference.source, device=place, dtype=dtype if dtype in engines.DTYPES else None
    )


def _measure_with_reference_matrices(fix: Fix) -> _Measured:
    """Measure the candidate with the reference's matrices put in by a hook; nothing is changed or remembered."""
    if fix.candidate.is_runtime:
        raise _ImpossibleError(f"{fix.candidate.runtime.title} takes no matrices of the reference")
    reference, maps, sinks = fix.reference, _reference_matrices(fix), fix.sinks
    candidate = replace(fix.candidate, held=HeldModel(fix.candidate.module), memory=None)
    known = intact_scores(reference)[1]
    with maps_replaced(candidate.module, maps, {}):
        places = fix.weights[1]
        now = contributions_at(candidate, places, prompt_ids(reference), sinks) if places else ()
        nats, drift = compare_predictions(candidate.module, windows(reference), known)
    helps = float(nats.mean()) < float(scores_against(fix.candidate, reference)[0].mean())
    if not helps and any(_is_rescaled(candidate, *one) for one in maps.items()):
        raise _ImpossibleError(
            "matrices cannot be given back, their inputs or outputs are rescaled (as by AWQ, SmoothQuant)"
        )
    return _Measured(nats, now, drift.mean)


def _is_rescaled(candidate: Subject, name: str, matrix: Matrix) -> bool:
    """Return whether the candidate's map is ``matrix`` ``(H, F)`` with its inputs or outputs multiplied by factors.

    The map is called with one-hot inputs for the largest columns. It is rescaled if most of the outputs, or most rows
    of them, are parallel to the expected ones and have another norm.
    """
    weight = matrix() if callable(matrix) else matrix
    columns = weight.float().norm(dim=0).topk(min(COLUMNS, weight.shape[1])).indices
    probe = torch.zeros(1 + len(columns), weight.shape[1], dtype=weight.dtype)
    probe[1 + torch.arange(len(columns)), columns.cpu()] = 1
    model: Any = candidate.module
    with torch.no_grad():
        answer = first_tensor(model.get_submodule(name)(probe.to(device_of(model), model.dtype))).float().cpu()
    ours, theirs = answer[1:] - answer[0], weight.float().cpu()[:, columns.cpu()].T
    for one, other in ((ours, theirs), (ours.T, theirs.T)):
        factors = (one * other).sum(1) / other.square().sum(1).clamp_min(1e-30)
        parallel = torch.nn.functional.cosine_similarity(one, other) > PARALLEL
        if float((parallel & ((factors - 1).abs() > RESCALED)).float().mean()) > 1 / 2:
            return True
    return False


_WAYS: Final[Mapping[str, Callable[[Fix], _Measured]]] = {
    "quantized again with these matrices left out": _measure_quantized_again,
    "with these matrices given back through a hook": _measure_with_reference_matrices,
}
"""The ways to try a fix, by the words that name them; the better way first."""


def _reference_matrices(fix: Fix) -> dict[str, Matrix]:
    """Return the reference's plain weights for the maps of the fix: from its module if in memory, else from its files.

    If neither has them, the reference is loaded again until they are copied.
    """
    candidate, reference = fix.candidate, fix.reference
    basis = relation(candidate, reference)
    if basis.kind in {"permuted", "rotated"}:
        raise _ImpossibleError(f"matrices cannot be given back, {basis.words}")
    found = {name: reference_matrix(candidate, reference, name) for name in fix.matrices}
    maps = {name: weight for name, weight in found.items() if not isinstance(weight, str)}
    words = next((weight for weight in found.values() if isinstance(weight, str)), "")
    if words and (reference.held.in_memory or not reference.is_measurable):
        raise _ImpossibleError(f"matrices cannot be given back, {words}")
    if words:
        path = candidate.anatomy.path
        maps = {name: _plain_weight(reference, path, name).clone() for name in fix.matrices}
        reference.free_until_needed()
    return maps


def _plain_weight(reference: Subject, path: str, name: str) -> torch.Tensor:
    """Return the reference's weight of the map called ``name`` in a candidate whose layers are at ``path``."""
    weight = matrix_in_memory(reference, name.removeprefix(f"{path}."))
    if isinstance(weight, str):
        raise _ImpossibleError(weight)
    return weight.detach()


def _worst_ratio(now: Sequence[float], expected: Sequence[float]) -> float:
    """Return the ratio of contributions that is farthest from 1; 1 if there are none."""
    return min((ratio_of(one, other) for one, other in zip(now, expected, strict=True)), key=_closeness, default=1.0)


def _closeness(ratio: float) -> float:
    """Return the negative distance of a ratio from 1, on a logarithmic scale."""
    return -abs(math.log(ratio)) if ratio > 0 and math.isfinite(ratio) else -math.inf
