"""Whether a fix works, measured before anybody ships it: what a candidate is worth with some matrices left unquantized.

Where an engine of this machine makes such a candidate, the reference is quantized again that way; else the candidate
is measured with the reference's own matrices given back through a hook. The words say which it was, and a fix that
does not help is said not to. One model is in memory at a time, unless a caller keeps both; where a baseline stands for
the reference, none is loaded that would not fit in the candidate's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck import engines
from swcheck.anatomy import device_of
from swcheck.case import ROUNDED
from swcheck.errors import first_words
from swcheck.intervene import given_back
from swcheck.kinship import related
from swcheck.lent import counterpart, lent
from swcheck.measure import token_nats
from swcheck.observe import first_tensor
from swcheck.ratios import LARGEST_EXPONENT, ratio_of, times
from swcheck.subject import subject_of

if TYPE_CHECKING:
    from swcheck.intervene import Weight
    from swcheck.records import Loaded, SuperWeight
    from swcheck.subject import Subject

FELT: Final = 0.02
"""The least share of the lost nats that a fix has to bring back, or it does not help; a limit says what is enough."""

HARMLESS: Final = 0.005
"""A loss of so many nats per token is none, half of the tightest limit: a weight given back helps, whatever the text says."""

COLUMNS: Final = 32
PARALLEL: Final = 0.95
RESCALED: Final = 0.1
"""Rounding keeps most columns of a matrix within this of their size; AWQ's factors are far beyond."""

ROOM: Final = 2**28
"""Bytes that nobody misses: Python with torch takes as many before there is a model."""

MORE: Final = 1.1
"""With a baseline no more is loaded than the candidate takes, and a tenth of it."""

Pairs = tuple[Sequence["SuperWeight"], Sequence["SuperWeight"]]


@dataclass(frozen=True)
class Trial:
    """A fix of a red candidate; ``matrices`` by their names in it, ``again`` is the spec that spares them.

    ``pair`` are the super weights, and where they stand in the candidate.
    """

    candidate: Subject
    reference: Subject
    matrices: tuple[str, ...]
    again: str | None
    pair: Pairs

    @property
    def sinks(self) -> tuple[int, ...]:
        """The token of the default prompt at which each super weight writes."""
        return self.reference.sinks(self.pair[0], self.reference.prompt_ids()) if self.pair[0] else ()


_Measured = tuple[torch.Tensor, tuple[float, ...]]
"""The nats of every token of the reference's windows, and what the super weights write."""


def prove(trial: Trial) -> tuple[str, dict[str, Any]]:
    """The first way of a proof that can be gone here, in words and numbers; else why there is none."""
    reference, (weights, there) = trial.reference, trial.pair
    nats = trial.candidate.against(reference)[0]
    due = reference.written(weights) if weights else ()
    had = trial.candidate.contributions(there, reference.prompt_ids(), trial.sinks) if weights else ()
    reasons: list[str] = []
    failed = ""
    for how, measure in _WAYS.items():
        try:
            now = measure(trial)
        except _CannotError as error:
            reasons.append(str(error))
        except Exception as error:  # whatever a quantizer raises: the verdict stands without this proof
            reasons.append(f"{how}: {first_words(error)}")
            failed = f"; {reasons[-1]}"
        else:
            words, facts = _compared(reference.intact()[0], (nats, had), now, due)
            helps = "" if facts["proven"] else "this does not help, "
            more = {"by": how, "spec": trial.again, "instead": "; ".join(reasons)}
            return f"{helps}{how}: {words}{failed}", {**facts, **more}
    return f"not proven: {'; '.join(reasons)}", {"proven": False}


def _compared(
    intact: torch.Tensor, before: _Measured, after: _Measured, due: Sequence[float]
) -> tuple[str, dict[str, Any]]:
    """What a fix brings back: of the nats over the ``intact`` ones, and of what the super weights are ``due`` to write."""
    lost, left = (float((nats - intact).mean()) for nats, _ in (before, after))
    was, now = (math.exp(min(LARGEST_EXPONENT, nats)) for nats in (lost, left))
    words = f"perplexity {times(now)} (was {times(was)})"
    bad, written = _worst(before[1], due), _worst(after[1], due)
    if due:
        words += f", the super weight writes x{written:z.3f} (was x{bad:z.3f})"
    nearer = bool(due) and _closeness(written) > _closeness(bad) / 2
    works = bool(torch.isfinite(after[0]).all()) and (
        lost - left > FELT * abs(lost) or (nearer and left <= max(lost, HARMLESS))
    )
    return words, {"proven": works, "perplexity": now, "before": was, "written": written if due else None}


class _CannotError(Exception):
    """A proof that cannot be had here, and why."""


def _quantized_again(trial: Trial) -> _Measured:
    """The reference as ``again`` makes it; that model is gone afterwards, and meanwhile those that can be loaded again."""
    reference = trial.reference
    if trial.again is None:
        raise _CannotError("no engine of this machine makes such a candidate")
    if not reference.source:
        raise _CannotError("where the reference lies is not known, so that it cannot be quantized again")
    _check_room(trial)
    windows, prompt, sinks = reference.windows(), reference.prompt_ids(), trial.sinks
    made = subject_of(
        _third(trial, trial.again) if _is_kept(reference) else trial.candidate.maker(trial.again, reference.source)
    )
    try:
        has = made.contributions(trial.pair[0], prompt, sinks) if trial.pair[0] else ()
        return token_nats(made.live, windows), has
    finally:
        made.discard()


