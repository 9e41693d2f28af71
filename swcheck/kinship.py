"""Whether two models are of one family tree, and whether their residual streams share a basis.

The Gram matrix of a sample of mean-centred embedding rows does not change under a rotation or a permutation of the
channels: where it differs, the candidate comes from another base model. Its diagonal is left out: squared norms are
much alike in all rows of any wide model, and would make kin of strangers. Where it agrees and the rows themselves do
not, the channels have been permuted, and then each finds its partner, or rotated. A model leaves its ``Portrait``, so
that two need not be in memory together. V vocabulary, H residual width, N sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.anatomy import anatomy

if TYPE_CHECKING:
    from torch import nn

ROWS: Final = 256
RELATED: Final = 0.5
"""The least correlation of two Gram matrices: quantized and fine-tuned copies stay above 0.9, strangers are near 0."""
ALIGNED: Final = 0.5
PARTNERS: Final = 0.9
"""The least mean correlation of a channel with its partner for a permutation."""


@dataclass(frozen=True)
class Portrait:
    """What is kept of a model to know its kin by.

    ``rows`` float32 ``(N, H)`` are rows ``indices`` int64 ``(N,)`` of its input embedding, None where it cannot be
    read (packed, absent).
    """

    layers: int
    hidden: int | None
    inner: int | None
    indices: torch.Tensor
    rows: torch.Tensor | None


@dataclass(frozen=True)
class Kinship:
    """``kind`` is ``same basis``, ``permuted``, ``rotated``, ``other model``, ``other shape`` or ``unknown``, with words.

    ``channels`` says for a permuted candidate where each of the reference's channels has gone.
    """

    kind: str
    words: str
    channels: tuple[int, ...] = ()


def portrait(model: nn.Module) -> Portrait:
    """Sizes, and a sample of the embedding at indices that do not change when a vocabulary is padded."""
    body = anatomy(model)
    table = _embedding(model)
    if table is None:
        return Portrait(len(body.layers), body.hidden, body.inner, torch.zeros(0, dtype=torch.int64), None)
    stride = 2 ** max(0, (max(1, len(table) // ROWS)).bit_length() - 1)
    indices = torch.arange(0, len(table), stride)[:ROWS]
    return Portrait(len(body.layers), body.hidden, body.inner, indices, table[indices.to(table.device)].float().cpu())


def kinship(candidate: nn.Module, reference: nn.Module) -> Kinship:
    """Compare two models at hand; see ``related``."""
    return related(portrait(candidate), portrait(reference))


def related(candidate: Portrait, reference: Portrait) -> Kinship:
    """Compare widths, then embeddings. Embeddings that cannot be read leave the kind ``unknown``.

    Another depth or inner width is no other model: layers and neurons can be pruned.
    """
    if candidate.hidden != reference.hidden:
        words = f"width {candidate.hidden}, where the reference has {reference.hidden}"
        return Kinship("other shape", f"{words} (layers: {candidate.layers} for {reference.layers})")
    if candidate.rows is None or reference.rows is None:
        return Kinship("unknown", "the embeddings cannot be read")
    common = [i for i in candidate.indices.tolist() if i in set(reference.indices.tolist())]
    ours = candidate.rows[torch.isin(candidate.indices, torch.tensor(common))]
    theirs = reference.rows[torch.isin(reference.indices, torch.tensor(common))]
    return compare(ours, theirs)


def judge(candidate: torch.Tensor, reference: torch.Tensor) -> Kinship:
    """Compare two embedding tables ``(V, H)``; the rows they have in common are sampled."""
    rows = min(len(candidate), len(reference))
    sample = torch.linspace(0, rows - 1, min(ROWS, rows), dtype=torch.float64).round().long()
    one, other = (table[sample.to(table.device)].float().cpu() for table in (candidate, reference))
    return compare(one, other)


def compare(candidate: torch.Tensor, reference: torch.Tensor) -> Kinship:
    """Compare the same embedding rows ``(N, H)`` of two models."""
    if not torch.isfinite(candidate).all() or not torch.isfinite(reference).all():
        return Kinship("unknown", "an embedding holds NaN or infinity")
    one, other = _centred(candidate), _centred(reference)
    gram = _correlation(_products(one), _products(other))
    if not gram >= RELATED:
        return Kinship("other model", f"the embeddings' Gram matrices correlate at {gram:.2f}, of one model near 1")
    rows = _correlation(one, other)
    if rows >= ALIGNED:
        return Kinship("same basis", f"Gram matrices correlate at {gram:.2f}, rows at {rows:.2f}")
    partners, likeness = _partners(one, other)
    if len(set(partners)) == len(partners) and likeness >= PARTNERS:
        return Kinship("permuted", f"its channels are permuted (they match at {likeness:.2f})", partners)
    return Kinship("rotated", f"its residual stream has another basis (Gram {gram:.2f}, rows {rows:.2f})")


def _partners(candidate: torch.Tensor, reference: torch.Tensor) -> tuple[tuple[int, ...], float]:
    """For each of the reference's channels the candidate's most alike, and their mean correlation."""
    ours, theirs = (rows / rows.norm(dim=0).clamp_min(1e-12) for rows in (candidate, reference))
    best = (theirs.T @ ours).max(1)
    return tuple(best.indices.tolist()), float(best.values.mean())


def embedding_of(model: nn.Module) -> nn.Module | None:
    """The module that embeds tokens, None where it keeps its table packed or has none."""
    get = getattr(model, "get_input_embeddings", None)
    module: nn.Module | None = get() if get else None
    weight = getattr(module, "weight", None)
    plain = weight is not None and weight.ndim == 2 and weight.is_floating_point() and not weight.is_meta
    return module if plain else None


def _embedding(model: nn.Module) -> torch.Tensor | None:
    module: Any = embedding_of(model)
    return None if module is None else module.weight.detach()


def _centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(0)


def _products(rows: torch.Tensor) -> torch.Tensor:
    """The Gram matrix ``(N, N)`` without its diagonal."""
    return (rows @ rows.T).fill_diagonal_(0)


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    a, b = one.flatten().double(), other.flatten().double()
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-30))
