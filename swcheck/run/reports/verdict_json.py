"""Converts verdicts to JSON, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from swcheck.base.json_text import finite_json
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.run.reports.margins import Reported, margin

SCHEMA: Final = 2


def verdict_as_json(verdict: Verdict, test: str = "") -> dict[str, Any]:
    """Return a verdict as plain values. Numbers that are not finite become strings, since JSON cannot hold them."""
    record = {
        "check": verdict.check,
        "model": verdict.model,
        "candidate": verdict.candidate,
        "measured": verdict.measured,
        "unit": verdict.unit,
        "limit": None if verdict.limit is None else [verdict.limit.low, verdict.limit.high],
        "limit_source": None if verdict.limit is None else verdict.limit.source,
        "margin": margin(verdict),
        "outcome": verdict.outcome.value,
        "cause": verdict.cause,
        "cause_kind": verdict.cause_kind,
        "summary": verdict.summary,
        "try": verdict.attempt,
        "detail": [list(row) for row in verdict.detail],
        "facts": dict(verdict.facts),
        "test": test,
    }
    return finite_json(record)  # type: ignore[no-any-return]


def verdict_from_json(record: dict[str, Any]) -> Reported:
    """Return the test and the verdict that ``verdict_as_json`` has written, perhaps in another process."""
    ends = record["limit"]
    verdict = Verdict(
        check=record["check"],
        model=record["model"],
        outcome=Outcome(record["outcome"]),
        summary=record["summary"],
        candidate=record["candidate"],
        measured=_number(record["measured"]),
        limit=None if ends is None else Limit(_number(ends[0]), _number(ends[1]), record["limit_source"]),
        unit=record["unit"],
        cause=record["cause"],
        cause_kind=record.get("cause_kind", ""),
        attempt=record["try"],
        detail=tuple((name, text) for name, text in record["detail"]),
        facts=record["facts"],
    )
    return record["test"], verdict


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def json_document(reported: Iterable[Reported], *, interrupted: bool = False) -> dict[str, Any]:
    """Return the content of the file that ``--swcheck-json`` writes. ``interrupted`` marks a run that did not finish."""
    mark = {"interrupted": True} if interrupted else {}
    return {"schema": SCHEMA, **mark, "verdicts": [verdict_as_json(verdict, test) for test, verdict in reported]}
