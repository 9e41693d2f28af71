"""Why a candidate is red: causes are tried in a fixed order, and each is proven before it is named.

A cause is proven by restoring what was lost, through a hook, and seeing at least half of the lost nats return. What was
ruled out before it is kept, with its numbers. Where no cause is proven, the rest of the model is to blame: the layer
where the error rises most, and the linear maps that answer worst.

What is not finite, another tokenizer and another base model are ruled out before (``gate.confounds``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

from swcheck.gate.diagnosis.causes import (
    activation,
    block_neighbours,
    contribution,
    embedding_basis,
    lost_dependence,
    rest_of_the_model,
    sick_reference,
)
from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding

Step: TypeAlias = "Callable[[DamagedCandidate], Finding | Detail]"
"""Tries one cause: returns it with its proof, or the rows that rule it out."""

STEPS: Final[tuple[Step, ...]] = (
    sick_reference.find,
    embedding_basis.find,
    contribution.find,
    activation.find,
    block_neighbours.find,
    lost_dependence.find,
)
"""The order in which causes are tried."""


def explain(damaged: DamagedCandidate) -> Finding:
    """Return the first cause that is proven; under its proof stand the rows of those that were ruled out."""
    ruled_out: Detail = ()
    for step in STEPS:
        answer = step(damaged)
        if isinstance(answer, Finding):
            return _ordered(damaged, answer, ruled_out)
        ruled_out = (*ruled_out, *answer)
    return _ordered(damaged, rest_of_the_model.find(damaged), ruled_out)


def _ordered(damaged: DamagedCandidate, finding: Finding, ruled_out: Detail) -> Finding:
    """The rows in reading order: the proof, what it was tried on, what was ruled out, further rows."""
    proof = tuple(row for row in finding.detail if row[0] == "proof")
    others = tuple(row for row in finding.detail if row[0] != "proof")
    return replace(finding, detail=(*proof, *damaged.tried_on, *ruled_out, *others))