def _check_room(trial: Trial) -> None:
    """Refuse to load a reference in whose place there is a baseline, unless it fits where the candidate did."""
    due, had = trial.reference.stored_bytes, trial.candidate.stored_bytes
    if not trial.reference.at_hand and due > max(ROOM, MORE * had):
        raise _CannotError(f"beside its baseline the reference is not loaded: {due:,} bytes, the candidate has {had:,}")


def _is_kept(reference: Subject) -> bool:
    """Whether a caller keeps it in memory."""
    return reference.module is not None and reference.again is None


def _third(trial: Trial, spec: str) -> Loaded:
    """What ``spec`` makes of the directory of a reference that a caller keeps in memory, as it is there."""
    reference = trial.reference
    if not reference.is_small:
        raise _CannotError("a third model beside the two in memory need not fit")
    path = trial.candidate.body.path
    for name in trial.matrices:
        here, filed = _plain(reference, path, name).float().cpu(), reference.stored(f"{name}.weight")
        if not isinstance(filed, str) and not torch.allclose(here, filed.float(), rtol=ROUNDED, atol=1e-6):
            raise _CannotError(f"the reference in memory has another {name} than its directory")
    trial.candidate.rest()
    dtype = str(reference.live.dtype).removeprefix("torch.")
    place = str(device_of(reference.live))
    return engines.load(
        spec, reference=reference.source, device=place, dtype=dtype if dtype in engines.DTYPES else None
    )


def _given_back(trial: Trial) -> _Measured:
    """The candidate with the reference's own matrices in the place of its own; nothing of it is remembered or changed."""
    reference, maps, sinks = trial.reference, _matrices(trial), trial.sinks
    candidate = replace(trial.candidate, module=trial.candidate.live, memo=None)
    with given_back(candidate.live, maps, {}):
        has = candidate.contributions(trial.pair[1], reference.prompt_ids(), sinks) if trial.pair[1] else ()
        nats = token_nats(candidate.live, reference.windows())
    helps = float(nats.mean()) < float(trial.candidate.against(reference)[0].mean())
    if not helps and any(_is_rescaled(candidate, *one) for one in maps.items()):
        raise _CannotError(
            "matrices cannot be given back, their inputs or outputs are rescaled (as by AWQ, SmoothQuant)"
        )
    return nats, has


def _is_rescaled(candidate: Subject, name: str, lent_weight: Weight) -> bool:
    """Whether a map answers as ``weight`` ``(H, F)`` does but for factors of its inputs or of its outputs.

    One-hot inputs of its largest columns; most of what it answers, or of the rows of that, is parallel to what is
    expected and not as large.
    """
    weight = lent_weight() if callable(lent_weight) else lent_weight
    columns = weight.float().norm(dim=0).topk(min(COLUMNS, weight.shape[1])).indices
    probe = torch.zeros(1 + len(columns), weight.shape[1], dtype=weight.dtype)
    probe[1 + torch.arange(len(columns)), columns.cpu()] = 1
    live: Any = candidate.live
    with torch.no_grad():
        given = first_tensor(live.get_submodule(name)(probe.to(device_of(live), live.dtype))).float().cpu()
    ours, theirs = given[1:] - given[0], weight.float().cpu()[:, columns.cpu()].T
    for one, other in ((ours, theirs), (ours.T, theirs.T)):
        factors = (one * other).sum(1) / other.square().sum(1).clamp_min(1e-30)
        parallel = torch.nn.functional.cosine_similarity(one, other) > PARALLEL
        if float((parallel & ((factors - 1).abs() > RESCALED)).float().mean()) > 1 / 2:
            return True
    return False


_WAYS: Final[Mapping[str, Callable[[Trial], _Measured]]] = {
    "quantized again with them left out": _quantized_again,
    "with these matrices given back through a hook": _given_back,
}
"""How a fix is proven, the better way first."""


def _matrices(trial: Trial) -> dict[str, Weight]:
    """The reference's plain weights for the named maps: from the model where it is here, else from its files.

    Where neither has them, the reference is loaded again for as long as they are copied.
    """
    candidate, reference = trial.candidate, trial.reference
    kin = related(candidate.portrait(), reference.portrait())
    if kin.kind in {"permuted", "rotated"}:
        raise _CannotError(f"matrices cannot be given back, {kin.words}")
    found = {name: lent(candidate, reference, name) for name in trial.matrices}
    maps = {name: weight for name, weight in found.items() if not isinstance(weight, str)}
    words = next((weight for weight in found.values() if isinstance(weight, str)), "")
    if words and (reference.module is not None or not reference.at_hand):
        raise _CannotError(f"matrices cannot be given back, {words}")
    if words:
        path = candidate.body.path
        maps = {name: _plain(reference, path, name).clone() for name in trial.matrices}
        reference.rest()
    return maps


def _plain(reference: Subject, path: str, name: str) -> torch.Tensor:
    """The weight of a map that is called ``name`` in a candidate whose layers are at ``path``."""
    weight = counterpart(reference, name.removeprefix(f"{path}."))
    if isinstance(weight, str):
        raise _CannotError(weight)
    return weight.detach()


def _worst(written: Sequence[float], due: Sequence[float]) -> float:
    """Of what is written over what is due the ratio farthest from 1; 1 where nothing is due."""
    return min((ratio_of(one, other) for one, other in zip(written, due, strict=True)), key=_closeness, default=1.0)


def _closeness(ratio: float) -> float:
    """Lowest for the ratio farthest from 1."""
    return -abs(math.log(ratio)) if ratio > 0 and math.isfinite(ratio) else -math.inf
