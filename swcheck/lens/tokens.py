"""Checks token ids, and cuts a text into windows of token ids. B batch, T tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import OptionError, TextError
from swcheck.loading.runtime import Runtime

if TYPE_CHECKING:
    from torch import nn


SHORTEST_TEXT: Final = 32
"""A text of fewer tokens is refused: the perplexity of so few predictions says nothing."""


def vocabulary_size(model: nn.Module | Runtime) -> int | None:
    """Return the number of entries of the input embedding, None where the model does not give it."""
    if isinstance(model, Runtime):
        return model.vocabulary
    get = getattr(model, "get_input_embeddings", None)
    count = getattr(get(), "num_embeddings", None) if get else None
    return int(count) if count else None


def check_token_ids(token_ids: torch.Tensor, vocabulary: int | None, *, shortest: int = 2) -> None:
    """Raise ``TextError`` unless ``token_ids`` is int64 ``(B, T)`` with B > 0, T >= ``shortest`` and valid ids.

    Valid ids are not negative and below ``vocabulary``, the number of entries; None means that it is not known.
    """
    expected = f"token ids, int64 (B, T) with T >= {shortest}"
    if not isinstance(token_ids, torch.Tensor):
        raise TextError(
            expected, type(token_ids).__name__, 'tokenizer(text, return_tensors="pt").input_ids is of this kind'
        )
    shape = tuple(token_ids.shape)
    if token_ids.ndim != 2 or token_ids.dtype != torch.int64:
        found = f"{token_ids.dtype} {shape}"
        raise TextError(expected, found, 'tokenizer(text, return_tensors="pt").input_ids has this shape')
    if token_ids.shape[0] == 0 or token_ids.shape[1] < shortest:
        raise TextError(expected, f"shape {shape}: there is no token to predict", "give a longer text")
    low, high = int(token_ids.min()), int(token_ids.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        raise TextError(
            f"token ids from 0 to {'?' if vocabulary is None else vocabulary - 1}, the model's vocabulary",
            f"ids from {low} to {high}",
            "use the tokenizer that belongs to this model",
        )


def adds_bos(tokenizer: Any) -> bool:
    """Return whether the tokenizer puts BOS at position 0.

    This is decided by encoding a text, because the flags of a tokenizer are not reliable.
    """
    bos = tokenizer.bos_token_id
    ids = tokenizer("x")["input_ids"]
    return bos is not None and len(ids) > 1 and ids[0] == bos


def token_windows(tokenizer: Any, text: str, *, count: int, length: int) -> torch.Tensor:
    """Return ``count`` windows of ``length`` tokens, evenly spread over ``text``, int64 ``(count, length)``.

    Each window begins with BOS where the tokenizer adds one. A short text gives fewer windows; a text shorter than one
    window gives a single, shorter window. Raises ``TextError`` for a text of fewer than ``SHORTEST_TEXT`` tokens, and
    ``OptionError`` for a count below 1 or a length below 2, which leave nothing to predict.
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
    text_tokens = min(length - len(prefix), len(ids))  # of one window, without BOS
    count = max(1, min(count, len(ids) // text_tokens))
    starts = [round(i * (len(ids) - text_tokens) / max(1, count - 1)) for i in range(count)]
    return torch.tensor([prefix + ids[start : start + text_tokens] for start in starts], dtype=torch.int64)
