"""Runs studies one after the other, shows progress, writes each as soon as it is whole, and goes on where it stopped.

For every study of a run: ``NAME.json`` (the record), ``NAME.csv`` (tidy rows), ``NAME.png`` where matplotlib is there;
``README.md`` shows them all. A study whose record is there already, of the same model, text and settings, is not taken
again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from swcheck.base.errors import SwcheckError
from swcheck.base.formatting import table_lines
from swcheck.base.output_files import check_writable, write_atomically
from swcheck.study.catalogue import chapter
from swcheck.study.common import plots
from swcheck.study.common.chapter import Chapter
from swcheck.study.common.record import Study, as_csv, as_json, from_json
from swcheck.study.common.setup import Setup
from swcheck.study.paper import Cell
from swcheck.study.paper import as_text as as_text_rows

Told = Callable[[str], None]


def measured(setup: Setup, name: str) -> Study:
    """Take one study of the model of ``setup``. The model is as before when it is done."""
    one = chapter(name)
    setup.notes.clear()
    setup.prepare()
    measurements = tuple(one.measure(setup))
    return Study(name, setup.subject.name, measurements, tuple(setup.notes), {**setup.facts, "source": one.source})


def run(setup: Setup, names: Sequence[str], out: Path | None, told: Told) -> Iterator[tuple[Chapter, Study]]:
    """The studies ``names``, each as soon as it is taken and its files are written into ``out``.

    ``told`` is given a line about each. Raises ``OptionError`` where ``out`` cannot be written.
    """
    chapters = [chapter(name) for name in names]
    if out is not None:
        for name in names:
            check_writable(out / f"{name}.json")
    for one in chapters:
        file = None if out is None else out / f"{one.name}.json"
        study = None if file is None else kept(file, setup, one, told)
        if study is None:
            begun = time.monotonic()
            study = measured(replace(setup, progress=shown(one.name)), one.name)
            told(f"{one.name}: {one.title}, {time.monotonic() - begun:.0f} s")
            if file is not None:
                write_atomically(file, as_json(study) + "\n")
        if out is not None:
            write_atomically(out / f"{one.name}.csv", as_csv([study]))
            write_figure(out, one, study, told)
        yield one, study


def kept(file: Path, setup: Setup, one: Chapter, told: Told) -> Study | None:
    """The study that an earlier run left, where it is of the same model, text and settings."""
    if not file.exists():
        return None
    try:
        study = from_json(file.read_text(encoding="utf-8"), str(file))
    except SwcheckError as error:
        told(f"{file.name} is no study ({error.found}); taken again")
        return None
    same = study.model == setup.subject.name and study.facts == {**setup.facts, "source": one.source}
    told(f"{one.name}: {'kept from' if same else 'another model, text or setting in'} {file}")
    return study if same else None


def write_figure(out: Path, one: Chapter, study: Study, told: Told) -> None:
    """Draw a study's picture where matplotlib is there; else say once what is missing."""
    missing = plots.available()
    if missing:
        told(f"{one.name}.png is left out: {missing}")
        return
    plots.write_picture(
        out / f"{one.name}.png", f"{study.model}: {one.title} ({one.source})", lambda figure: one.draw(study, figure)
    )


def as_text(one: Chapter, study: Study) -> list[str]:
    """A study for the terminal: its title, its table, its verdicts, its notes."""
    lines = [f"{one.name}: {one.title} ({one.source})", ""]
    head, *rows = one.table(study)
    lines += ["  " + line for line in table_lines(rows, head)]
    said = [f"{verdict.outcome.value}: {verdict.cause or verdict.summary}" for verdict in one.judge(study)]
    return [*lines, "", *(f"  {line}" for line in [*said, *study.notes]), ""]


def comparison(cells: Sequence[Cell], *, style: str = "simple") -> list[str]:
    """Published numbers beside measured ones, as the lines of a table; nothing without any."""
    if not cells:
        return []
    head, *rows = as_text_rows(cells)
    held = [cell for cell in cells if cell.measured is not None]
    words = f"published and measured: {len(held)} of {len(cells)} cells compared"
    return [words, "", *table_lines(rows, head, style=style), ""]


def as_page(taken: Iterable[tuple[Chapter, Study]], out: Path, cells: Sequence[Cell] = ()) -> str:
    """``README.md`` of a run: every table and picture on one page, and published numbers beside measured ones."""
    lines: list[str] = []
    for one, study in taken:
        if not lines:
            lines = [f"# The super weight paper on {study.model}", ""]
        lines += [f"## {one.title} ({one.source})", ""]
        if (out / f"{one.name}.png").exists():
            lines += [f"![{one.title}]({one.name}.png)", ""]
        head, *rows = one.table(study)
        lines += [*table_lines(rows, head, style="github"), ""]
        lines += [f"- {verdict.outcome.value}: {verdict.cause or verdict.summary}" for verdict in one.judge(study)]
        lines += [f"- {note}" for note in study.notes]
        lines += ["", f"Numbers: [{one.name}.csv]({one.name}.csv), [{one.name}.json]({one.name}.json).", ""]
    if cells:
        lines += ["## Published and measured", "", *comparison(cells, style="github")]
    return "\n".join(lines)


def shown(name: str) -> Callable[[Iterable[Any], str], Iterable[Any]]:
    """A progress bar on the terminal, gone when it is done; nothing where no person watches."""

    def walked(steps: Iterable[Any], words: str) -> Iterable[Any]:
        bar: Iterable[Any] = tqdm(
            list(steps), desc=f"{name}: {words}", leave=False, disable=not sys.stderr.isatty(), file=sys.stderr
        )

        return bar

    return walked
