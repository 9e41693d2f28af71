"""The super weights of a subject, and what they write: weight times input at the token where the input is largest.

T tokens, F inner width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

import torch

from swcheck.base.errors import CoordinateError, WrongModelError
from swcheck.base.records import SuperWeight
from swcheck.lens.anatomy import device_of
from swcheck.lens.likelihood import evaluating
from swcheck.lens.linear_maps import contributions
from swcheck.lens.observe import observe
from swcheck.loading import published_index
from swcheck.superweights.locating.locate import locate
from swcheck.superweights.locating.located import Located
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline, WhenFreed
from swcheck.superweights.subject.subject import Subject

COMPARED_COLUMNS: Final = 32
"""At most this many inner neurons of a down projection are compared, those with the largest inputs."""


@measurement("located", Cost.LOCATE)
def located(subject: Subject) -> Located:
    """Return the super weights: those that are found, and the published ones of a model of this name."""
    return _located(subject, prompt_ids(subject))


@measurement("located", Cost.LOCATE)
def located_on(subject: Subject, ids: torch.Tensor) -> Located:
    """Return ``located`` on the given prompt ``ids`` ``(1, T)``, so that a candidate is searched as its reference was."""
    return _located(subject, ids)


def _located(subject: Subject, ids: torch.Tensor) -> Located:
    seeds = published(subject.name)
    try:
        subject.anatomy.check(seeds)
    except CoordinateError as error:
        raise WrongModelError(
            f"the published super weights of {subject.name}", error.found, "check that name and checkpoint match"
        ) from error
    return locate(subject.module, token_ids=ids, seeds=seeds)


def published(name: str) -> tuple[SuperWeight, ...]:
    """Return the published super weights of a model of this name; empty for a name without an index entry."""
    entry = published_index.find(name) if name else None
    return entry.super_weights if entry else ()


@measurement("columns", Cost.PROMPT)
def largest_input_columns(
    subject: Subject, weight: SuperWeight, ids: torch.Tensor, position: int
) -> tuple[tuple[int, float], ...]:
    """Return what the inner neurons with the largest inputs write into a super weight's row.

    The inputs are those at token ``position`` of the prompt ``ids`` ``(1, T)``. The result has pairs of column and
    contribution, in the order of the magnitude of the input, largest first.
    """
    x = _down_inputs(subject, [weight.layer], ids)[weight.layer][position]
    columns = x.float().abs().topk(min(COMPARED_COLUMNS, len(x))).indices.tolist()
    written = contributions(subject.anatomy.down_projections[weight.layer], x, weight.row, columns)
    return tuple(zip(columns, written.tolist(), strict=True))


@measurement("contributions", Cost.PROMPT)
def contributions_at(
    subject: Subject, super_weights: Sequence[SuperWeight], ids: torch.Tensor, positions: Sequence[int]
) -> tuple[float, ...]:
    """Return what each scalar writes, weight times input, at its own token of the prompt ``ids`` ``(1, T)``.

    ``positions`` has the token of each.
    """
    inputs, downs = (
        _down_inputs(subject, {weight.layer for weight in super_weights}, ids),
        subject.anatomy.down_projections,
    )
    return tuple(
        float(contributions(downs[w.layer], inputs[w.layer][position], w.row, [w.column])[0])
        for w, position in zip(super_weights, positions, strict=True)
    )


@measurement("sinks", Cost.PROMPT)
def sink_tokens(subject: Subject, super_weights: Sequence[SuperWeight], ids: torch.Tensor) -> tuple[int, ...]:
    """Return the token of the prompt ``ids`` ``(1, T)`` at which the input of each scalar is largest."""
    inputs = _down_inputs(subject, {weight.layer for weight in super_weights}, ids)
    return tuple(int(inputs[w.layer][:, w.column].float().abs().argmax()) for w in super_weights)


def contributions_on_default_prompt(subject: Subject, super_weights: Sequence[SuperWeight]) -> tuple[float, ...]:
    """Return what each scalar writes on the default prompt, at the token where its input is largest."""
    ids = prompt_ids(subject)
    return contributions_at(subject, super_weights, ids, sink_tokens(subject, super_weights, ids))


@measurement("inputs", Cost.PROMPT, in_baseline=InBaseline.NO, when_freed=WhenFreed.FORGET)
def down_input(subject: Subject, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """Return the input ``(T, F)`` of the down projection of a layer on the prompt ``ids`` ``(1, T)``, in its own dtype."""
    return _observed_inputs(subject, [layer], ids)[layer]


def _down_inputs(subject: Subject, layers: Collection[int], ids: torch.Tensor) -> dict[int, torch.Tensor]:
    """Return ``down_input`` of several layers, with one pass for all that are not remembered."""
    missing = [layer for layer in layers if not down_input.knows(subject, layer, ids)]
    observed = _observed_inputs(subject, missing, ids) if missing else {}
    return {layer: down_input.recall(subject, (layer, ids), partial(observed.__getitem__, layer)) for layer in layers}


def _observed_inputs(subject: Subject, layers: Sequence[int], ids: torch.Tensor) -> dict[int, torch.Tensor]:
    model = subject.module
    with evaluating(model), observe(model, inputs=layers, stop=True) as sight:
        model(ids.to(device_of(model)), use_cache=False)
    return {layer: sight.inputs[layer][0] for layer in layers}
