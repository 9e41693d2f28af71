"""Measures a streamed subject with few readings of its file: what needs all layers is run together.

Nothing is measured here of a model in memory, which no pass reads again, and nothing that is remembered.
B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

import torch

from swcheck.base.errors import UnrankedError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.layer_by_layer import Run, run_together, runs_by_layer, visited
from swcheck.lens.intervene import zeroed
from swcheck.lens.map_responses import ResponseReader
from swcheck.lens.non_finite import NonFiniteRows
from swcheck.lens.nulls import draw_matched
from swcheck.superweights.measurements.ablation import (
    intact_nats,
    knows_ablated,
    measure_ablated,
    nats_without_matched,
    scored_starts,
    window_starts,
)
from swcheck.superweights.measurements.inputs import prompt_ids, windows
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.residual_stream import is_residual_known, residual_stream
from swcheck.superweights.measurements.scores import (
    first_window_otherwise,
    intact_scores,
    nats_among,
    noise_windows,
    padded_ids,
    prompt_copies,
    stream_of_copies,
)
from swcheck.superweights.measurements.weights import map_responses, non_finite_parameters
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from torch import nn


def measure_text_together(reference: Subject) -> None:
    """Measure of a streamed reference all that a candidate is compared with and that needs its layers, but the prompt."""
    if not _runs_by_layer(reference):
        return
    jobs = [*_intact_jobs(reference), *_causal_jobs(reference)]
    if not jobs:
        return
    maps = ResponseReader(reference.anatomy)
    visit = None if map_responses.knows(reference) else maps.visit
    with run_together(reference.module, [run for run, _ in jobs], visit) as answering:
        for number, (_, measure) in enumerate(jobs):
            with answering(number):
                measure()
        map_responses.recall(reference, (), maps.responses)


def measure_matched_together(subject: Subject, weights: tuple[SuperWeight, ...], draws: int) -> None:
    """Measure of a streamed subject ``nats_without_matched`` for all ``draws``."""
    missing = [seed for seed in range(draws) if not nats_without_matched.knows(subject, weights, seed)]
    if not missing or not _runs_by_layer(subject):
        return
    model, starts = subject.module, window_starts(subject)
    with suppress(UnrankedError):  # said where it is asked for
        runs = [_without(model, draw_matched(model, weights, seed), starts) for seed in missing]
        with run_together(model, runs) as answering:
            for number, seed in enumerate(missing):
                with answering(number):
                    nats_without_matched.recall(subject, (weights, seed), lambda: scored_starts(subject))


def measure_prompt_together(candidate: Subject, ids: torch.Tensor) -> None:
    """Measure of a streamed candidate the pass over the prompt ``ids`` ``(1, T)``, and look for NaN in its weights beside it."""
    if is_residual_known(candidate, ids) or non_finite_parameters.knows(candidate) or not _runs_by_layer(candidate):
        return
    rows = NonFiniteRows(candidate.module)
    with visited(candidate.module, rows.visit):
        residual_stream(candidate, ids)
    non_finite_parameters.recall(candidate, (), rows.found)


def _intact_jobs(reference: Subject) -> list[tuple[Run, Callable[[], object]]]:
    """Return what is run without a change, and what to measure of each run."""
    jobs: list[tuple[Run, Callable[[], object]]] = []
    ids, tokens = windows(reference), padded_ids(reference)
    if not intact_scores.knows(reference):
        jobs.append((Run(ids), lambda: intact_scores(reference)))
    if tokens > 0 and not nats_among.knows(reference, tokens):
        jobs.append((Run(ids), lambda: nats_among(reference, tokens)))
    if not first_window_otherwise.knows(reference):
        jobs.append((Run(noise_windows(reference)), lambda: first_window_otherwise(reference)))
    if not stream_of_copies.knows(reference):
        jobs.append((Run(prompt_copies(prompt_ids(reference))), lambda: stream_of_copies(reference)))
    return jobs


def _causal_jobs(reference: Subject) -> list[tuple[Run, Callable[[], object]]]:
    """Return what is run with the super weights zeroed, and on starts from between the windows."""
    weights = located(reference).super_weights
    if not reference.tier.causal or not weights or knows_ablated(reference, weights):
        return []
    starts, between = window_starts(reference), window_starts(reference)[len(windows(reference)) :]
    jobs: list[tuple[Run, Callable[[], object]]] = []
    if len(between):
        jobs.append((Run(between), lambda: intact_nats(reference)))
    jobs.append((_without(reference.module, weights, starts), lambda: measure_ablated(reference, weights)))
    return jobs


def _without(model: nn.Module, removed: Sequence[SuperWeight], ids: torch.Tensor) -> Run:
    """Return the run of ``ids`` ``(B, T)`` with ``removed`` zeroed together."""

    def edit(layer: int) -> AbstractContextManager[None]:
        return zeroed(model, [weight for weight in removed if weight.layer == layer])

    return Run(ids, min(weight.layer for weight in removed), edit)


def _runs_by_layer(subject: Subject) -> bool:
    return subject.memory is not None and not subject.is_runtime and runs_by_layer(subject.module)
