"""Scores token ids with a model: nats per token, their sum with the number of tokens; and its likeliest next tokens.

Sums are kept in float64 whatever the model's dtype is; the caller divides once to get a mean. B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from swcheck.base.errors import NotFiniteError
from swcheck.base.records import Likelihood
from swcheck.lens.architecture.anatomy import check_module
from swcheck.lens.architecture.layer_by_layer import logits_of_windows
from swcheck.lens.architecture.storage import device_of, evaluating
from swcheck.lens.tokens import check_token_ids, vocabulary_size
from swcheck.loading.kv_cache import cache_name
from swcheck.loading.runtime import Runtime

if TYPE_CHECKING:
    from torch import nn

LOGITS_AT_ONCE: Final = 2**25
"""At most this many logits are in memory at a time, 128 MiB in float32. It limits the windows in one pass."""

LOGITS_ON_CPU: Final = 2**21
"""The same on a CPU, whose caches hold as much: larger passes take a tenth to a quarter longer (measured on two models)."""


def perplexity(model: nn.Module, token_ids: torch.Tensor) -> Likelihood:
    """Return the likelihood of ``token_ids``, int64 ``(B, T)``; each row is a window that is scored by itself.

    It is summed over B x (T - 1) predicted tokens, because the first token of a row is not predicted. The record has
    ``.nats``, ``.tokens`` and ``.perplexity``. The model runs in evaluation mode and gets its former mode back. Raises
    ``TextError`` for ids that are not valid, ``NotFiniteError`` where a likelihood is NaN or infinite.
    """
    nats = token_nats(model, token_ids)
    if not torch.isfinite(nats).all():
        bad = int((~torch.isfinite(nats)).sum())
        raise NotFiniteError(
            f"perplexity on {nats.numel()} tokens",
            f"{bad} of them have a likelihood that is NaN or infinite",
            "load the model in a dtype with a larger range (bfloat16, float32), or check its weights for NaN",
        )
    return Likelihood(float(nats.sum()), nats.numel())


def token_nats(model: nn.Module | Runtime, token_ids: torch.Tensor, among: int | None = None) -> torch.Tensor:
    """Return the nats of every predicted token, float64 ``(B, T - 1)`` on the CPU; NaN and infinity are passed on.

    ``token_ids`` is int64 ``(B, T)``. As many windows as ``windows_at_once`` allows are scored in one pass, and logits
    are not kept. With ``among`` the first so many ids are the only ones that can be predicted. Raises ``TextError`` for
    ids that are not valid.
    """
    if not isinstance(model, Runtime):
        check_module(model)
    check_token_ids(token_ids, vocabulary_size(model))
    if isinstance(model, Runtime):
        return torch.stack([nats_of(_among(log_probabilities(model, ids), among), ids) for ids in token_ids])
    nats, at_once = [], windows_at_once(model, token_ids)
    with evaluating(model):
        for ids, logits in zip(
            torch.split(token_ids, at_once), logits_of_windows(model, token_ids, at_once), strict=True
        ):
            nats.append(_batch_nats(logits[..., :among], ids))
    return torch.cat(nats)


def windows_at_once(model: nn.Module, token_ids: torch.Tensor) -> int:
    """Return how many windows of ``token_ids``, int64 ``(B, T)``, are scored in one pass."""
    most = min(LOGITS_AT_ONCE, LOGITS_ON_CPU) if device_of(model).type == "cpu" else LOGITS_AT_ONCE
    return max(1, most // (token_ids.shape[1] * (vocabulary_size(model) or 2**16)))


def _among(logs: torch.Tensor, count: int | None) -> torch.Tensor:
    """Return log-probabilities ``(T - 1, V)`` of the first ``count`` ids, given that it is one of them."""
    return logs if count is None else logs[:, :count].log_softmax(-1)


def _batch_nats(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the nats of the predicted tokens, float64 ``(B, T - 1)``; window by window, whose logits are in one piece."""
    return torch.stack([nats_of_logits(scores[:-1], ids[1:]) for scores, ids in zip(logits, token_ids, strict=True)])


