"""A candidate whose kernels depend on the shape: in some lengths, chunks or batches it loses what it keeps in others."""

from __future__ import annotations

import math
from typing import Any, Final

from swcheck.base.formatting import format_ratio
from swcheck.base.limits import DEFAULTS
from swcheck.base.records import Limit, Verdict
from swcheck.base.statistics import factor_of
from swcheck.gate.checks.pair import Pair
from swcheck.gate.checks.serving.shapes import Departure, Sweep, is_swept, sweep
from swcheck.gate.diagnosis.evidence.damaged_candidate import PROVEN
from swcheck.gate.diagnosis.evidence.finding import Detail, Finding

MOST_NAMED: Final = 4
"""The number of shapes that are named if several depart; further ones are counted."""


def lost_in_a_shape(pair: Pair, limit: Limit, summary: str, fields: dict[str, Any]) -> Verdict | None:
    """Return the red verdict of a candidate that keeps whole windows and loses another shape, beyond limit and noise."""
    if not is_swept(pair.candidate):
        return None
    swept = sweep(pair.candidate, pair.reference)
    worst = swept.worst
    if worst is None:
        return None
    total = factor_of(math.log(fields["measured"]) + worst.nats)
    held = (
        limit if limit.high is not None else DEFAULTS["perplexity"]
    )  # a loss is a fault whatever was done to the weights
    if math.isfinite(total) and held.holds(total):
        return None
    found = _finding(swept, worst)
    fields = {**fields, "measured": total, "limit": held, "detail": (*found.detail, *fields.get("detail", ()))}
    return pair.failed(found.cause, summary, found.advice, **fields, cause_kind=found.kind)


def shape_of_loss(pair: Pair) -> Finding | None:
    """Return the finding on a red candidate that keeps in another shape what it loses in whole windows; None for others."""
    if not is_swept(pair.candidate):
        return None
    swept = sweep(pair.candidate, pair.reference)
    best = swept.best
    if best is None:
        return None
    theirs, ours = (nats[best.row, : best.tokens] for nats in pair.nats())
    return _finding(swept, best) if -best.nats >= PROVEN * float((ours - theirs).mean()) else None


def _finding(swept: Sweep, worst: Departure) -> Finding:
    cause = f"the kernels of this candidate depend on the shape: {_words(worst)}"
    advice = "another kernel or backend for the same weights, or another version of what computes them"
    return Finding(cause, _rows(swept, worst), (), advice, kind="kernels")


def _rows(swept: Sweep, worst: Departure) -> Detail:
    """Return rows for what a shape costs against whole windows, and for the other shapes that depart."""
    others = [one for one in swept.faults if one is not worst]
    within = [one for one in swept.found if not one.reason and not one.departs]
    proof = f"{worst.nats:+.3g} nats a token against the whole window; {len(within)} of {len(swept.found)} shapes agree with it"
    rows = [("proof", f"{worst.shape}: {worst.reason}" if worst.reason else proof)]
    if others:
        more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
        rows.append(("also", "; ".join(map(_words, others[:MOST_NAMED])) + more))
    return tuple(rows)


def _words(one: Departure) -> str:
    if one.reason:
        return f"{one.shape} ends in an error"
    return f"{one.shape} {format_ratio(factor_of(one.nats))}" if math.isfinite(one.nats) else f"{one.shape} not finite"
