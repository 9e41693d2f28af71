"""The scores of a subject on its windows: nats of every token, predictions, and their noise. B batch, T tokens."""

from __future__ import annotations

import torch

from swcheck.lens.architecture.layer_by_layer import logits_of_windows
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.kl_divergence import Drift, Predictions, compare_predictions, predict
from swcheck.lens.likelihood import nats_of_logits, token_nats, windows_at_once
from swcheck.lens.observe import observe
from swcheck.superweights.measurements.inputs import id_count, prompt_ids, vocabulary_size, windows
from swcheck.superweights.measurements.residual_stream import residual_stream
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject


@measurement("intact", Cost.WINDOWS, in_baseline=InBaseline.HALF)
def intact_scores(subject: Subject) -> tuple[torch.Tensor, Predictions]:
    """Return the nats of every predicted token of the windows, float64 ``(B, T - 1)``, and the likeliest tokens."""
    return predict(subject.scorer, windows(subject))


@measurement("against", Cost.WINDOWS, in_baseline=InBaseline.NO)
def scores_against(subject: Subject, reference: Subject) -> tuple[torch.Tensor, Drift]:
    """Return the subject's nats on the windows of ``reference``, and the drift of its predictions from the reference's."""
    ids, expected = windows(reference), intact_scores(reference)[1]  # first: they may need the reference in memory
    return compare_predictions(subject.scorer, ids, expected)


@measurement("among", Cost.WINDOWS, in_baseline=InBaseline.HALF)
def nats_among(subject: Subject, count: int) -> torch.Tensor:
    """Return the nats of every token of the windows, float64 ``(B, T - 1)``, as if there were the first ids alone."""
    return token_nats(subject.scorer, windows(subject), count)


@measurement("against among", Cost.WINDOWS, in_baseline=InBaseline.NO)
def nats_among_against(subject: Subject, reference: Subject, count: int) -> torch.Tensor:
    """Return the subject's nats on the windows of ``reference``, as if there were the first ``count`` ids alone."""
    return token_nats(subject.scorer, windows(reference), count)


def padded_ids(subject: Subject) -> int:
    """Return how many ids the tokenizer gives if the vocabulary has more rows, to which a candidate may be cut down; else 0."""
    tokens = id_count(subject)
    return tokens if tokens < vocabulary_size(subject) else 0


def shared_ids(candidate: Subject, reference: Subject) -> int | None:
    """Return how many ids both are scored on if the candidate's vocabulary was cut down; else None: on all of their own.

    These are the ids of the reference's tokenizer, if the candidate has rows for all of them.
    """
    known = reference.is_measurable or vocabulary_size.knows(reference)
    if candidate is reference or not known or vocabulary_size(candidate) >= vocabulary_size(reference):
        return None
    tokens = id_count(reference)
    count = tokens if 0 < tokens <= vocabulary_size(candidate) else vocabulary_size(candidate)
    return count if reference.is_measurable or nats_among.knows(reference, count) else None


def paired_nats(candidate: Subject, reference: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nats of every token of the reference's windows, first its own, then the candidate's.

    Both are float64 ``(B, T - 1)``. Where the candidate's vocabulary was cut down, they are those among the shared ids.
    """
    count = shared_ids(candidate, reference)
    if count is not None:
        return nats_among(reference, count), nats_among_against(candidate, reference, count)
    theirs = intact_scores(reference)[0]  # first: it may need the reference in memory
    return theirs, theirs if candidate is reference else scores_against(candidate, reference)[0]


@measurement("noise", Cost.PROMPT)
def noise_floor(subject: Subject) -> tuple[float, float]:
    """Return the noise of the mean nats per token, in nats, and the relative noise of the residual stream.

    The first is the difference between a window scored alone and the same window scored in a batch, whose nats are known of one. The second is the
    relative difference between a prompt alone and three copies of it in a batch, after the last layer; it is at least
    the precision of the dtype that is computed in.
    """
    noise = abs(float(first_window_otherwise(subject).mean() - intact_scores(subject)[0][0].mean()))
    found = stream_of_copies(subject)
    if found is None:
        return noise, torch.finfo(next(subject.module.parameters()).dtype).eps
    expected = residual_stream(subject, prompt_ids(subject))[-1].double()
    difference = float((found.double() - expected).norm() / expected.norm().clamp_min(1e-30))
    return noise, max(torch.finfo(found.dtype).eps, difference)


@measurement("otherwise", Cost.PROMPT, in_baseline=InBaseline.NO)
def first_window_otherwise(subject: Subject) -> torch.Tensor:
    """Return the nats of the first window, scored in ``noise_windows``, float64 ``(T - 1,)``."""
    model, ids = subject.module, noise_windows(subject)
    with evaluating(model):
        logits = next(logits_of_windows(model, ids, len(ids)))
    return nats_of_logits(logits[0, :-1], ids[0, 1:])


def noise_windows(subject: Subject) -> torch.Tensor:
    """Return the first window in a batch of another size than it is scored in: alone, or where it is alone, with a copy."""
    ids = windows(subject)
    return ids[:1] if windows_at_once(subject.module, ids) > 1 < len(ids) else ids[:1].repeat(2, 1)


@measurement("copies", Cost.PROMPT, in_baseline=InBaseline.NO)
def stream_of_copies(subject: Subject) -> torch.Tensor | None:
    """Return the residual stream after the last layer in the first of three copies of the prompt, ``(T, H)``.

    It is in the dtype of the model; None where the layers are not known.
    """
    model, body, ids = subject.module, subject.anatomy, prompt_copies(prompt_ids(subject))
    if not body.layers:
        return None
    last = len(body.layers) - 1
    with evaluating(model), observe(model, residual=[last], stop=True) as sight:
        next(logits_of_windows(model, ids, len(ids)))
    return sight.residual[last][0].cpu()


def prompt_copies(ids: torch.Tensor) -> torch.Tensor:
    """Return three copies of a prompt ``(1, T)``, ``(3, T)``."""
    return ids.repeat(3, 1)


@measurement("two runs", Cost.PROMPT, in_baseline=InBaseline.NO)
def noise_of_two_runs(subject: Subject, reference: Subject) -> float:
    """Return the noise of the mean nats per token of a runtime: the first window's, scored twice; 0 for torch."""
    if not subject.is_runtime:
        return 0.0
    again = token_nats(subject.scorer, windows(reference)[:1])[0]
    return abs(float((again - scores_against(subject, reference)[0][0]).mean()))
