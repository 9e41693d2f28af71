"""The linear maps of a layer with the largest errors."""

from __future__ import annotations

from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.relation.linear_maps import map_errors, why_responses_unknown


def worst_maps_of_layer(damaged: DamagedCandidate, layer: int) -> tuple[str, ...]:
    """Return the qualified names of the maps of a layer with at least half of the largest error.

    It is the down projection if errors are not known, or have no meaning because the basis is another one.
    """
    candidate = damaged.candidate
    if why_responses_unknown(damaged.reference) or damaged.relation.kind in {"permuted", "rotated"}:
        return tuple(down.name for down in candidate.anatomy.down_maps(layer) if not down.is_routed)
    errors = [(name, error) for name, error in map_errors(candidate, damaged.reference) if name.startswith(f"{layer}.")]
    return tuple(f"{candidate.anatomy.path}.{name}" for name, error in errors if error >= errors[0][1] / 2)
