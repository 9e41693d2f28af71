"""Finds out whether two models come from the same base model, and whether their residual streams share a basis.

A sample of embedding rows is compared, mean-centred. Rotating or permuting the channels does not change the Gram matrix
of the rows, so a different Gram matrix means another base model. Its diagonal is left out: the squared norms are nearly
equal in all rows of any wide model, and would make unrelated models look related. Where the Gram matrices agree but the
rows do not, the channels were permuted (then each channel has a match in the other model) or rotated. Of a model only
its ``ModelSample`` is needed, so the two need not be in memory together. H residual width, N sampled rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from swcheck.superweights.measurements.model_sample import ModelSample, model_sample
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject

SAME_MODEL: Final = 0.5
"""The Gram matrices of one base model correlate at least this much.

Quantized and fine-tuned copies stay above 0.9, unrelated models are near 0.
"""
SAME_BASIS: Final = 0.5
"""The embedding rows correlate at least this much in the same basis."""
PERMUTED: Final = 0.9
"""The channels correlate at least this much with their matches, on average, where they were permuted."""


@dataclass(frozen=True)
class Relation:
    """How the residual streams of a candidate and its reference are related.

    ``kind`` is ``same basis``, ``permuted``, ``rotated``, ``other model``, ``other shape`` or ``unknown``. ``words``
    explain it. For a permuted candidate ``channels`` gives for each channel of the reference its channel in the
    candidate; otherwise it is empty.
    """

    kind: str
    words: str
    channels: tuple[int, ...] = ()


@measurement("kin", Cost.WEIGHTS, in_baseline=InBaseline.NO)
def relation(candidate: Subject, reference: Subject) -> Relation:
    """Return how the residual streams of two subjects are related."""
    ours, theirs = model_sample(candidate), model_sample(reference)
    if candidate.is_runtime and ours.hidden is None:
        return Relation("unknown", f"{candidate.runtime.title} does not tell its sizes")
    return relation_of_samples(ours, theirs)


def relation_of_samples(candidate: ModelSample, reference: ModelSample) -> Relation:
    """Compare the residual widths of two models, then their embeddings.

    The kind is ``unknown`` where an embedding cannot be read. Another number of layers or another inner width does not
    make it another model, because layers and neurons can be pruned.
    """
    if candidate.hidden != reference.hidden:
        words = f"width {candidate.hidden}, where the reference has {reference.hidden}"
        return Relation("other shape", f"{words} (layers: {candidate.layers} for {reference.layers})")
    if candidate.rows is None or reference.rows is None:
        return Relation("unknown", "the embeddings cannot be read")
    common = [i for i in candidate.indices.tolist() if i in set(reference.indices.tolist())]
    candidate_rows = candidate.rows[torch.isin(candidate.indices, torch.tensor(common))]
    reference_rows = reference.rows[torch.isin(reference.indices, torch.tensor(common))]
    return relation_of_embeddings(candidate_rows, reference_rows)


def relation_of_embeddings(candidate: torch.Tensor, reference: torch.Tensor) -> Relation:
    """Compare the same embedding rows of two models, each float ``(N, H)``."""
    if not torch.isfinite(candidate).all() or not torch.isfinite(reference).all():
        return Relation("unknown", "an embedding holds NaN or infinity")
    candidate, reference = _centred(candidate), _centred(reference)
    gram = _correlation(_gram_matrix(candidate), _gram_matrix(reference))
    if not gram >= SAME_MODEL:
        return Relation("other model", f"the embeddings' Gram matrices correlate at {gram:.2f}, of one model near 1")
    rows = _correlation(candidate, reference)
    if rows >= SAME_BASIS:
        return Relation("same basis", f"Gram matrices correlate at {gram:.2f}, rows at {rows:.2f}")
    matches, correlation = _matching_channels(candidate, reference)
    if len(set(matches)) == len(matches) and correlation >= PERMUTED:
        return Relation("permuted", f"its channels are permuted (they match at {correlation:.2f})", matches)
    return Relation("rotated", f"its residual stream has another basis (Gram {gram:.2f}, rows {rows:.2f})")


def _matching_channels(candidate: torch.Tensor, reference: torch.Tensor) -> tuple[tuple[int, ...], float]:
    """Return for each channel of the reference the candidate's most similar one, and their mean correlation."""
    candidate, reference = (rows / rows.norm(dim=0).clamp_min(1e-12) for rows in (candidate, reference))
    best = (reference.T @ candidate).max(1)
    return tuple(best.indices.tolist()), float(best.values.mean())


def _centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(0)


def _gram_matrix(rows: torch.Tensor) -> torch.Tensor:
    """Return the Gram matrix ``(N, N)`` of the rows, with its diagonal set to 0."""
    return (rows @ rows.T).fill_diagonal_(0)


def _correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    a, b = one.flatten().double(), other.flatten().double()
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-30))
