"""Token batches in, summed nats and counts out; no printing, no thresholds.

Sums are kept in float64 whatever the model's dtype is, and divided once, by whoever wants a mean. B batch, T time,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from swcheck.anatomy import check_module, device_of
from swcheck.errors import NotFiniteError, OptionError, TextError
from swcheck.records import Likelihood

if TYPE_CHECKING:
    from torch import nn

LOGITS_AT_ONCE: Final = 2**25
"""How many logits are alive at a time: 128 MiB in float32; windows are batched up to here."""

SHORTEST_TEXT: Final = 32
"""Fewer predicted tokens than this are refused: their perplexity says nothing."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its former mode back."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def perplexity(model: nn.Module, token_ids: torch.Tensor) -> Likelihood:
    """The likelihood of ``token_ids``, int64 ``(B, T)``, each row a window of its own.

    Sums over B x (T - 1) predicted tokens: the first token of a row is given. The record has ``.nats``, ``.tokens``
    and ``.perplexity``. The model is put in evaluation mode and returned to its former mode. Raises ``TextError`` for
    ids that cannot be measured on, ``NotFiniteError`` where the model answers NaN or infinity.
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


def token_nats(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    """The nats of every predicted token, float64 ``(B, T - 1)`` on the CPU; NaN and infinity are passed on.

    As many windows as fit are scored in one pass; logits are never kept.
    """
    check_module(model)
    check_token_ids(token_ids, vocabulary_of(model))
    rows = max(1, LOGITS_AT_ONCE // (token_ids.shape[1] * (vocabulary_of(model) or 2**16)))
    with evaluating(model):
        return torch.cat([_nats_of(model, part) for part in torch.split(token_ids, rows)])


def _nats_of(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    token_ids = token_ids.to(device_of(model))
    logits = model(token_ids, use_cache=False).logits[:, :-1].float()
    nats = functional.cross_entropy(logits.transpose(1, 2), token_ids[:, 1:], reduction="none")
    return nats.double().cpu()


def vocabulary_of(model: nn.Module) -> int | None:
    """The number of entries of the input embedding, None where the model does not tell."""
    get = getattr(model, "get_input_embeddings", None)
    count = getattr(get(), "num_embeddings", None) if get else None
    return int(count) if count else None


def check_token_ids(token_ids: torch.Tensor, vocabulary: int | None, *, shortest: int = 2) -> None:
    """Raise ``TextError`` unless ``token_ids`` is int64 ``(B, T)``, T at least ``shortest``, inside the vocabulary."""
    asked = f"token ids, int64 (B, T) with T >= {shortest}"
    if not isinstance(token_ids, torch.Tensor):
        raise TextError(
            asked, type(token_ids).__name__, 'tokenizer(text, return_tensors="pt").input_ids is of this kind'
        )
    shape = tuple(token_ids.shape)
    if token_ids.ndim != 2 or token_ids.dtype != torch.int64:
        found = f"{token_ids.dtype} {shape}"
        raise TextError(asked, found, 'tokenizer(text, return_tensors="pt").input_ids has this shape')
    if token_ids.shape[0] == 0 or token_ids.shape[1] < shortest:
        raise TextError(asked, f"shape {shape}: there is no token to predict", "give a longer text")
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        raise TextError(
            f"token ids from 0 to {'?' if vocabulary is None else vocabulary - 1}, the model's vocabulary",
            f"ids from {low} to {high}",
            "use the tokenizer that belongs to this model",
        )


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts BOS at position 0, decided by what it does: its flags are not to be trusted."""
    bos = tokenizer.bos_token_id
    ids = tokenizer("x")["input_ids"]
    return bos is not None and len(ids) > 1 and ids[0] == bos


def windows(tokenizer: Any, text: str, *, count: int, length: int) -> torch.Tensor:
    """``count`` windows of ``length`` tokens, evenly spread over ``text``, int64 ``(count, length)``.

    Each begins with BOS where the tokenizer adds one. Fewer windows where the text is short, one shorter window where
    it is shorter than that; raises ``TextError`` below ``SHORTEST_TEXT`` tokens, ``OptionError`` for a count or length
    that leaves nothing to predict.
    """
    if count < 1 or length < 2:
        raise OptionError(f"{count} windows of {length} tokens", "nothing to predict", "1 window of 2 tokens, or more")
    prefix = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) < SHORTEST_TEXT:
        raise TextError(
            f"a text to measure on, of {SHORTEST_TEXT} tokens at least",
            f"{len(ids)} tokens in {len(text)} characters",
            "give a longer text with --swcheck-text=FILE",
        )
    body = min(length - len(prefix), len(ids))
    count = max(1, min(count, len(ids) // body))
    starts = [round(i * (len(ids) - body) / max(1, count - 1)) for i in range(count)]
    return torch.tensor([prefix + ids[start : start + body] for start in starts], dtype=torch.int64)
