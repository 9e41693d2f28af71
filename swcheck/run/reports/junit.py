"""The measured values of a test as the properties of its test case in JUnit XML."""

from __future__ import annotations

from collections.abc import Iterable

from swcheck.base.json_text import finite_json
from swcheck.base.records import Verdict
from swcheck.run.reports.margins import margin


def junit_properties(verdicts: Iterable[Verdict]) -> list[tuple[str, str | float]]:
    """Return (name, value) pairs: ``swcheck.CHECK.measured``, ``.limit.low``, ``.limit.high``, ``.margin`` and others.

    A value that a verdict does not have is left out. Numbers that are not finite are words.
    """
    found = []
    for verdict in verdicts:
        limit = verdict.limit
        values = {
            "model": verdict.model,
            "candidate": verdict.candidate,
            "measured": verdict.measured,
            "unit": verdict.unit or None,
            "limit.low": None if limit is None else limit.low,
            "limit.high": None if limit is None else limit.high,
            "limit.source": None if limit is None else limit.source,
            "margin": margin(verdict),
            "outcome": verdict.outcome.value,
            "cause": verdict.cause or None,
        }
        start = f"swcheck.{verdict.check.replace(' ', '_')}"
        found += [(f"{start}.{name}", finite_json(value)) for name, value in values.items() if value is not None]
    return found
