"""Finds the reference's super weights in the candidate; follows permuted channels and permuted inner neurons."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from swcheck.base.errors import CoordinateError
from swcheck.base.limits import DEFAULTS
from swcheck.base.records import SuperWeight
from swcheck.base.statistics import ratio_of
from swcheck.gate.checks.pair import Pair
from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.loading.runtime import Capability
from swcheck.superweights.measurements.contributions import (
    contributions_at,
    contributions_on_default_prompt,
    down_input,
    largest_input_columns,
    sink_tokens,
)
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.located import located_on
from swcheck.superweights.measurements.model_sample import are_sizes_told, model_sample
from swcheck.superweights.measurements.weights import check_coordinates, weight_values

SAME_CONTRIBUTION: Final = DEFAULTS["contribution"]
"""A weight at another place is taken for the same one if the ratio of the contributions is within this limit."""


SAME_INPUT: Final = 0.1
"""An inner neuron stands at its place if its input there differs by less than this."""


@dataclass(frozen=True)
class Correspondence:
    """The super weights in the candidate: ``places`` are their coordinates, ``written`` what each writes there.

    ``absent`` says in words what the candidate has in place of a layer, column or expert of one that it lacks, and is
    empty for one whose place it has. What is absent writes 0. ``notes`` say what was permuted, in words.
    """

    places: tuple[SuperWeight, ...]
    written: tuple[float, ...]
    absent: tuple[str, ...]
    notes: tuple[str, ...]


def corresponding(pair: Pair, chosen: Sequence[SuperWeight]) -> Correspondence:
    """Find each of ``chosen``, given in the reference's coordinates, in the candidate.

    If a weight writes little at its own column, and another inner neuron of the same row writes what it wrote in the
    reference, its neuron was permuted, which is harmless. A place belongs to one super weight only: those that are
    kept where they were come first.
    """
    expected, ids = contributions_on_default_prompt(pair.reference, chosen), prompt_ids(pair.reference)
    sinks = [sink_tokens(pair.reference, (weight,), ids)[0] for weight in chosen]
    notes = [f"permuted channels followed ({pair.relation.words})"] if pair.relation.channels else []
    here = _in_channels(pair, chosen)
    kept = [_kept(pair, *one) for one in zip(here, expected, sinks, strict=True)]
    taken = {weight for weight, value in zip(here, kept, strict=True) if value is not None}
    places, values = [], []
    for number, weight in enumerate(here):
        known = kept[number]
        place, value, note = (
            (weight, known, "")
            if known is not None
            else _find(pair, weight, chosen[number], expected[number], sinks[number], taken)
        )
        taken.add(place)
        places.append(place)
        values.append(value)
        notes += [note] if note else []
    absent = tuple(_absence(pair, place) for place in places)
    return Correspondence(tuple(places), tuple(values), absent, tuple(notes))


def damaged_candidate(pair: Pair, share: float | None = None) -> DamagedCandidate:
    """Return the candidate for a diagnosis, with the super weights that it has a place for; with none if it is rotated.

    ``share`` is the dependence that is left, given only if that is red.
    """
    chosen = () if pair.relation.kind == "rotated" else pair.weights
    found = corresponding(pair, chosen) if chosen else Correspondence((), (), (), ())
    rows = [*zip(chosen, found.places, found.absent, strict=True)]
    return DamagedCandidate(
        pair.candidate,
        pair.reference,
        pair.relation,
        tuple(weight for weight, _, absent in rows if not absent),
        tuple(place for _, place, absent in rows if not absent),
        share,
        tuple((weight, absent) for weight, _, absent in rows if absent),
    )


def depth(pair: Pair) -> int:
    """Return the number of layers of the candidate; the reference's if a runtime does not tell it."""
    return model_sample(pair.candidate if are_sizes_told(pair.candidate) else pair.reference).layers


def _in_channels(pair: Pair, weights: Sequence[SuperWeight]) -> tuple[SuperWeight, ...]:
    """Return the weights with their rows mapped to the candidate's channels, if those are permuted."""
    channels = pair.relation.channels
    return tuple(replace(weight, row=channels[weight.row]) for weight in weights) if channels else tuple(weights)


