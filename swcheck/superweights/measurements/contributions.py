"""The super weights of a subject, and what they write: weight times input at the token where the input is largest.

T tokens, F inner width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Final

import torch

from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import Expert, MapKey
from swcheck.lens.architecture.storage import device_of, evaluating
from swcheck.lens.likelihood import token_nats
from swcheck.lens.linear_maps import written_by
from swcheck.lens.observe import observe
from swcheck.lens.routing import Routing, routing_recorded
from swcheck.superweights.measurements.in_runtime import contributions_in_runtime
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline, WhenFreed
from swcheck.superweights.subject.subject import Subject

COMPARED_COLUMNS: Final = 32
"""At most this many inner neurons of a down projection are compared, those with the largest inputs."""


@measurement("columns", Cost.PROMPT)
def largest_input_columns(
    subject: Subject, weight: SuperWeight, ids: torch.Tensor, position: int
) -> tuple[tuple[int, float], ...]:
    """Return what the inner neurons with the largest inputs write into a super weight's row.

    The inputs are those at token ``position`` of the prompt ``ids`` ``(1, T)``. The result has pairs of column and
    contribution, in the order of the magnitude of the input, largest first.
    """
    key = MapKey(weight.layer, weight.expert)
    x = _down_inputs(subject, [key], ids)[key][position]
    columns = x.float().abs().topk(min(COMPARED_COLUMNS, len(x))).indices.tolist()
    written = written_by(subject.anatomy.down_map(key), x, weight.row, columns)
    return tuple(zip(columns, written.tolist(), strict=True))


@measurement("contributions", Cost.PROMPT)
def contributions_at(
    subject: Subject, super_weights: Sequence[SuperWeight], ids: torch.Tensor, positions: Sequence[int]
) -> tuple[float, ...]:
    """Return what each scalar writes, weight times input, at its own token of the prompt ``ids`` ``(1, T)``.

    ``positions`` has the token of each.
    """
    if subject.is_runtime:
        return contributions_in_runtime(subject, super_weights, ids, positions)
    inputs, body = _down_inputs(subject, _keys(super_weights), ids), subject.anatomy
    return tuple(
        float(written_by(body.down_map(key), inputs[key][position], w.row, [w.column])[0])
        for key, w, position in zip(_keys(super_weights), super_weights, positions, strict=True)
    )


@measurement("sinks", Cost.PROMPT)
def sink_tokens(subject: Subject, super_weights: Sequence[SuperWeight], ids: torch.Tensor) -> tuple[int, ...]:
    """Return the token of the prompt ``ids`` ``(1, T)`` at which the input of each scalar is largest."""
    inputs, keys = _down_inputs(subject, _keys(super_weights), ids), _keys(super_weights)
    return tuple(
        int(inputs[key][:, w.column].float().abs().argmax()) for key, w in zip(keys, super_weights, strict=True)
    )


def contributions_on_default_prompt(subject: Subject, super_weights: Sequence[SuperWeight]) -> tuple[float, ...]:
    """Return what each scalar writes on the default prompt, at the token where its input is largest."""
    ids = prompt_ids(subject)
    return contributions_at(subject, super_weights, ids, sink_tokens(subject, super_weights, ids))


@measurement("inputs", Cost.PROMPT, in_baseline=InBaseline.NO, when_freed=WhenFreed.FORGET)
def down_input(subject: Subject, layer: int, ids: torch.Tensor, expert: Expert = None) -> torch.Tensor:
    """Return the input ``(T, F)`` of a down projection on the prompt ``ids`` ``(1, T)``, in its own dtype.

    It is zero at the tokens that an expert does not get.
    """
    key = MapKey(layer, expert)
    return _observed_inputs(subject, [key], ids)[key]


@measurement("routing", Cost.WINDOW_STARTS, in_baseline=InBaseline.NO)
def routing_on(subject: Subject, ids: torch.Tensor) -> Routing:
    """Return to which experts the tokens of the windows ``ids``, int64 ``(B, P)``, go, by layer; empty without experts."""
    with routing_recorded(subject.anatomy) as routing:
        token_nats(subject.module, ids)
    return routing


def _keys(super_weights: Sequence[SuperWeight]) -> list[MapKey]:
    return [MapKey(weight.layer, weight.expert) for weight in super_weights]


def _down_inputs(subject: Subject, keys: Collection[MapKey], ids: torch.Tensor) -> dict[MapKey, torch.Tensor]:
    """Return ``down_input`` of several down projections, with one pass for all that are not remembered."""
    unique = {key: (key.layer, ids, key.expert) for key in keys}
    missing = [key for key, arguments in unique.items() if not down_input.knows(subject, *arguments)]
    observed = _observed_inputs(subject, missing, ids) if missing else {}
    return {
        key: down_input.recall(subject, arguments, partial(observed.__getitem__, key))
        for key, arguments in unique.items()
    }


def _observed_inputs(subject: Subject, keys: Sequence[MapKey], ids: torch.Tensor) -> dict[MapKey, torch.Tensor]:
    model = subject.module
    names = {key: key.layer if key.expert is None else key for key in keys}
    with evaluating(model), observe(model, inputs=list(names.values()), stop=True) as sight:
        model(ids.to(device_of(model)), use_cache=False)
    return {key: sight.inputs[name][0] for key, name in names.items()}
