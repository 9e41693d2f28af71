"""Layers and linear maps that stand at another place than in the reference.

Every linear map answers fixed random inputs. A map that answers as the reference's map of another place does, and not as
that of its own, was put there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.evidence.reference_matrices import reference_matrix, reference_parameters_of_layer
from swcheck.gate.diagnosis.evidence.suspect import Suspect
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown
from swcheck.superweights.measurements.weights import map_responses

if TYPE_CHECKING:
    from swcheck.lens.map_responses import MapResponses
    from swcheck.lens.replace import Matrix

ELSEWHERE: Final = 0.7
"""The answer of a map that does not belong to its place differs by more than this; unrelated maps differ by 1.4."""

BELONGS: Final = 0.5
"""The answer of a map to its own place differs by less than this; rounding to 3 bits differs by 0.2 to 0.3."""

MOST_NAMED: Final = 3
"""At most this many layers or maps are named."""

ADVICE: Final = "write the tensors under the names that they had"


def suspects(damaged: DamagedCandidate) -> list[Suspect]:
    """Return a suspect for the layers, and one for the maps inside their layers, that stand at another place."""
    candidate, reference = damaged.candidate, damaged.reference
    if why_responses_unknown(reference) or damaged.relation.kind in {"permuted", "rotated"}:
        return []
    errors = dict(map_errors(candidate, reference))
    wrong = [name for name, error in errors.items() if error > ELSEWHERE]
    if not wrong:
        return []
    places = places_elsewhere(map_responses(candidate), map_responses(reference), wrong)
    layers = moved_layers(places, errors)
    found = [_layers_suspect(damaged, layers)] if layers else []
    inside = {name: other for name, other in places.items() if _layer(name) == _layer(other)}
    return found + ([_maps_suspect(damaged, inside)] if inside else [])


def places_elsewhere(ours: MapResponses, theirs: MapResponses, names: Iterable[str]) -> dict[str, str]:
    """Return for each of the maps ``names`` the name of the reference's map that it is; those that are none are left out."""
    number_of = {name: number for number, name in enumerate(ours.names)}
    found = {}
    for name in names:
        number = number_of.get(name)
        if number is None or ours.values.shape[1] != theirs.values.shape[1]:
            continue
        errors = (theirs.values - ours.values[number]).norm(dim=1) / theirs.norms.clamp_min(1e-12)
        errors[theirs.widths != ours.widths[number]] = float("inf")
        best = int(errors.argmin())
        if float(errors[best]) < BELONGS and theirs.names[best] != name:
            found[name] = theirs.names[best]
    return found


def moved_layers(places: Mapping[str, str], errors: Mapping[str, float]) -> dict[int, int]:
    """Return by the number of a layer of the candidate that of the reference's layer that stands there.

    At least half of its maps have to stand at the same path of that other layer.
    """
    maps = Counter(_layer(name) for name in errors)
    votes = Counter(
        (_layer(a), _layer(b)) for a, b in places.items() if _path(a) == _path(b) and _layer(a) != _layer(b)
    )
    return {ours: theirs for (ours, theirs), count in sorted(votes.items()) if 2 * count >= maps[ours]}


def missing_layers(damaged: DamagedCandidate) -> tuple[int, ...]:
    """Return the reference's layers that no layer of a shallower candidate is; empty if that is not known.

    A layer of the candidate is the reference's layer in which most of its maps have their nearest answers.
    """
    if damaged.candidate.is_runtime or why_responses_unknown(damaged.reference):
        return ()
    ours, theirs = map_responses(damaged.candidate), map_responses(damaged.reference)
    votes: dict[int, Counter[int]] = {}
    for name, number in {name: number for number, name in enumerate(ours.names)}.items():
        same_path = [index for index, other in enumerate(theirs.names) if _path(other) == _path(name)]
        errors = {index: float((theirs.values[index] - ours.values[number]).norm()) for index in same_path}
        if errors:
            votes.setdefault(_layer(name), Counter())[_layer(theirs.names[min(errors, key=errors.__getitem__)])] += 1
    found = {count.most_common(1)[0][0] for count in votes.values()}
    depth = {_layer(name) for name in theirs.names}
    return tuple(sorted(depth - found)) if len(found) == len(votes) else ()


def layer_words(layers: Mapping[int, int]) -> str:
    """Return words for layers that stand at another place: exchanged, copied, reversed, or moved."""
    if len(layers) == 2 and all(layers.get(other) == one for one, other in layers.items()):
        return f"layers {' and '.join(map(str, layers))} are exchanged"
    first, last = min(layers), max(layers)
    if len(layers) > 2 and all(ours + theirs == first + last for ours, theirs in layers.items()):
        return f"layers {first} to {last} are in reversed order"
    words = [
        f"layer {ours} is {'the' if theirs in layers else 'a copy of the'} reference's layer {theirs}"
        for ours, theirs in layers.items()
    ]
    return ", ".join(words[:MOST_NAMED]) + (f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else "")


def _layers_suspect(damaged: DamagedCandidate, layers: Mapping[int, int]) -> Suspect:
    path = f"{damaged.candidate.anatomy.path}."
    names = [f"{path}{name}" for name, _ in map_errors(damaged.candidate, damaged.reference) if _layer(name) in layers]
    maps = {name: matrix for name in names if not isinstance(matrix := _matrix(damaged, name), str)}
    parameters: dict[str, Matrix] = {}
    for layer in layers:
        parameters |= reference_parameters_of_layer(damaged, layer)
    return Suspect("order", layer_words(layers), ADVICE, parameters=parameters, maps=maps, size=2.0)


def _maps_suspect(damaged: DamagedCandidate, places: Mapping[str, str]) -> Suspect:
    path = damaged.candidate.anatomy.path
    maps = {
        f"{path}.{name}": matrix for name in places if not isinstance(matrix := _matrix(damaged, f"{path}.{name}"), str)
    }
    pairs = {tuple(sorted((name, other))) for name, other in places.items() if places.get(other) == name}
    words = [f"{_path(a)} and {_path(b)} of layer {_layer(a)} are exchanged" for a, b in sorted(pairs)]
    words += [f"layers.{a} is the reference's layers.{b}" for a, b in places.items() if places.get(b) != a]
    more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return Suspect("order", ", ".join(words[:MOST_NAMED]) + more, ADVICE, maps=maps, size=2.0)


def _matrix(damaged: DamagedCandidate, name: str) -> Matrix | str:
    return reference_matrix(damaged.candidate, damaged.reference, name)


def _layer(name: str) -> int:
    return int(name.partition(".")[0])


def _path(name: str) -> str:
    return name.partition(".")[2]
