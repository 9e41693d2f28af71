"""Tells what it costs that early tokens leave the key-value cache, with the super activation's token kept in it, and without.

A cache of W tokens that rolls over is a band in the attention mask: a token attends to the W - 1 before it, whose keys and
values were computed while they could attend to what has left since. Positions are not shifted. B batch, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from swcheck.base.formatting import format_ratio
from swcheck.base.statistics import factor_of
from swcheck.lens.architecture.storage import device_of, evaluating
from swcheck.lens.likelihood import nats_of
from swcheck.loading.runtime import Capability, Runtime
from swcheck.superweights.measurements.inputs import windows
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.residual_stream import super_activations
from swcheck.superweights.measurements.scores import scores_against
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline

if TYPE_CHECKING:
    from torch import nn

    from swcheck.superweights.subject.subject import Subject

EVICTION_WINDOWS: Final = 8
"""The number of windows that are scored for a cache that rolls over, three times each."""

SAME: Final = 1e-2
"""Nats per token by which a model that is given its own causal mask may differ from itself; another mask costs more."""


@dataclass(frozen=True)
class Eviction:
    """Nats per token that a cache of ``window`` tokens costs behind its end, on ``tokens`` tokens in all.

    ``kept`` with the first ``first`` tokens kept in it, up to the last super activation; ``lost`` without them.
    """

    window: int
    first: int
    tokens: int
    kept: float
    lost: float


@measurement("evicted", Cost.DIAGNOSIS, in_baseline=InBaseline.NO)
def eviction(subject: Subject, reference: Subject, window: int) -> Eviction | str:
    """Return what a cache of ``window`` tokens costs on the reference's windows; words where that is not known."""
    ids, first = windows(reference)[:EVICTION_WINDOWS], first_tokens(reference)
    if subject.is_runtime and not subject.runtime.can(Capability.EVICTION):
        return f"this runtime does not show {Capability.EVICTION.value}"
    if not 2 * first <= window < ids.shape[1] - 1:
        return f"its windows have {ids.shape[1]} tokens, the first {first} with a super activation"
    plain = scores_against(subject, reference)[0][:EVICTION_WINDOWS]
    if subject.is_runtime:
        whole = plain
        kept, lost = (_rolled_nats(subject.runtime, ids, window, kept_first) for kept_first in (first, 0))
        return _cost(whole, kept, lost, window, first)
    try:
        whole, kept, lost = (
            masked_nats(subject.module, ids, mask)
            for mask in (band(ids.shape[1]), band(ids.shape[1], window - first, first), band(ids.shape[1], window))
        )
    except (RuntimeError, TypeError, ValueError) as error:
        return f"it takes no mask: {' '.join(str(error).split())}"[:200]
    if not float((whole - plain).abs().mean()) <= SAME or torch.equal(whole, lost):
        return "it does not take the mask that it is given"
    return _cost(whole, kept, lost, window, first)


def _cost(whole: torch.Tensor, kept: torch.Tensor, lost: torch.Tensor, window: int, first: int) -> Eviction:
    """Return what both cost on the tokens behind the window, from nats ``(B, T - 1)``."""
    costs = [float((nats - whole)[:, window:].mean()) for nats in (kept, lost)]
    return Eviction(window, first, whole[:, window:].numel(), *costs)


def _rolled_nats(runtime: Runtime, ids: torch.Tensor, window: int, first: int) -> torch.Tensor:
    """Return the nats of every token, float64 ``(B, T - 1)``, of a program whose cache of ``window`` tokens rolls over."""
    rows = [nats_of(runtime.rolled_log_probabilities(row, window=window, first=first), row) for row in ids]
    return torch.stack(rows)


def first_tokens(reference: Subject) -> int:
    """Return how many tokens stand up to the last super activation of the default prompt; 1 for a model without any."""
    weights = located(reference).super_weights
    return 1 + max((one.position for one in super_activations(reference, weights)), default=0) if weights else 1


def band(length: int, window: int | None = None, first: int = 0) -> torch.Tensor:
    """Return whether each token attends to each, bool ``(T, T)``: the last ``window`` with itself, and the ``first`` ones.

    None for the window is all that came before.
    """
    place = torch.arange(length)
    back = place[:, None] - place[None]
    seen = back < (length if window is None else window)
    return (back >= 0) & (seen | (place[None] < first))


def masked_nats(model: nn.Module, ids: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return the nats of every token, float64 ``(B, T - 1)``, of a model whose attention is limited to ``seen``."""
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[None, None]
    nats = []
    with evaluating(model):
        for row in ids.to(device_of(model)):
            logits = model(row[None], attention_mask=mask.to(row.device), use_cache=False).logits[0, :-1]
            nats.append(functional.cross_entropy(logits.float(), row[1:], reduction="none").double().cpu())
    return torch.stack(nats)


def eviction_beside(subject: Subject, reference: Subject) -> tuple[dict[str, Any], str]:
    """Return facts, and words for the end of a summary, of what losing the first tokens costs; nothing if not asked for."""
    if subject.cache_window is None:
        return {}, ""
    found = eviction(subject, reference, subject.cache_window)
    if isinstance(found, str):
        return {"eviction": found}, f"; a cache of {subject.cache_window} tokens was not scored: {found}"
    facts, words = {"eviction": asdict(found)}, _words(found)
    theirs = (
        None if subject is reference or not reference.is_measurable else eviction(reference, reference, found.window)
    )
    if isinstance(theirs, Eviction):
        facts["reference_eviction"] = asdict(theirs)
        words += f" (the reference {_ratio(theirs.kept)} and {_ratio(theirs.lost)})"
    return facts, words


def _words(found: Eviction) -> str:
    first = "first token" if found.first == 1 else f"first {found.first} tokens"
    return (
        f"; behind a cache of {found.window} tokens {_ratio(found.kept)} with the {first} kept, {_ratio(found.lost)} without, "
        f"on {found.tokens:,} tokens"
    )


def _ratio(nats: float) -> str:
    return format_ratio(factor_of(nats)) if math.isfinite(nats) else f"{nats:g} nats"
