"""Verdicts as other reports than the terminal show them: a section for each model and candidate, its verdict first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from swcheck.base.formatting import format_number
from swcheck.base.records import Outcome, Verdict
from swcheck.run.reports.judged import JUDGED
from swcheck.run.reports.margins import Reported, margin
from swcheck.run.reports.summary import limit_cell, outcome_word, row_names

PASTED = re.compile(r"=|\w\.\w|--\w")
"""What a line to paste has: a setting, the name of a module, or an option."""

COLUMNS = ("check", "measured", "limit", "margin", "outcome")


@dataclass(frozen=True)
class Row:
    """One check: ``cells`` as text in the order of ``COLUMNS``, the verdict, and the node id of its test."""

    cells: tuple[str, ...]
    verdict: Verdict
    test: str


@dataclass(frozen=True)
class Section:
    """The checks of one model, or of one candidate against it.

    ``color`` is "red", "green", or "grey" where nothing was judged. ``sentence`` says the verdict in words. ``skipped``
    are the checks that did not run, each with its reason. ``number`` counts the sections of a run from 1.
    """

    title: str
    color: str
    sentence: str
    rows: tuple[Row, ...]
    skipped: tuple[tuple[str, str], ...]
    number: int = 1

    @property
    def rank(self) -> int:
        """A sort key: what has to be acted on comes first."""
        return ("red", "grey", "green").index(self.color)

    @property
    def red_rows(self) -> tuple[Row, ...]:
        """The rows that are red: failed, or inconclusive."""
        return tuple(row for row in self.rows if row.verdict.red)


def sections(reported: Sequence[Reported]) -> list[Section]:
    """Return a section for each model and candidate, in the order of their first verdict."""
    groups: dict[tuple[str, str | None], list[Reported]] = {}
    for one in reported:
        groups.setdefault((one[1].model, one[1].candidate), []).append(one)
    return [_section(group, number) for number, group in enumerate(groups.values(), start=1)]


def _section(reported: Sequence[Reported], number: int) -> Section:
    ran = [one for one in reported if one[1].outcome is not Outcome.SKIPPED]
    rows = tuple(Row(_cells(name, one[1]), one[1], one[0]) for name, one in zip(row_names(ran), ran, strict=True))
    judged = [row.verdict for row in rows if row.verdict.outcome in JUDGED]
    red = [verdict for verdict in judged if verdict.red]
    color = "red" if red else "green" if judged else "grey"
    skipped = tuple((one.check, one.summary) for _, one in reported if one.outcome is Outcome.SKIPPED)
    return Section(reported[0][1].who, color, _sentence(judged, red), rows, skipped, number)


def _cells(name: str, verdict: Verdict) -> tuple[str, ...]:
    measured, limit = format_number(verdict.measured, verdict.unit), limit_cell(verdict)
    return name, measured, limit, format_number(margin(verdict), "x"), outcome_word(verdict)


def _sentence(judged: Sequence[Verdict], red: Sequence[Verdict]) -> str:
    if not judged:
        return "no check judged it"
    if not red:
        near = sum(verdict.outcome is Outcome.NEAR for verdict in judged)
        return f"all {len(judged)} checks passed" + f", {near} of them within the noise of a limit" * bool(near)
    causes = dict.fromkeys(verdict.cause or verdict.summary for verdict in red)
    return f"{len(red)} of {len(judged)} checks red: {'; '.join(causes)}"


def headline(found: Sequence[Section]) -> tuple[str, str]:
    """Return the color of a run and one sentence about it: the worst section, and how many there are."""
    red = [section for section in found if section.color == "red"]
    if red:
        more = f" (and {len(red) - 1} more)" if len(red) > 1 else ""
        return "red", f"{red[0].title}: {red[0].sentence}{more}"
    if not any(section.color == "green" for section in found):
        return "grey", "no check judged anything"
    return "green", "; ".join(f"{section.title}: {section.sentence}" for section in found if section.color == "green")


def attempt_parts(attempt: str) -> tuple[str, list[str]]:
    """Return what to try as its sentence, and the lines to paste that follow it after a colon; there may be none.

    What follows a colon and has neither a setting nor the name of a module is a part of the sentence.
    """
    head, _, rest = attempt.partition(": ")
    if not PASTED.search(rest):
        return attempt, []
    return head, [" ".join(line.split()) for line in rest.split("; ")]
