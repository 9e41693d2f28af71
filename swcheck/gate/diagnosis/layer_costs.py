"""What each layer of a candidate costs, also of a green one: which to spare first, or to spend more bits on.

The cost of a layer is the KL divergence that goes away when its linear maps compute with the reference's weights, through
a hook. Layers do not cost independently of each other, so the costs need not add up. L layers, B windows, P tokens of a
window start, N sampled positions.
"""

from __future__ import annotations

from typing import Final

import torch

from swcheck.base.terminal.progress import with_bar
from swcheck.gate.diagnosis.evidence.reference_matrices import reference_matrix
from swcheck.gate.relation.basis import relation
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown
from swcheck.lens.kl_divergence import Predictions, compare_predictions
from swcheck.lens.replace import maps_replaced
from swcheck.superweights.measurements.inputs import windows
from swcheck.superweights.measurements.model_sample import model_sample
from swcheck.superweights.measurements.scores import intact_scores
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject

PART: Final = 4
"""One in so many tokens of each window is scored, those at its beginning."""

SHORTEST: Final = 64


@measurement("layer costs", Cost.DIAGNOSIS, in_baseline=InBaseline.NO)
def layer_costs(candidate: Subject, reference: Subject) -> tuple[tuple[int, float, float], ...] | str:
    """Return the number of each layer, its cost in nats, and its share of the whole divergence; the dearest layer first.

    Words that say why, where layers cannot be exchanged between the two models. One pass over a quarter of the tokens for
    each layer.
    """
    why = _why_unknown(candidate, reference)
    if why:
        return why
    ids, expected = _starts(windows(reference), intact_scores(reference)[1])
    path, changed = candidate.anatomy.path, [name for name, error in map_errors(candidate, reference) if error > 0]
    layers = sorted({int(name.partition(".")[0]) for name in changed})
    whole = compare_predictions(candidate.scorer, ids, expected)[1].mean
    costs = []
    for layer in with_bar(layers, "cost of layers", len(layers)):
        names = [f"{path}.{name}" for name in changed if name.startswith(f"{layer}.")]
        found = {name: reference_matrix(candidate, reference, name) for name in names}
        maps = {name: weight for name, weight in found.items() if not isinstance(weight, str)}
        if not maps:
            return next(words for words in found.values() if isinstance(words, str))
        with maps_replaced(candidate.module, maps, {}):
            cost = whole - compare_predictions(candidate.scorer, ids, expected)[1].mean
        costs.append((layer, cost, cost / whole if whole else 0.0))
    return tuple(sorted(costs, key=lambda one: -one[1]))


def _why_unknown(candidate: Subject, reference: Subject) -> str:
    if candidate.is_runtime:
        return f"{candidate.runtime_title} computes with its own weights"
    if candidate.anatomy.refusal:
        return candidate.anatomy.refusal
    if model_sample(candidate).layers != model_sample(reference).layers:
        return "the candidate has another number of layers"
    found = relation(candidate, reference)
    return why_responses_unknown(reference) or ("" if found.kind == "same basis" else found.words)


def _starts(ids: torch.Tensor, expected: Predictions) -> tuple[torch.Tensor, Predictions]:
    """Return the beginnings of windows, int64 ``(B, P)``, and the part of the reference's predictions that is in them."""
    length, width = min(ids.shape[1], max(SHORTEST, ids.shape[1] // PART)), ids.shape[1] - 1
    window, place = expected.positions // width, expected.positions % width
    inside = place < length - 1
    positions = window[inside] * (length - 1) + place[inside]
    return ids[:, :length], Predictions(positions, expected.tokens[inside], expected.logs[inside])
