"""The super weights of a subject: those that a search finds, and the published ones of a model of its name. T tokens."""

from __future__ import annotations

import torch

from swcheck.base.errors import CoordinateError, WrongModelError
from swcheck.base.records import SuperWeight
from swcheck.loading import published_index
from swcheck.superweights.locating.locate import locate_with_passes
from swcheck.superweights.locating.located import Located
from swcheck.superweights.locating.shared_reading import PassesOfOneReading
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.residual_stream import (
    remember_pass,
    remember_zeroed_profile,
    super_activations,
)
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost
from swcheck.superweights.subject.subject import Subject


@measurement("located", Cost.LOCATE)
def located(subject: Subject) -> Located:
    """Return the super weights: those that are found, and the published ones of a model of this name."""
    return _located(subject, prompt_ids(subject))


@measurement("located", Cost.LOCATE)
def located_on(subject: Subject, ids: torch.Tensor) -> Located:
    """Return ``located`` on the given prompt ``ids`` ``(1, T)``, so that a candidate is searched as its reference was."""
    return _located(subject, ids)


def _located(subject: Subject, ids: torch.Tensor) -> Located:
    if subject.anatomy.refusal:
        return Located((), (), (), (), f"none found: {subject.anatomy.refusal}")
    seeds = published(subject.name)
    try:
        subject.anatomy.check(seeds)
    except CoordinateError as error:
        raise WrongModelError(
            f"the published super weights of {subject.name}", error.found, "check that name and checkpoint match"
        ) from error
    found, passes = locate_with_passes(subject.module, ids, seeds)
    if subject.memory is not None and isinstance(passes, PassesOfOneReading):
        _remember_passes(subject, ids, passes, found.super_weights)
    return found


def published(name: str) -> tuple[SuperWeight, ...]:
    """Return the published super weights of a model of this name; empty for a name without an index entry."""
    entry = published_index.find(name) if name else None
    return entry.super_weights if entry else ()


def _remember_passes(
    subject: Subject, ids: torch.Tensor, passes: PassesOfOneReading, found: tuple[SuperWeight, ...]
) -> None:
    """Remember what the passes of a search in a streamed model have shown: its file is not read again for that."""
    remember_pass(subject, ids, passes.first.observation, is_finite=passes.is_answer_finite())
    zeroed = passes.residual_without(found)
    if found and zeroed is not None and torch.equal(ids, prompt_ids(subject)):
        for place in super_activations(subject, found):
            remember_zeroed_profile(subject, (place, found, ids), zeroed)
