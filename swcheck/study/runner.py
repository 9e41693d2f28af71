"""Runs studies one after the other, shows progress, and writes each study as soon as it is complete.

Each study leaves ``NAME.json`` (the record), ``NAME.csv`` (tidy rows) and, with matplotlib, ``NAME.png``. ``README.md``
shows them all. A stopped run continues: a study is not measured again if its record exists and is of the same model,
text and settings.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import SwcheckError
from swcheck.base.formatting import table_lines
from swcheck.base.output_files import check_writable, write_atomically
from swcheck.base.reading.bounded import read_bytes
from swcheck.base.terminal.progress import with_bar
from swcheck.base.terminal.visible import visible
from swcheck.study.catalogue import chapter_of
from swcheck.study.common import plots
from swcheck.study.common.chapter import Chapter
from swcheck.study.common.record import Study, as_csv, as_json, from_json
from swcheck.study.common.setup import Setup
from swcheck.study.paper import Cell
from swcheck.study.paper import table_rows as comparison_rows

LARGEST_RECORD: Final = 2**26
"""The largest record that is read, in bytes; those of all studies of a large model have some megabytes."""

Report = Callable[[str], None]
"""Receives one line about the progress of a run."""


def measure_study(setup: Setup, name: str) -> Study:
    """Measure one study on the model of ``setup`` and return its record. The model is left as it was."""
    entry = chapter_of(name)
    setup.notes.clear()
    setup.prepare()
    measurements = tuple(entry.measure(setup))
    return Study(name, setup.subject.name, measurements, tuple(setup.notes), {**setup.facts, "source": entry.source})


def run(setup: Setup, names: Sequence[str], out: Path | None, report: Report) -> Iterator[tuple[Chapter, Study]]:
    """Yield the studies ``names``, each as soon as it is measured and its files are written into ``out``.

    ``report`` receives a line about each study. Raises ``OptionError`` if ``out`` cannot be written.
    """
    chapters = [chapter_of(name) for name in names]
    if out is not None:
        for name in names:
            check_writable(out / f"{name}.json")
    for entry in chapters:
        file = None if out is None else out / f"{entry.name}.json"
        study = None if file is None else load_earlier_study(file, setup, entry, report)
        if study is None:
            start = time.monotonic()
            study = measure_study(replace(setup, progress=progress_bar(entry.name)), entry.name)
            report(f"{entry.name}: {entry.title}, {time.monotonic() - start:.0f} s")
            if file is not None:
                write_atomically(file, as_json(study) + "\n")
        if out is not None:
            write_atomically(out / f"{entry.name}.csv", as_csv([study]))
            write_study_picture(out, entry, study, report)
        yield entry, study


def load_earlier_study(file: Path, setup: Setup, entry: Chapter, report: Report) -> Study | None:
    """Return the study in ``file`` if it is of the same model, text and settings, else None."""
    if not file.exists():
        return None
    try:
        study = from_json(read_bytes(file, LARGEST_RECORD, str(file)), str(file))
    except SwcheckError as error:
        report(f"{file.name} is no study ({error.found}); taken again")
        return None
    same = study.model == setup.subject.name and study.facts == {**setup.facts, "source": entry.source}
    report(f"{entry.name}: {'kept from' if same else 'another model, text or setting in'} {file}")
    return study if same else None


def write_study_picture(out: Path, entry: Chapter, study: Study, report: Report) -> None:
    """Draw a study's picture, or report why it is left out."""
    reason = plots.why_unavailable()
    if reason:
        report(f"{entry.name}.png is left out: {reason}")
        return
    plots.write_picture(
        out / f"{entry.name}.png",
        f"{study.model}: {entry.title} ({entry.source})",
        lambda figure: entry.draw(study, figure),
    )


def as_text(entry: Chapter, study: Study) -> list[str]:
    """Return a study as lines for the terminal: title, table, verdicts, notes."""
    lines = [f"{entry.name}: {entry.title} ({entry.source})", ""]
    head, *rows = entry.table(study)
    lines += ["  " + line for line in table_lines(rows, head)]
    verdicts = [f"{verdict.outcome.value}: {verdict.cause or verdict.summary}" for verdict in entry.judge(study)]
    return [*lines, "", *(f"  {line}" for line in [*verdicts, *study.notes]), ""]


def comparison_lines(cells: Sequence[Cell], *, style: str = "simple") -> list[str]:
    """Return the lines of a table of published and measured numbers; no lines without cells."""
    if not cells:
        return []
    head, *rows = comparison_rows(cells)
    compared = [cell for cell in cells if cell.measured is not None]
    words = f"published and measured: {len(compared)} of {len(cells)} cells compared"
    return [words, "", *table_lines(rows, head, style=style), ""]


def as_page(studies: Iterable[tuple[Chapter, Study]], out: Path, cells: Sequence[Cell] = ()) -> str:
    """Return ``README.md`` of a run: every table and picture, then published numbers beside measured ones."""
    lines: list[str] = []
    for entry, study in studies:
        if not lines:
            lines = [f"# The super weight paper on {study.model}", ""]
        lines += [f"## {entry.title} ({entry.source})", ""]
        if (out / f"{entry.name}.png").exists():
            lines += [f"![{entry.title}]({entry.name}.png)", ""]
        head, *rows = entry.table(study)
        cells_of_page = [[cell.replace("|", r"\|") for cell in row] for row in rows]
        lines += [*table_lines(cells_of_page, head, style="github"), ""]
        lines += [f"- {verdict.outcome.value}: {verdict.cause or verdict.summary}" for verdict in entry.judge(study)]
        lines += [f"- {note}" for note in study.notes]
        lines += ["", f"Numbers: [{entry.name}.csv]({entry.name}.csv), [{entry.name}.json]({entry.name}.json).", ""]
    if cells:
        lines += ["## Published and measured", "", *comparison_lines(cells, style="github")]
    return re.sub(r"<(?=[\w/!?])", "&lt;", visible("\n".join(lines)))  # no text of a file is a tag of HTML


def progress_bar(name: str) -> Callable[[Iterable[Any], str], Iterable[Any]]:
    """Return a wrapper that shows a progress bar while its steps are iterated; no bar if stderr is not a terminal."""

    def steps_with_bar(steps: Iterable[Any], words: str) -> Iterable[Any]:
        known = list(steps)
        return with_bar(known, f"{name}: {words}", len(known))

    return steps_with_bar
