"""Reads the weights of a subject without a forward pass, and the files they were loaded from.

H residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import Expert, MapKey, check_inside
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.linear_maps import scalar_of
from swcheck.lens.map_responses import MapResponses, responses_of
from swcheck.lens.non_finite import non_finite_rows
from swcheck.loading import hub, tensor_files
from swcheck.superweights.measurements.model_sample import model_sample
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline, WhenFreed
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from torch import nn

SMALL_MODEL: Final = 1_000_000_000
"""A model of at most this many parameters is small.

It is loaded again for one more measurement, and two of them fit into the memory of most machines.
"""


def check_coordinates(subject: Subject, super_weights: Sequence[SuperWeight]) -> None:
    """Raise ``CoordinateError`` for the first coordinate outside the model. No weights are read if its sizes are known."""
    sizes = model_sample(subject)
    check_inside(super_weights, sizes.layers, sizes.hidden, sizes.inner)


@measurement("parameters", Cost.WEIGHTS, of_weights=True)
def parameter_count(subject: Subject) -> int:
    """Return the number of parameters as the module counts them; packed weights make it smaller."""
    return sum(parameter.numel() for parameter in subject.module.parameters())


def is_small(subject: Subject) -> bool:
    """Return whether the model has at most ``SMALL_MODEL`` parameters."""
    return parameter_count(subject) <= SMALL_MODEL


def is_quickly_measurable(subject: Subject) -> bool:
    """Return whether a new measurement needs no long loading: the weights are in memory, or the model is small."""
    return subject.held.in_memory or (subject.is_measurable and is_small(subject))


@measurement("down", Cost.WEIGHTS)
def down_name(subject: Subject, layer: int, expert: Expert = None) -> str:
    """Return the qualified name of the module that has a down projection, which has all experts where they are stacked."""
    return subject.anatomy.down_map(MapKey(layer, expert)).module_name


@measurement("weights", Cost.WEIGHTS)
def weight_values(subject: Subject, super_weights: Sequence[SuperWeight]) -> tuple[float, ...]:
    """Return the effective value of each scalar."""
    if subject.is_runtime:
        return tuple(subject.runtime.weight_value(weight) for weight in super_weights)
    body = subject.anatomy
    return tuple(scalar_of(body.down_map(w), w.row, w.column) for w in super_weights)


@measurement("matrix", Cost.WEIGHTS, in_baseline=InBaseline.NO, when_freed=WhenFreed.COPY)
def down_matrix(subject: Subject, layer: int, expert: Expert = None) -> torch.Tensor | None:
    """Return the weight ``(H, F)`` of a down projection itself, not a copy; None where it is packed."""
    return subject.anatomy.down_map(MapKey(layer, expert)).weight


@measurement("row", Cost.WEIGHTS, in_baseline=InBaseline.HALF)
def matrix_row(subject: Subject, weight: SuperWeight) -> torch.Tensor | None:
    """Return the row of the down projection that has a super weight, float32 ``(F,)``; None where it is packed."""
    matrix = None if subject.is_runtime else subject.anatomy.down_map(weight).weight
    return None if matrix is None else matrix[weight.row].to("cpu", torch.float32, copy=True)


@measurement("echoes", Cost.LINEAR_MAPS, of_weights=True)
def map_responses(subject: Subject) -> MapResponses:
    """Return the outputs of every linear map of the decoder layers for fixed random inputs, as count sketches."""
    with evaluating(subject.module):
        return responses_of(subject.anatomy)


@measurement("stored non-finite", Cost.WEIGHTS, in_baseline=InBaseline.NO, of_weights=True)
def non_finite_parameters(subject: Subject) -> dict[str, tuple[int, ...]]:
    """Return by name the first rows of each float parameter that holds NaN or infinity."""
    return {} if subject.is_runtime else non_finite_rows(subject.module)


def stored_tensor(subject: Subject, name: str, model: nn.Module | None = None) -> torch.Tensor | str:
    """Return a tensor from the files of the subject's directory, or words that say why it cannot be read.

    With a ``model`` of its type also one that transformers renames or makes of several ones, as of those of experts.
    """
    folder = _directory(subject)
    if folder is None:
        return "the reference is not on this machine"
    found = tensor_files.read_tensor(folder, name)
    return found if model is None or not isinstance(found, str) else tensor_files.read_converted(folder, name, model)


def stored_bytes(subject: Subject) -> int:
    """Return the size in bytes of the tensors in the subject's directory, 0 where it has none."""
    folder = _directory(subject)
    return 0 if folder is None else tensor_files.tensor_bytes(folder)


def _directory(subject: Subject) -> Path | None:
    return hub.local_directory(subject.source) if subject.source else None
