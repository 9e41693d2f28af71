"""Verdicts to a terminal table and to JSON; the only room that decides digits and column order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tabulate import tabulate

from swcheck.records import Limit, Outcome, Verdict

SCHEMA: Final = 1
WIDTH: Final = 62
WORDS: Final = {Outcome.NOT_APPLICABLE: "n/a", Outcome.INCONCLUSIVE: "INCONCLUSIVE", Outcome.FAILED: "FAILED"}
NOT_COVERED: Final = "text generation, a quantized KV cache, the kernels of other runtimes"


def number(value: float | None, unit: str = "") -> str:
    """A measured value as people read it: four digits, thousands separated, a ratio with its x."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if unit == "x":
        return f"x{value:.3f}" if abs(value) < 10 else f"x{text}"
    return text


def table(verdicts: Sequence[Verdict]) -> str:
    """One row per verdict: check, measured, limit, outcome."""
    rows = [
        (verdict.check, number(verdict.measured, verdict.unit), _limit(verdict), WORDS.get(verdict.outcome) or verdict.outcome.value)
        for verdict in verdicts
    ]  # fmt: skip
    return tabulate(rows, headers=("check", "measured", "limit", "outcome"), disable_numparse=True)


def _limit(verdict: Verdict) -> str:
    """The limit in the unit of what was measured."""
    limit = verdict.limit
    if limit is None:
        return "-"
    low, high = (
        None if end is None else ("x" if verdict.unit == "x" else "") + f"{end:,.4g}" for end in (limit.low, limit.high)
    )
    if low is None:
        return f"<= {high}"
    return f">= {low}" if high is None else f"{low} .. {high}"


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """The end-of-run text: for each model and candidate its table and the words of each row, then what is open."""
    lines: list[str] = []
    for model, candidate in dict.fromkeys((verdict.model, verdict.candidate) for verdict in verdicts):
        mine = [verdict for verdict in verdicts if (verdict.model, verdict.candidate) == (model, candidate)]
        lines += ["", model if candidate is None else f"{candidate} against {model}", ""]
        lines += table(mine).splitlines()
        lines += ["", *(f"  {verdict.check}: {verdict.summary}" for verdict in mine)]
    return [*lines[1:], "", f"not covered: {NOT_COVERED}"] if lines else []


def as_json(verdict: Verdict) -> dict[str, Any]:
    """One verdict as plain values; non-finite numbers become strings, since JSON has no word for them."""
    record = {
        "check": verdict.check,
        "model": verdict.model,
        "candidate": verdict.candidate,
        "measured": verdict.measured,
        "unit": verdict.unit,
        "limit": None if verdict.limit is None else [verdict.limit.low, verdict.limit.high],
        "limit_source": None if verdict.limit is None else verdict.limit.source,
        "outcome": verdict.outcome.value,
        "cause": verdict.cause,
        "summary": verdict.summary,
        "try": verdict.attempt,
        "detail": [list(row) for row in verdict.detail],
        "facts": dict(verdict.facts),
    }
    return plain(record)  # type: ignore[no-any-return]


def from_json(record: dict[str, Any]) -> Verdict:
    """The verdict that ``as_json`` wrote: it has travelled from another process."""
    ends = record["limit"]
    return Verdict(
        check=record["check"],
        model=record["model"],
        outcome=Outcome(record["outcome"]),
        summary=record["summary"],
        candidate=record["candidate"],
        measured=None if record["measured"] is None else float(record["measured"]),
        limit=None if ends is None else Limit(_end(ends[0]), _end(ends[1]), record["limit_source"]),
        unit=record["unit"],
        cause=record["cause"],
        attempt=record["try"],
        detail=tuple((name, text) for name, text in record["detail"]),
        facts=record["facts"],
    )


def _end(value: Any) -> float | None:
    return None if value is None else float(value)


def plain(value: Any) -> Any:
    """``value`` with every number that is not finite as a string: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def dumps(value: Any) -> str:
    """JSON, two spaces deep, never with a bare NaN."""
    return json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False)


def document(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """What ``--swcheck-json`` writes."""
    return {"schema": SCHEMA, "verdicts": [as_json(verdict) for verdict in verdicts]}


def badness(verdict: Verdict) -> tuple[int, float]:
    """How a verdict sorts among several of one test, of which the report shows the worst."""
    order = (
        Outcome.SKIPPED,
        Outcome.NOT_APPLICABLE,
        Outcome.PASSED,
        Outcome.NEAR,
        Outcome.INCONCLUSIVE,
        Outcome.FAILED,
    )
    away = abs(math.log(verdict.measured)) if verdict.unit == "x" and (verdict.measured or 0) > 0 else 0.0  # type: ignore[arg-type]
    return order.index(verdict.outcome), away


def worst_of_each(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """One verdict per check, model and candidate: the worst, in the order of first appearance."""
    chosen: dict[tuple[str, str, str | None], Verdict] = {}
    for verdict in verdicts:
        key = (verdict.check, verdict.model, verdict.candidate)
        if key not in chosen or badness(verdict) >= badness(chosen[key]):
            chosen[key] = verdict
    return list(chosen.values())
