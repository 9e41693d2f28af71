"""Verifies known super weights: the pass ends after their last layer, so that a large model is read only so far.

T tokens, F inner width, H residual width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import Anatomy, checked_anatomy
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.linear_maps import scalar_of, written_by
from swcheck.lens.tokens import check_token_ids, vocabulary_size
from swcheck.superweights.locating.activation_rules import DEFAULT_RULES, Rules, median_of
from swcheck.superweights.locating.passes import Passes
from swcheck.superweights.locating.writers import Writers

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Confirmation:
    """What a known super weight does in a model.

    ``weight`` has the value that it has here. At token ``position``, where its input is largest, it adds ``written`` to
    the residual stream, which then is ``residual`` in its row; ``median`` is the median magnitude of the stream there.
    ``is_confirmed`` says whether it writes a super activation and has about the known value.
    """

    weight: SuperWeight
    position: int
    written: float
    residual: float
    median: float
    is_confirmed: bool


def confirm(
    model: nn.Module, super_weights: Sequence[SuperWeight], token_ids: torch.Tensor, rules: Rules = DEFAULT_RULES
) -> tuple[Confirmation, ...]:
    """Return what each of ``super_weights`` does on the prompt ``token_ids``, int64 ``(1, T)``.

    A super activation has ``rules.above_median`` times the median of the stream after the layer. That it persists, and
    that no other weight writes one, only ``locate`` sees. Raises ``ArchitectureError``, ``CoordinateError`` for a
    coordinate outside the model, ``TextError`` for ids that are not valid.
    """
    body = checked_anatomy(model)
    body.check(super_weights)
    check_token_ids(token_ids, vocabulary_size(model), shortest=1)
    with evaluating(model):
        result = Passes(
            model, body, token_ids[:1], layers=1 + max((weight.layer for weight in super_weights), default=0)
        ).first
        found = []
        for known in super_weights:
            reading = reading_of(result.writers, body, known)
            stream = result.residual[known.layer]
            residual, median = float(stream[reading.position, known.row]), median_of(stream.abs())
            large = abs(residual) >= rules.above_median * median and residual * reading.written > 0
            is_confirmed = large and same_value(known.value, reading.value)
            weight = replace(known, value=reading.value)
            found.append(Confirmation(weight, reading.position, reading.written, residual, median, is_confirmed))
    return tuple(found)


@dataclass(frozen=True)
class Reading:
    """The value of one weight, the token where its input is largest, and what it adds to the residual stream there."""

    value: float
    position: int
    written: float


def reading_of(writers: Writers, body: Anatomy, weight: SuperWeight) -> Reading:
    """Return what one weight is and does in a recorded pass."""
    down = body.down_map(weight)
    inputs = writers.inputs_of(down)
    position = int(inputs[:, weight.column].float().abs().argmax())
    of_layer = writers.of_layer(weight.layer, position, weight.row)
    gain = next((one.gain for one in of_layer if one.down.key == down.key), 0.0)
    written = float(written_by(down, inputs[position], weight.row, [weight.column])[0]) * gain
    return Reading(scalar_of(down, weight.row, weight.column), position, written)


def same_value(published: float | None, here: float) -> bool:
    """Return whether a published value and the one here have the same sign and differ by at most a factor of two.

    True where no value was published.
    """
    if published is None:
        return True
    return here * published >= 0 and 0.5 * abs(published) <= abs(here) <= 2.0 * abs(published)