def _absence(pair: Pair, weight: SuperWeight) -> str:
    """Return what the candidate has where it lacks the place of a weight, in words; empty if it has that.

    A runtime that does not tell its sizes is taken to have it.
    """
    candidate = pair.candidate
    if not are_sizes_told(candidate):
        return ""
    try:
        if candidate.is_runtime:
            check_coordinates(candidate, [weight])
        else:
            candidate.anatomy.check([weight])
    except CoordinateError as error:
        return error.found.replace("this model", "the candidate")
    return ""


def _written_at(pair: Pair, weight: SuperWeight, sink: int) -> float:
    """Return what a weight writes in the candidate at its own place, 0 if the candidate has no such place."""
    if pair.candidate.is_runtime and not pair.candidate.runtime.can(Capability.VALUES):
        return math.nan
    ids = prompt_ids(pair.reference)
    return contributions_at(pair.candidate, (weight,), ids, (sink,))[0] if not _absence(pair, weight) else 0.0


def _kept(pair: Pair, weight: SuperWeight, expected: float, sink: int) -> float | None:
    """Return what a weight writes at its own place if that is as much as in the reference, else None."""
    value = _written_at(pair, weight, sink)
    return value if SAME_CONTRIBUTION.holds(ratio_of(value, expected)) else None


def _find(
    pair: Pair, weight: SuperWeight, original: SuperWeight, expected: float, sink: int, taken: Collection[SuperWeight]
) -> tuple[SuperWeight, float, str]:
    """Find a weight that is not kept at its place: at a permuted neuron, or where it is located again.

    ``taken`` are the places where other super weights were found: a weight is never another one's. Return its place,
    what it writes there, and a note; its own place if it is not found elsewhere.
    """
    ids, value = prompt_ids(pair.reference), _written_at(pair, weight, sink)
    if pair.candidate.is_runtime:  # a conversion keeps every weight at its place
        return weight, value, ""
    stands = not _absence(pair, weight) and _neuron_stands(pair, weight, original, expected, sink)
    if not stands and not _absence(pair, replace(weight, column=0)):
        free = (
            (column, found)
            for column, found in largest_input_columns(pair.candidate, weight, ids, sink)
            if replace(weight, column=column) not in taken
        )
        column, found = next(free, (weight.column, value))
        if (
            column != weight.column
            and SAME_CONTRIBUTION.holds(ratio_of(found, expected))
            and abs(value) < abs(found) / 2
        ):
            note = f"its inner neuron {weight.column} is neuron {column} of the candidate"
            return replace(weight, column=column), found, note
        if pair.relation.channels and column != weight.column and _is_loudest(pair, original, sink):
            note = f"its inner neuron {weight.column} may be neuron {column} of the candidate, the loudest there"
            return replace(weight, column=column), found, note
    for other in located_on(pair.candidate, ids).super_weights:
        elsewhere_here = other.layer == weight.layer and other.column != weight.column
        if other in (*taken, weight) or other.row != weight.row or (stands and elsewhere_here):
            continue
        tokens = sink_tokens(pair.candidate, (other,), ids)
        found = contributions_at(pair.candidate, (other,), ids, tokens)[0]  # as ``expected``: before a router or a norm
        if SAME_CONTRIBUTION.holds(ratio_of(found, expected)):
            note = f"located again in the candidate: {other.place}"
            return other, found, note
    return weight, value, ""


def _neuron_stands(pair: Pair, weight: SuperWeight, original: SuperWeight, expected: float, sink: int) -> bool:
    """Return whether the weight's inner neuron still gets its input there: then no other one of the layer is it."""
    value = weight_values(pair.reference, pair.weights)[pair.weights.index(original)]  # a baseline keeps those of all
    now = float(
        down_input(pair.candidate, weight.layer, prompt_ids(pair.reference), weight.expert)[sink, weight.column]
    )
    return bool(value) and abs(ratio_of(now, expected / value) - 1) < SAME_INPUT


def _is_loudest(pair: Pair, weight: SuperWeight, sink: int) -> bool:
    """Return whether its inner neuron has the largest input at the reference's sink; False if that is not known."""
    ids = prompt_ids(pair.reference)
    known = pair.reference.held.in_memory or largest_input_columns.knows(pair.reference, weight, ids, sink)
    return known and largest_input_columns(pair.reference, weight, ids, sink)[0][0] == weight.column
