"""Converts verdicts to JSON, and back. ``read_verdicts`` reads what came from outside, ``verdict_from_json`` what a worker sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from swcheck.base.json_text import finite_json
from swcheck.base.reading import schema
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.run.reports.margins import Reported, margin

SCHEMA: Final = 2

_WORDS: Final = schema.text(100_000)
_NUMBER: Final = schema.nullable(schema.NUMBER)
_VERDICT: Final = schema.record(
    {
        **dict.fromkeys(("check", "model", "summary", "unit", "cause", "try", "test"), _WORDS),
        "candidate": schema.nullable(_WORDS),
        "measured": _NUMBER,
        "limit": schema.nullable(schema.items(_NUMBER, fewest=2, most=2)),
        "limit_source": schema.nullable(_WORDS),
        "outcome": schema.choice(tuple(Outcome)),
        "detail": schema.items(schema.items(_WORDS, fewest=2, most=2)),
        "facts": schema.table(schema.anything),
    },
    {"cause_kind": _WORDS},
)
_DOCUMENT: Final = schema.record({"schema": schema.whole(1, SCHEMA), "verdicts": schema.items(_VERDICT)})


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


def read_verdicts(document: Any, asked: str) -> list[Reported]:
    """Return the verdicts of a file of ``--swcheck-json``. Raises ``CheckpointError`` for anything else."""
    schema.checked(document, _DOCUMENT, asked, "a file that --swcheck-json wrote")
    return [verdict_from_json(record) for record in document["verdicts"]]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def json_document(reported: Iterable[Reported], *, interrupted: bool = False) -> dict[str, Any]:
    """Return the content of the file that ``--swcheck-json`` writes. ``interrupted`` marks a run that did not finish."""
    mark = {"interrupted": True} if interrupted else {}
    return {"schema": SCHEMA, **mark, "verdicts": [verdict_as_json(verdict, test) for test, verdict in reported]}
