"""Modules that exporters can trace: token ids to logits, and the same behind a key-value cache that goes in and out.

B windows, T tokens, P tokens in the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from swcheck.loading.kv_cache import cache_name, cache_of

if TYPE_CHECKING:
    import torch
    from torch import nn

PAST, NEW = 3, 5
"""The tokens of the examples in the cache, and behind it: other numbers than any size of a model or each other."""

SAME: Final = 1e-2
"""What logits behind the cache may differ by from those without one, over the largest of them."""


def exportable(model: nn.Module) -> nn.Module:
    """Return a module of token ids, int64 ``(1, T)``, to logits ``(1, T, V)``, which exporters can trace.

    It runs the transformers module ``model`` without a cache. The causal mask is written out, because the code that
    transformers makes it with has no counterpart in most formats. So a window that slides is not exported.
    """
    import torch

    class LogitsOfIds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            length = input_ids.shape[1]
            mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
            answer = self.model(input_ids=input_ids, attention_mask=mask.to(next(model.parameters())), use_cache=False)
            logits: torch.Tensor = answer.logits
            return logits

    return LogitsOfIds().eval()


@dataclass(frozen=True)
class CachedExport:
    """A module that exporters can trace, of token ids and a key-value cache to logits and the cache with them in it.

    ``inputs`` are examples of what it takes, in order and by the names that optimum gives: ``input_ids`` int64 ``(2, T)``,
    ``attention_mask`` int64 ``(2, P + T)``, ``position_ids`` int64 ``(2, T)``; then, as one list, ``past_key_values.N.key``
    and ``.value`` ``(2, heads, P, width)`` of each layer. ``outputs`` are the names of what it returns: ``logits`` ``(2, T, V)``,
    then ``present.N.key`` and ``.value``.
    """

    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    outputs: Sequence[str]

    @property
    def example(self) -> tuple[torch.Tensor | list[torch.Tensor], ...]:
        """The arguments of the module: ids, mask, positions, the list of keys and values."""
        ids, mask, positions, *past = self.inputs.values()
        return ids, mask, positions, past


def exportable_with_cache(model: nn.Module) -> CachedExport | None:
    """Return the transformers module ``model`` with its cache as inputs and outputs, as a server runs it.

    None for a model whose cache is not keys and values of each layer, or whose logits behind it are others than without
    one; ``exportable`` is left for these. The causal mask is written out as there, and a window that slides is not exported.
    """
    import torch

    ids = torch.arange(2 * (PAST + NEW)).remainder(7).view(2, -1).to(next(model.parameters()).device)
    module = _behind_cache(model)
    try:
        with torch.no_grad():
            answer = model(input_ids=ids[:, :PAST], use_cache=True)
            layers = getattr(answer, cache_name(model)).layers
            past = [part for layer in layers for part in (layer.keys, layer.values)]
            positions = torch.arange(PAST, PAST + NEW, device=ids.device).expand(2, -1)
            example = ids[:, PAST:], torch.ones_like(ids), positions.contiguous(), past
            logits, *present = module(*example)
            whole = exportable(model)(ids)[:, PAST:]
    except Exception:  # whatever the model's own code raises with such a cache
        return None
    sizes = [size for one in (*past, *present) for size in one.shape[2:3]]
    grown = sizes == [PAST] * len(past) + [PAST + NEW] * len(past) and all(one.dim() == 4 for one in past)
    if not past or not grown or not float((logits - whole).abs().max()) <= SAME * float(whole.abs().max()):
        return None
    kinds = [f"{number}.{kind}" for number in range(len(layers)) for kind in ("key", "value")]
    names = ("input_ids", "attention_mask", "position_ids", *(f"past_key_values.{kind}" for kind in kinds))
    inputs = dict(zip(names, (*example[:3], *past), strict=True))
    return CachedExport(module, inputs, ("logits", *(f"present.{kind}" for kind in kinds)))


def _behind_cache(model: nn.Module) -> nn.Module:
    """Return a module of ids, mask, positions and the list of keys and values, to logits and the longer keys and values."""
    import torch

    name = cache_name(model)

    class LogitsBehindCache(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            positions: torch.Tensor,
            past: list[torch.Tensor],
        ) -> tuple[torch.Tensor, ...]:
            place = torch.arange(past[0].shape[2] + input_ids.shape[1], device=input_ids.device)
            seen = (place <= place[past[0].shape[2] :, None])[None, None] & (attention_mask[:, None, None] > 0)
            mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min).to(next(model.parameters()))
            cache = cache_of(past)
            given = {name: cache, "attention_mask": mask, "position_ids": positions}
            logits = self.model(input_ids=input_ids, use_cache=True, **given).logits
            return logits, *(part for layer in cache.layers for part in (layer.keys, layer.values))

    return LogitsBehindCache().eval()
