"""A sample of a model by which another one is recognised as the same or another: its sizes and some embedding rows.

V vocabulary, H residual width, N sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.lens.anatomy import anatomy
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from torch import nn

ROWS: Final = 256
"""At most so many rows of the embedding are sampled."""


@dataclass(frozen=True)
class ModelSample:
    """Sizes and embedding rows of a model.

    ``layers``, ``hidden`` (H) and ``inner`` (F) are its sizes; ``rows``, float32 ``(N, H)``, are the rows ``indices``,
    int64 ``(N,)``, of its input embedding, None where that cannot be read (packed or absent).
    """

    layers: int
    hidden: int | None
    inner: int | None
    indices: torch.Tensor
    rows: torch.Tensor | None


@measurement("portrait", Cost.WEIGHTS, of_weights=True)
def model_sample(subject: Subject) -> ModelSample:
    """Return the sample of a subject."""
    return sampled(subject.module)


def sampled(model: nn.Module) -> ModelSample:
    """Sample a model, at indices that do not change when its vocabulary is padded."""
    body = anatomy(model)
    table = _embedding(model)
    if table is None:
        return ModelSample(len(body.layers), body.hidden, body.inner, torch.zeros(0, dtype=torch.int64), None)
    stride = 2 ** max(0, (max(1, len(table) // ROWS)).bit_length() - 1)
    indices = torch.arange(0, len(table), stride)[:ROWS]
    rows = table[indices.to(table.device)].float().cpu()
    return ModelSample(len(body.layers), body.hidden, body.inner, indices, rows)


def embedding_of(model: nn.Module) -> nn.Module | None:
    """Return the module that embeds tokens, None where its table is packed or there is none."""
    get = getattr(model, "get_input_embeddings", None)
    module: nn.Module | None = get() if get else None
    weight = getattr(module, "weight", None)
    plain = weight is not None and weight.ndim == 2 and weight.is_floating_point() and not weight.is_meta
    return module if plain else None


def _embedding(model: nn.Module) -> torch.Tensor | None:
    module: Any = embedding_of(model)
    return None if module is None else module.weight.detach()
