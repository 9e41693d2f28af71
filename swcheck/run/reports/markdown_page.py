"""Formats verdicts as Markdown, for the summary of a CI job, and as the annotations that GitHub Actions reads."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Final

from swcheck.base.formatting import table_lines
from swcheck.run.reports.margins import Reported
from swcheck.run.reports.sections import COLUMNS, Row, Section, attempt_parts, sections
from swcheck.run.reports.summary import SUITE, not_covered

MARKS: Final = {"red": "\N{LARGE RED CIRCLE}", "green": "\N{LARGE GREEN CIRCLE}", "grey": "\N{MEDIUM WHITE CIRCLE}"}


def escaped(text: str) -> str:
    """Return a text on one line that Markdown shows as it is: neither markup nor HTML, also inside a table."""
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def markdown_page(reported: Sequence[Reported], warning: str = "") -> str:
    """Return the verdicts as Markdown: for each model and candidate its verdict, a table, and the red checks in full.

    ``warning`` is a sentence about what the run did not judge; it comes first.
    """
    lines = [f"> **{escaped(warning)}**", ""] if warning else []
    for section in sections(reported):
        lines += _section_lines(section)
    return "\n".join([*lines, f"not covered: {escaped(not_covered(reported))}", ""])


def _section_lines(section: Section) -> list[str]:
    lines = [f"### {MARKS[section.color]} {escaped(section.title)}", "", f"{escaped(section.sentence)}.", ""]
    if section.rows:
        cells = [[escaped(cell) for cell in row.cells] for row in section.rows]
        lines += [*table_lines(cells, COLUMNS, style="github"), ""]
    for row in section.red_rows:
        lines += _details(row)
    if section.skipped:
        reasons = dict.fromkeys(reason for _, reason in section.skipped)
        lines += [
            f"skipped: {escaped(', '.join(check for check, _ in section.skipped))} ({escaped('; '.join(reasons))})",
            "",
        ]
    return lines


def _details(row: Row) -> list[str]:
    """Return a red check folded up: its cause, what was measured, its rows, and what to try as lines to paste."""
    verdict = row.verdict
    lines = [f"<details><summary>{html.escape(f'{row.cells[0]}: {verdict.cause or verdict.summary}')}</summary>", ""]
    facts = [("measured", verdict.summary), *verdict.detail]
    facts += [("limit", f"{verdict.limit} ({verdict.limit.source})")] if verdict.limit is not None else []
    lines += [f"- {escaped(name)}: {escaped(text)}" for name, text in facts if text]
    if verdict.attempt:
        head, lines_to_paste = attempt_parts(verdict.attempt)
        lines += ["", f"Try: {escaped(head)}", "", *(f"    {line}" for line in lines_to_paste)]
    return [*lines, "", "</details>", ""]


def annotation_commands(
    reported: Sequence[Reported], places: Sequence[tuple[str, int]], warning: str = ""
) -> list[str]:
    """Return a line ``::error`` for each red check, and ``::warning`` for ``warning``.

    ``places`` has the file and the line, counted from 0, of the test of each verdict; that of a shipped check is left out.
    """
    lines = [f"::warning title=swcheck::{_data(warning)}"] if warning else []
    for (test, verdict), (file, line) in zip(reported, places, strict=True):
        if verdict.red:
            place = "" if test.startswith(SUITE) else f"file={_property(file)},line={line + 1},"
            title = _property(f"swcheck: {verdict.check} of {verdict.who}")
            lines.append(f"::error {place}title={title}::{_data(verdict.cause or verdict.summary)}")
    return lines


def _data(text: str) -> str:
    """Return a text with the characters escaped that end or begin a command of the runner."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
