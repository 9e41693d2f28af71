"""Scores a model as a server runs it: a prompt in one pass, then a few tokens at a time from its key-value cache.

A plain forward pass never reads a value back from a quantized cache. So checkpoints whose config says how their cache
is quantized are scored through it too, and the nats are compared with those of the plain pass. B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import SwcheckError
from swcheck.gate.relation.linear_maps import quantization_config_of
from swcheck.lens.likelihood import through_cache
from swcheck.loading.kv_cache import kv_cache

if TYPE_CHECKING:
    from torch import nn

WINDOWS: Final = 4
"""The number of windows that are scored: the pass is slow, and the error is the same in every window."""

CHUNK: Final = 16
"""Tokens in one pass after the first."""


@dataclass(frozen=True)
class CachePass:
    """The cost of a quantized cache: ``nats`` per token more than in the plain pass, the mean over ``tokens`` tokens.

    ``nats`` is None if it was not scored; then ``reason`` says why. ``scheme`` says how the cache is quantized.
    """

    scheme: str
    nats: float | None
    tokens: int = 0
    reason: str = ""


def cache_scheme(model: nn.Module) -> tuple[str, float | None]:
    """Return how a checkpoint quantizes its cache, in words, and the bits if known; empty if its config is silent."""
    found = quantization_config_of(model).get("kv_cache_scheme")
    if isinstance(found, Mapping):
        return f"{found.get('num_bits', '?')}-bit {found.get('type', '')}".strip(), float(found.get("num_bits", 8))
    generation = getattr(model, "generation_config", None)
    if getattr(generation, "cache_implementation", None) == "quantized":
        config: Any = getattr(generation, "cache_config", None) or {}
        options = config if isinstance(config, Mapping) else vars(config)
        return f"{options.get('nbits', 4)}-bit {options.get('backend', 'quanto')}", None
    return "", None


def cache_pass(model: nn.Module, token_ids: torch.Tensor, plain: torch.Tensor) -> CachePass | None:
    """Score ``token_ids`` int64 ``(B, T)`` through the cache; ``plain`` float64 ``(B, T - 1)`` are the nats without it.

    Return None for a checkpoint whose config names no quantized cache.
    """
    scheme, bits = cache_scheme(model)
    if not scheme:
        return None
    try:
        make = kv_cache(model)
        first = max(1, token_ids.shape[1] // 4)
        nats, keys = through_cache(model, token_ids, make(), range(first, token_ids.shape[1], CHUNK))
    except (SwcheckError, ImportError, RuntimeError, TypeError, ValueError) as error:
        return CachePass(scheme, None, reason=" ".join(str(error).split())[:200])
    if bits is not None and not is_applied(keys, bits):
        return CachePass(
            scheme, None, reason="nothing here applies it: the cache holds more different numbers than it has"
        )
    change = nats[:, first:] - plain[:, first:]
    return CachePass(scheme, float(change.mean()), change.numel())


def is_applied(keys: torch.Tensor | None, bits: float) -> bool:
    """Return whether keys ``(B, heads, T, width)`` have at most ``2**bits`` values per head; True if keys is None."""
    return keys is None or len(torch.unique(keys)) <= keys.shape[1] * 2**bits
