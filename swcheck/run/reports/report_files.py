"""The files that a run writes besides baselines, and what it tells the CI system that it runs in."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from swcheck.base.json_text import json_text
from swcheck.run.reports.margins import Reported
from swcheck.run.settings import Settings

STEP_SUMMARY: Final = "GITHUB_STEP_SUMMARY"
"""The variable with the file whose Markdown GitHub Actions, and what imitates it, shows on the page of a job."""


def report_texts(
    settings: Settings, reported: Sequence[Reported], arguments: Iterable[object], *, warning: str, interrupted: bool
) -> dict[Path, str]:
    """Return the text of each report file that the settings ask for, by its path; ``arguments`` are those of pytest."""
    files = {}
    if settings.json is not None:
        from swcheck.run.reports.verdict_json import json_document

        files[settings.json] = json_text(json_document(reported, interrupted=interrupted)) + "\n"
    if settings.markdown is not None:
        from swcheck.run.reports.markdown_page import markdown_page

        files[settings.markdown] = markdown_page(reported, warning)
    if settings.html is not None:
        from swcheck.run.reports.html_page import html_page

        files[settings.html] = html_page(
            reported, command=shlex.join(["pytest", *map(str, arguments)]), warning=warning
        )
    return files


def append_step_summary(reported: Sequence[Reported], warning: str) -> None:
    """Append the Markdown page to the summary of the CI job, if there is one and anything to say. Raises ``OSError``."""
    file = os.environ.get(STEP_SUMMARY)
    if file and (reported or warning):
        from swcheck.run.reports.markdown_page import markdown_page

        with Path(file).open("a", encoding="utf-8") as summary:
            summary.write(f"## swcheck\n\n{markdown_page(reported, warning)}\n")


def annotation_lines(reported: Sequence[Reported], places: Sequence[tuple[str, int]], warning: str) -> list[str]:
    """Return the lines that GitHub Actions shows beside the code; none outside of it."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return []
    from swcheck.run.reports.markdown_page import annotation_commands

    return annotation_commands(reported, places, warning)
