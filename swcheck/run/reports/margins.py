"""The margin of a verdict to its limit, and which of several verdicts is the worst."""

from __future__ import annotations

import math
from collections.abc import Iterable

from swcheck.base.records import Outcome, Verdict

Reported = tuple[str, Verdict]
"""The node id of a test, and a verdict that the test gave."""


def margin(verdict: Verdict) -> float | None:
    """Return the factor by which the measured value may still change before it meets its limit; outside it is below 1.

    Of two limits the nearer one counts. None where a factor has no meaning: a count, a flipped sign, a value or a limit
    that is not finite, no limit.
    """
    measured, limit = verdict.measured, verdict.limit
    if measured is None or limit is None or not verdict.unit or not math.isfinite(measured) or measured <= 0:
        return None
    sides = [measured / limit.low if limit.low else None, limit.high / measured if limit.high else None]
    return min((side for side in sides if side is not None and math.isfinite(side)), default=None)


def severity(verdict: Verdict) -> tuple[int, float]:
    """Return a sort key, larger for a worse verdict: the rank of its outcome, then the smaller margin."""
    order = (
        Outcome.SKIPPED,
        Outcome.NOT_APPLICABLE,
        Outcome.PASSED,
        Outcome.NEAR,
        Outcome.INCONCLUSIVE,
        Outcome.FAILED,
    )
    factor = margin(verdict)
    return order.index(verdict.outcome), 0.0 if factor is None else -factor


def worst_of_each(reported: Iterable[Reported]) -> list[Reported]:
    """Return the worst verdict of each test, check, model and candidate, in the order of their first appearance."""
    chosen: dict[tuple[str, str, str, str | None], Reported] = {}
    for test, verdict in reported:
        key = (test, verdict.check, verdict.model, verdict.candidate)
        if key not in chosen or severity(verdict) > severity(chosen[key][1]):
            chosen[key] = (test, verdict)
    return list(chosen.values())
