"""The nats of a model with weights taken away, and what they are compared with, on the beginnings of its windows.

What is intact is known from the whole windows, by causal masking; only the pass without the weights costs. P is the
length of a beginning, B the number of windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from swcheck import stress
from swcheck.anatomy import device_of
from swcheck.errors import UnrankedError
from swcheck.intervene import zeroed
from swcheck.measure import token_nats, windows
from swcheck.observe import first_tensor
from swcheck.records import SuperWeight
from swcheck.subject import Subject, key_of
from swcheck.tiers import CAUSAL_WINDOWS

SHORTEST_PREFIX: Final = 64


def starts(subject: Subject) -> torch.Tensor:
    """The windows a causal check is scored on: all of them, the first quarter of each, 64 tokens at least.

    Under causal masking the intact nats of a prefix are known from the whole; only the edited pass costs. Where
    the tier has fewer than ``CAUSAL_WINDOWS``, further ones from between them make up the number.
    """
    ids = subject.windows()
    first = ids[:, : max(SHORTEST_PREFIX, ids.shape[1] // 4)]
    missing = CAUSAL_WINDOWS - len(ids)
    if missing <= 0 or not subject.tier.causal or subject.token_ids is not None:
        return first

    def compute() -> torch.Tensor:
        length = first.shape[1]
        return windows(subject.tokenizer, subject.own_text(), count=2 * missing, length=length)[1::2]

    return torch.cat([first, subject.once("between", compute)])


def without(subject: Subject, removed: Sequence[SuperWeight], ids: torch.Tensor | None = None) -> torch.Tensor:
    """The nats on ``starts`` without ``removed``, float64 ``(B, P - 1)``."""
    token_ids = starts(subject) if ids is None else ids

    def compute() -> torch.Tensor:
        with zeroed(subject.live, removed):
            return token_nats(subject.live, token_ids)

    return subject.once(("causal", tuple(removed), key_of(token_ids)), compute)


def intact(subject: Subject) -> torch.Tensor:
    """The intact nats on ``starts``, most of them a part of those of the windows."""
    return _prefixes(subject, subject.intact()[0], starts(subject))


def against(candidate: Subject, reference: Subject) -> torch.Tensor:
    """The intact nats on the reference's ``starts``."""
    if candidate is reference:
        return intact(reference)
    return _prefixes(candidate, candidate.against(reference)[0], starts(reference))


def _prefixes(subject: Subject, nats: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The nats on ``ids``: of the first windows known, of those between them scored now."""
    known, between = nats[:, : ids.shape[1] - 1], ids[len(nats) :]
    if not len(between):
        return known
    return torch.cat([known, subject.once(("causal", (), key_of(between)), lambda: token_nats(subject.live, between))])


def without_matched(subject: Subject, super_weights: Sequence[SuperWeight], seed: int) -> torch.Tensor | str:
    """The nats on ``starts`` without one draw of matched weights, or why none can be drawn."""

    def compute() -> torch.Tensor | str:
        try:
            with stress.without_matched(subject.live, super_weights, seed):
                return token_nats(subject.live, starts(subject))
        except UnrankedError as error:
            return error.found

    return subject.once(("matched", tuple(super_weights), seed), compute)


def without_largest(subject: Subject, super_weights: Sequence[SuperWeight]) -> tuple[torch.Tensor, int] | str:
    """The nats on ``starts`` without the largest other weights of every matrix, and how many those are.

    Words that say why, where these cannot be told.
    """

    def compute() -> tuple[torch.Tensor, int] | str:
        try:
            with stress.without_largest(subject.live, super_weights) as removed:
                return token_nats(subject.live, starts(subject)), removed
        except UnrankedError as error:
            return error.found

    return subject.once(("largest", tuple(super_weights)), compute)


def embedded(subject: Subject) -> torch.Tensor:
    """What the token embedding gives for ``starts``, in the model's dtype, ``(B, P, H)``."""

    def compute() -> torch.Tensor:
        with torch.no_grad():
            table: Any = subject.live
            return first_tensor(table.get_input_embeddings()(starts(subject).to(device_of(subject.live)))).cpu()

    return subject.once("embedded", compute)
