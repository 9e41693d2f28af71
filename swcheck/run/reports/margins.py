"""How far a verdict is from its limit."""

from __future__ import annotations

import math
from collections.abc import Iterable

from swcheck.base.records import Outcome, Verdict

Reported = tuple[str, Verdict]
"""The node id of a test, and a verdict it gave."""


def margin(verdict: Verdict) -> float | None:
    """How many times farther the measured value could move before it met its limit; below 1 it is outside.

    None where that has no meaning: a count, a sign that is flipped, a value that is not finite, an open limit.
    """
    measured, limit = verdict.measured, verdict.limit
    if measured is None or limit is None or not verdict.unit or not math.isfinite(measured) or measured <= 0:
        return None
    sides = [measured / limit.low if limit.low else None, limit.high / measured if limit.high else None]
    return min((side for side in sides if side is not None), default=None)


def severity(verdict: Verdict) -> tuple[int, float]:
    """How a verdict sorts among several of one test, of which the report shows the worst."""
    order = (
        Outcome.SKIPPED,
        Outcome.NOT_APPLICABLE,
        Outcome.PASSED,
        Outcome.NEAR,
        Outcome.INCONCLUSIVE,
        Outcome.FAILED,
    )
    away = margin(verdict)
    return order.index(verdict.outcome), 0.0 if away is None else -away


def worst_of_each(reported: Iterable[Reported]) -> list[Reported]:
    """One verdict per test, check, model and candidate: the worst, in the order of first appearance."""
    chosen: dict[tuple[str, str, str, str | None], Reported] = {}
    for test, verdict in reported:
        key = (test, verdict.check, verdict.model, verdict.candidate)
        if key not in chosen or severity(verdict) > severity(chosen[key][1]):
            chosen[key] = (test, verdict)
    return list(chosen.values())
