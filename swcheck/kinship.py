"""Whether two models are of one family tree, and whether their residual streams share a basis.

The Gram matrix of a sample of mean-centred embedding rows does not change under a rotation or a permutation of the
channels: where it differs, the candidate comes from another base model. Its diagonal is left out: the squared norms
agree between any two models. Where the rest agrees and the rows themselves do not, the channels have been permuted or
rotated. V vocabulary, H residual width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from swcheck.anatomy import anatomy

if TYPE_CHECKING:
    from torch import nn

ROWS: Final = 256
RELATED: Final = 0.5
"""The least correlation of two Gram matrices: quantized and fine-tuned copies stay above 0.9, strangers are near 0."""
ALIGNED: Final = 0.5


@dataclass(frozen=True)
class Kinship:
    """``kind`` is ``same basis``, ``other basis``, ``other model``, ``other shape`` or ``unknown``, with words."""

    kind: str
    words: str


def kinship(candidate: nn.Module, reference: nn.Module) -> Kinship:
    """Compare shapes, then embeddings. Embeddings that cannot be read (packed, absent) leave the kind ``unknown``."""
    one, other = anatomy(candidate), anatomy(reference)
    shapes = [(len(body.layers), body.hidden, body.inner) for body in (one, other)]
    if shapes[0] != shapes[1]:
        words = "{} layers, width {}, inner width {}"
        return Kinship("other shape", f"{words.format(*shapes[0])}, where the reference has {words.format(*shapes[1])}")
    tables = [_embedding(model) for model in (candidate, reference)]
    if tables[0] is None or tables[1] is None:
        return Kinship("unknown", "the embeddings cannot be read")
    return judge(tables[0], tables[1])


def judge(candidate: torch.Tensor, reference: torch.Tensor) -> Kinship:
    """Compare two embedding tables ``(V, H)``; the rows they have in common are sampled."""
    rows = min(len(candidate), len(reference))
    sample = torch.linspace(0, rows - 1, min(ROWS, rows)).long().unique()
    one, other = (_centred(table[sample.to(table.device)].float().cpu()) for table in (candidate, reference))
    if not torch.isfinite(one).all() or not torch.isfinite(other).all():
        return Kinship("unknown", "an embedding holds NaN or infinity")
    gram = _correlation(_products(one), _products(other))
    if not gram >= RELATED:
        return Kinship("other model", f"the embeddings' Gram matrices correlate at {gram:.2f}, of one model near 1")
    rows_agree = _correlation(one, other)
    kind = "same basis" if rows_agree >= ALIGNED else "other basis"
    return Kinship(kind, f"Gram matrices correlate at {gram:.2f}, rows at {rows_agree:.2f}")


def _embedding(model: nn.Module) -> torch.Tensor | None:
    get = getattr(model, "get_input_embeddings", None)
    weight = getattr(get(), "weight", None) if get else None
    if weight is None or weight.ndim != 2 or not weight.is_floating_point() or weight.is_meta:
        return None
    return weight.detach()  # type: ignore[no-any-return]


def _centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(0)


def _products(rows: torch.Tensor) -> torch.Tensor:
    """The Gram matrix without its diagonal."""
    return (rows @ rows.T).fill_diagonal_(0)


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    a, b = one.flatten().double(), other.flatten().double()
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-30))
