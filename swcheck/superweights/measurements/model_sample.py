"""Samples the sizes and some embedding rows of a model, which tell whether another one comes from the same base model.

H residual width, F inner width, N sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.lens.architecture.anatomy import bare_anatomy
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from torch import nn

SAMPLED_ROWS: Final = 256
"""At most this many rows of the embedding are sampled."""


@dataclass(frozen=True)
class ModelSample:
    """Sizes and embedding rows of a model.

    ``layers`` is the number of decoder layers, ``hidden`` is H and ``inner`` is F. ``rows``, float32 ``(N, H)``, are the
    rows of the input embedding at ``indices``, int64 ``(N,)``; None where it cannot be read (packed or absent).
    """

    layers: int
    hidden: int | None
    inner: int | None
    indices: torch.Tensor
    rows: torch.Tensor | None


@measurement("portrait", Cost.WEIGHTS, of_weights=True)
def model_sample(subject: Subject) -> ModelSample:
    """Return the sample of a subject's model."""
    if subject.is_runtime:
        layers, hidden, inner = subject.runtime.sizes or (0, None, None)
        return ModelSample(layers, hidden, inner, torch.zeros(0, dtype=torch.int64), None)
    return sample_model(subject.module)


def are_sizes_told(subject: Subject) -> bool:
    """Return whether the sizes of a subject's model are known: some runtimes do not tell theirs."""
    return not subject.is_runtime or subject.runtime.sizes is not None


def sample_model(model: nn.Module) -> ModelSample:
    """Sample a model. The row indices do not change when its vocabulary is padded to another size."""
    body = bare_anatomy(model)
    table = _embedding_table(model)
    if table is None:
        return ModelSample(len(body.layers), body.hidden, body.inner, torch.zeros(0, dtype=torch.int64), None)
    stride = 2 ** max(0, (max(1, len(table) // SAMPLED_ROWS)).bit_length() - 1)
    indices = torch.arange(0, len(table), stride)[:SAMPLED_ROWS]
    rows = table[indices.to(table.device)].float().cpu()
    return ModelSample(len(body.layers), body.hidden, body.inner, indices, rows)


def embedding_of(model: nn.Module) -> nn.Module | None:
    """Return the token embedding module, None where its table is packed or there is none."""
    get = getattr(model, "get_input_embeddings", None)
    module: nn.Module | None = get() if get else None
    weight = getattr(module, "weight", None)
    plain = weight is not None and weight.ndim == 2 and weight.is_floating_point() and not weight.is_meta
    return module if plain else None


def _embedding_table(model: nn.Module) -> torch.Tensor | None:
    module: Any = embedding_of(model)
    return None if module is None else module.weight.detach()
