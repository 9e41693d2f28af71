"""Token batches in, summed nats and counts out; no printing, no thresholds.

Sums are kept in float64 whatever the model's dtype is, and divided once, by whoever wants a mean. B batch, T time,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from swcheck.base.errors import NotFiniteError
from swcheck.base.records import Likelihood
from swcheck.lens.anatomy import check_module, device_of
from swcheck.lens.tokens import check_token_ids, vocabulary_size

if TYPE_CHECKING:
    from torch import nn

LOGITS_AT_ONCE: Final = 2**25
"""How many logits are alive at a time: 128 MiB in float32; windows are batched up to here."""


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
    check_token_ids(token_ids, vocabulary_size(model))
    rows = max(1, LOGITS_AT_ONCE // (token_ids.shape[1] * (vocabulary_size(model) or 2**16)))
    with evaluating(model):
        return torch.cat([_nats_of(model, part) for part in torch.split(token_ids, rows)])


def _nats_of(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    token_ids = token_ids.to(device_of(model))
    logits = model(token_ids, use_cache=False).logits[:, :-1].float()
    nats = functional.cross_entropy(logits.transpose(1, 2), token_ids[:, 1:], reduction="none")
    return nats.double().cpu()
