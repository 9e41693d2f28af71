"""Finds the cause of a red verdict: causes are tried in a fixed order, and one is named only if it is proven.

A cause is proven if at least half of the lost nats return when what was lost is restored through a hook. The causes
that were ruled out before are reported with their numbers. If no cause is proven, the report names the layer where the
error rises most, and the linear maps with the largest errors.

NaN, another tokenizer and another base model are ruled out earlier (``gate.checks.confounds``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeAlias

from swcheck.base.terminal.progress import with_bar
from swcheck.gate.diagnosis.causes import (
    activation,
    block_neighbours,
    clipped_range,
    contribution,
    differences,
    embedding_basis,
    lost_dependence,
    rest_of_the_model,
    routing,
    sick_reference,
    vocabulary,
)
from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding

Step: TypeAlias = "Callable[[DamagedCandidate], Finding | Detail]"
"""A function that tries one cause: it returns the cause with its proof, or the rows that rule it out."""

STEPS: Final[tuple[Step, ...]] = (
    sick_reference.find,
    embedding_basis.find,
    vocabulary.find,
    differences.find,
    clipped_range.find,
    contribution.find,
    routing.find,
    activation.find,
    block_neighbours.find,
    lost_dependence.find,
)
"""The order in which causes are tried."""


def explain(damaged: DamagedCandidate) -> Finding:
    """Return the first cause that is proven, with the rows of those that were ruled out before it."""
    ruled_out: Detail = ()
    for step in with_bar(STEPS, "looking for the cause", len(STEPS)):
        answer = step(damaged)
        if isinstance(answer, Finding):
            return _with_ordered_rows(damaged, answer, ruled_out)
        ruled_out = (*ruled_out, *answer)
    return _with_ordered_rows(damaged, rest_of_the_model.find(damaged), ruled_out)


def cause_beside_super_weights(damaged: DamagedCandidate) -> Finding | None:
    """Return the proven cause that only looks like a change of a super weight: another basis, order, or tensor."""
    answers = (step(damaged) for step in (embedding_basis.find, differences.find))
    return next((answer for answer in answers if isinstance(answer, Finding)), None)


def cause_of_improvement(damaged: DamagedCandidate) -> Finding | None:
    """Return the proven cause of a perplexity that is better than the reference's, which no rounding makes."""
    steps = (embedding_basis, differences, clipped_range, contribution, block_neighbours)
    answers = (step.find(damaged) for step in steps)
    found = next((answer for answer in answers if isinstance(answer, Finding)), None)
    return None if found is None else _with_ordered_rows(damaged, found, ())


def _with_ordered_rows(damaged: DamagedCandidate, finding: Finding, ruled_out: Detail) -> Finding:
    """Return the finding with its rows in order: the proof, what it was tried on, what was ruled out, the others."""
    proof = tuple(row for row in finding.detail if row[0] == "proof")
    others = tuple(row for row in finding.detail if row[0] != "proof")
    return replace(finding, detail=(*proof, *damaged.tried_on, *ruled_out, *others))