def nats_of_logits(logits: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Return the nats of the tokens that follow, int64 ``(n,)``, from logits ``(n, V)``: float64 ``(n,)`` on the CPU."""
    return functional.cross_entropy(logits.float(), following.to(logits.device), reduction="none").double().cpu()


def nats_of(logs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the nats of the tokens ``ids[1:]``, float64 ``(T - 1,)``, of log-probabilities ``(T - 1, V)``."""
    return -logs.gather(1, ids[1:, None].to(logs.device))[:, 0].double().cpu()


def log_probabilities(runtime: Runtime, ids: torch.Tensor) -> torch.Tensor:
    """Return what a runtime tells of the window ``ids``, int64 ``(T,)``: float32 ``(T - 1, V)``.

    Raises ``NotFiniteError`` where it is of another shape, which no number could be read from.
    """
    logs, wanted = runtime.log_probabilities(ids), (len(ids) - 1, runtime.vocabulary)
    if tuple(logs.shape) != wanted:
        raise NotFiniteError(f"log-probabilities of {wanted} from {runtime.title}", f"{tuple(logs.shape)}", "repair it")
    return logs.float()


def likeliest_tokens(model: nn.Module | Runtime, token_ids: torch.Tensor) -> torch.Tensor:
    """Return the likeliest next token after each token of ``token_ids``, int64 ``(B, T)``, but the last: ``(B, T - 1)``."""
    if isinstance(model, Runtime):
        return torch.stack([log_probabilities(model, ids).argmax(-1).cpu() for ids in token_ids])
    with evaluating(model):
        found = [logits[:, :-1].argmax(-1).cpu() for logits in logits_of_windows(model, token_ids, len(token_ids))]
    return torch.cat(found)


def generated(model: nn.Module, token_ids: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``token_ids``, int64 ``(B, T)``, with ``count`` tokens appended, each the likeliest: ``(B, T + count)``.

    An end of text is a token as any other. A model that returns no cache, or fails with one, is run on all tokens each time.
    """
    ids, cache, is_cached, place, name = token_ids, None, True, device_of(model), cache_name(model)
    with evaluating(model):
        for _ in range(count):
            output: Any = None
            if is_cached:
                try:
                    given = ids if cache is None else ids[:, -1:]
                    output = model(given.to(place), **{name: cache}, use_cache=True)
                except Exception:  # whatever the model's own code raises with a cache
                    is_cached = False
            if output is None:
                output = model(ids.to(place), use_cache=False)
            cache = getattr(output, name, None)
            ids = torch.cat([ids, output.logits[:, -1].argmax(-1, keepdim=True).cpu()], dim=1)
    return ids


def through_cache(
    model: nn.Module, token_ids: torch.Tensor, cache: Any, cuts: Iterable[int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Score ``token_ids``, int64 ``(B, T)``, in one pass up to the first of ``cuts``, then on to each further one.

    ``cache`` is empty, of a kind that transformers knows. Return the nats of every token, float64 ``(B, T - 1)``, and the
    keys of the first layer's cache, None if not shown.
    """
    ids, logits, name = token_ids.to(device_of(model)), [], cache_name(model)
    with evaluating(model):
        for start, end in pairwise((0, *cuts, ids.shape[1])):
            logits.append(model(ids[:, start:end], **{name: cache}, use_cache=True).logits.float())
    whole = torch.cat(logits, 1)[:, :-1]
    nats = functional.cross_entropy(whole.transpose(1, 2), ids[:, 1:], reduction="none").double().cpu()
    layers = getattr(cache, "layers", None)
    keys = getattr(layers[0], "keys", None) if layers else None
    return nats, keys if isinstance(keys, torch.Tensor) else None
