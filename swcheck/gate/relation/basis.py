"""Whether two models are of one family tree, and whether their residual streams share a basis.

The Gram matrix of a sample of mean-centred embedding rows does not change under a rotation or a permutation of the
channels: where it differs, the candidate comes from another base model. Its diagonal is left out: squared norms are
much alike in all rows of any wide model, and would make kin of strangers. Where it agrees and the rows themselves do
not, the channels have been permuted, and then each finds its partner, or rotated. A model leaves its ``ModelSample``, so
that two need not be in memory together. V vocabulary, H residual width, N sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from swcheck.superweights.measurements.model_sample import ModelSample, model_sample
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject

RELATED: Final = 0.5
"""The least correlation of two Gram matrices: quantized and fine-tuned copies stay above 0.9, strangers are near 0."""
ALIGNED: Final = 0.5
PARTNERS: Final = 0.9
"""The least mean correlation of a channel with its partner for a permutation."""


@dataclass(frozen=True)
class Relation:
    """``kind`` is ``same basis``, ``permuted``, ``rotated``, ``other model``, ``other shape`` or ``unknown``, with words.

    ``channels`` says for a permuted candidate where each of the reference's channels has gone.
    """

    kind: str
    words: str
    channels: tuple[int, ...] = ()


@measurement("kin", Cost.WEIGHTS, in_baseline=InBaseline.NO)
def relation(candidate: Subject, reference: Subject) -> Relation:
    """Return how the bases of two subjects are related."""
    return related(model_sample(candidate), model_sample(reference))


def related(candidate: ModelSample, reference: ModelSample) -> Relation:
    """Compare widths, then embeddings. Embeddings that cannot be read leave the kind ``unknown``.

    Another depth or inner width is no other model: layers and neurons can be pruned.
    """
    if candidate.hidden != reference.hidden:
        words = f"width {candidate.hidden}, where the reference has {reference.hidden}"
        return Relation("other shape", f"{words} (layers: {candidate.layers} for {reference.layers})")
    if candidate.rows is None or reference.rows is None:
        return Relation("unknown", "the embeddings cannot be read")
    common = [i for i in candidate.indices.tolist() if i in set(reference.indices.tolist())]
    ours = candidate.rows[torch.isin(candidate.indices, torch.tensor(common))]
    theirs = reference.rows[torch.isin(reference.indices, torch.tensor(common))]
    return compare(ours, theirs)


def compare(candidate: torch.Tensor, reference: torch.Tensor) -> Relation:
    """Compare the same embedding rows ``(N, H)`` of two models."""
    if not torch.isfinite(candidate).all() or not torch.isfinite(reference).all():
        return Relation("unknown", "an embedding holds NaN or infinity")
    one, other = _centred(candidate), _centred(reference)
    gram = _correlation(_products(one), _products(other))
    if not gram >= RELATED:
        return Relation("other model", f"the embeddings' Gram matrices correlate at {gram:.2f}, of one model near 1")
    rows = _correlation(one, other)
    if rows >= ALIGNED:
        return Relation("same basis", f"Gram matrices correlate at {gram:.2f}, rows at {rows:.2f}")
    partners, likeness = _partners(one, other)
    if len(set(partners)) == len(partners) and likeness >= PARTNERS:
        return Relation("permuted", f"its channels are permuted (they match at {likeness:.2f})", partners)
    return Relation("rotated", f"its residual stream has another basis (Gram {gram:.2f}, rows {rows:.2f})")


def _partners(candidate: torch.Tensor, reference: torch.Tensor) -> tuple[tuple[int, ...], float]:
    """For each of the reference's channels the candidate's most alike, and their mean correlation."""
    ours, theirs = (rows / rows.norm(dim=0).clamp_min(1e-12) for rows in (candidate, reference))
    best = (theirs.T @ ours).max(1)
    return tuple(best.indices.tolist()), float(best.values.mean())


def _centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(0)


def _products(rows: torch.Tensor) -> torch.Tensor:
    """The Gram matrix ``(N, N)`` without its diagonal."""
    return (rows @ rows.T).fill_diagonal_(0)


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    a, b = one.flatten().double(), other.flatten().double()
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-30))
