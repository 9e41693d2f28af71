"""Scores a subject with weights zeroed, on the starts of its windows.

Under causal masking the intact nats of a start are a part of those of its whole window, which are known. So only the
pass with the weights zeroed costs time. B windows, P tokens of a start, H residual width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from swcheck.base.errors import UnrankedError
from swcheck.base.records import SuperWeight
from swcheck.base.tiers import CAUSAL_WINDOWS
from swcheck.lens import nulls
from swcheck.lens.architecture.anatomy import MapKey
from swcheck.lens.architecture.storage import device_of, first_tensor
from swcheck.lens.intervene import maps_zeroed, zeroed
from swcheck.lens.likelihood import token_nats
from swcheck.lens.tokens import token_windows
from swcheck.superweights.measurements.inputs import text_of, windows
from swcheck.superweights.measurements.scores import intact_scores, scores_against
from swcheck.superweights.subject.measurement import Slot, measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject

SHORTEST_START: Final = 64
"""A start has at least this many tokens, unless the window is shorter."""

_STARTS_BETWEEN: Final = Slot[torch.Tensor]("between", Cost.TOKENIZER)


def window_starts(subject: Subject) -> torch.Tensor:
    """Return the token ids that a causal check is scored on, int64 ``(B, P)``: the first quarter of every window.

    Where the tier has fewer than ``CAUSAL_WINDOWS`` windows, further starts are cut from the text between them, so that
    there are as many.
    """
    ids = windows(subject)
    starts = ids[:, : max(SHORTEST_START, ids.shape[1] // 4)]
    missing = CAUSAL_WINDOWS - len(ids)
    if missing <= 0 or not subject.tier.causal or subject.token_ids is not None:
        return starts

    def starts_between() -> torch.Tensor:
        length = starts.shape[1]
        return token_windows(subject.tokenizer, text_of(subject), count=2 * missing, length=length)[1::2]

    return torch.cat([starts, _STARTS_BETWEEN.recall(subject, (), starts_between)])


def ablated_nats(subject: Subject, removed: Sequence[SuperWeight], ids: torch.Tensor | None = None) -> torch.Tensor:
    """Return the nats with ``removed`` zeroed together, float64 ``(B, P - 1)``.

    They are scored on ``ids``, int64 ``(B, P)``; None means the window starts.
    """
    return _ablated_nats(subject, tuple(removed), window_starts(subject) if ids is None else ids)


@measurement("causal", Cost.WINDOW_STARTS, in_baseline=InBaseline.HALF)
def _ablated_nats(subject: Subject, removed: Sequence[SuperWeight], ids: torch.Tensor) -> torch.Tensor:
    model = subject.scorer
    with zeroed(model, removed):
        return token_nats(model, ids)


def measure_ablated(subject: Subject, removed: Sequence[SuperWeight]) -> None:
    """Remember as ``ablated_nats`` what the model scores now, in a run that has ``removed`` zeroed already."""
    _ablated_nats.recall(subject, (tuple(removed), window_starts(subject)), lambda: scored_starts(subject))


def scored_starts(subject: Subject) -> torch.Tensor:
    """Return the nats on the window starts as the model is now, float64 ``(B, P - 1)``."""
    return token_nats(subject.scorer, window_starts(subject))


def knows_ablated(subject: Subject, removed: Sequence[SuperWeight]) -> bool:
    """Return whether the nats with ``removed`` zeroed together, on the window starts, are remembered."""
    return _ablated_nats.knows(subject, tuple(removed), window_starts(subject))


@measurement("experts", Cost.WINDOW_STARTS, in_baseline=InBaseline.HALF)
def nats_without_experts(subject: Subject, keys: Sequence[MapKey]) -> torch.Tensor | str:
    """Return the nats on the window starts with whole experts zeroed, float64 ``(B, P - 1)``; words where they are packed."""
    model = subject.module
    try:
        with maps_zeroed(model, [MapKey(*key) for key in keys]):
            return token_nats(model, window_starts(subject))
    except UnrankedError as error:
        return error.found


def intact_nats(subject: Subject) -> torch.Tensor:
    """Return the intact nats on the window starts, float64 ``(B, P - 1)``."""
    return nats_on_starts(subject, intact_scores(subject)[0], window_starts(subject))


def intact_nats_against(candidate: Subject, reference: Subject) -> torch.Tensor:
    """Return the candidate's intact nats on the reference's window starts, float64 ``(B, P - 1)``."""
    if candidate is reference:
        return intact_nats(reference)
    return nats_on_starts(candidate, scores_against(candidate, reference)[0], window_starts(reference))


def nats_on_starts(subject: Subject, nats: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the nats on the window starts ``ids``.

    The first ones are a part of ``nats``, those of the whole windows. The starts from between the windows are scored.
    """
    known, between = nats[:, : ids.shape[1] - 1], ids[len(nats) :]
    if not len(between):
        return known
    scored = _ablated_nats.recall(subject, ((), between), lambda: token_nats(subject.scorer, between))
    return torch.cat([known, scored])


@measurement("matched", Cost.WINDOW_STARTS, in_baseline=InBaseline.HALF)
def nats_without_matched(subject: Subject, super_weights: Sequence[SuperWeight], seed: int) -> torch.Tensor | str:
    """Return the nats on the window starts with one draw of matched weights zeroed, float64 ``(B, P - 1)``.

    Words that say why, where none can be drawn.
    """
    model = subject.module
    try:
        with nulls.without_matched(model, super_weights, seed):
            return token_nats(model, window_starts(subject))
    except UnrankedError as error:
        return error.found


@measurement("largest", Cost.WINDOW_STARTS, in_baseline=InBaseline.HALF)
def nats_without_largest(subject: Subject, super_weights: Sequence[SuperWeight]) -> tuple[torch.Tensor, int] | str:
    """Return the nats on the window starts with the largest other weights of every matrix zeroed, and their number.

    The nats are float64 ``(B, P - 1)``. Words that say why, where the largest weights cannot be found.
    """
    model = subject.module
    try:
        with nulls.without_largest(model, super_weights) as removed:
            return token_nats(model, window_starts(subject)), removed
    except UnrankedError as error:
        return error.found


@measurement("embedded", Cost.WEIGHTS, in_baseline=InBaseline.NO)
def embedded_starts(subject: Subject) -> torch.Tensor:
    """Return the output of the token embedding for the window starts, in the model's dtype, ``(B, P, H)``."""
    model: Any = subject.module
    with torch.no_grad():
        return first_tensor(model.get_input_embeddings()(window_starts(subject).to(device_of(model)))).cpu()
