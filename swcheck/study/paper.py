"""The published numbers as data, compared cell by cell with what a study of the same model measures.

``paper.csv`` beside this file holds them with their sources: the paper (arXiv 2411.07191), the curves behind its
figures, and the replications. Two cells that look like copy errors and one misprinted coordinate are marked ``suspect``
and never compared.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

from swcheck.loading import published_index
from swcheck.study.common.record import Measurement, Study
from swcheck.study.zeroshot.harness import PAPER_TASKS

HIDDEN_STATE: Final = "largest hidden state"
"""The quantity whose ``x`` is the index of a hidden state, which is layer + 1."""


@dataclass(frozen=True)
class Published:
    """One published number.

    ``condition`` and ``quantity`` are the words that the studies use. ``item`` is a task, a text, a token or a
    coordinate. ``x`` is alpha, the side of a block, a layer or a hidden state, as written. ``value`` is in ``unit``, as
    printed. ``source`` is a key of ``published_index.sources()`` and the place in that source.
    """

    model: str
    hub: str
    study: str
    condition: str
    quantity: str
    item: str
    x: str
    value: float
    unit: str
    status: str
    source: str
    note: str

    @property
    def suspect(self) -> bool:
        """Whether it looks like a copy error or a misprint; then it is shown but never compared."""
        return self.status == "suspect"

    @property
    def expected(self) -> float:
        """The value in the unit of a study: shares and accuracies from 0 to 1 instead of percent."""
        return self.value / 100 if self.unit == "%" else self.value

    @property
    def places(self) -> tuple[float, ...]:
        """The settings ``x`` that it holds for: one, those of a range ("5-29"), or none."""
        range_match = re.fullmatch(r"(\d+)-(\d+)", self.x)
        if range_match:
            return tuple(float(place) for place in range(int(range_match[1]), int(range_match[2]) + 1))
        return (float(self.x),) if self.x else ()


@dataclass(frozen=True)
class Cell:
    """A published number beside the measured one; ``measured`` is None if there is none, and ``reason`` says why."""

    published: Published
    measured: float | None
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """Measured over published; None if either is missing or the published number is 0."""
        if self.measured is None or not self.published.expected:
            return None
        return self.measured / self.published.expected


@cache
def all_published() -> tuple[Published, ...]:
    """Return every published number, in the order of the file."""
    text = resources.files("swcheck.study").joinpath("paper.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(Published(**{**row, "value": float(row["value"])}) for row in rows)  # type: ignore[arg-type]


def published(model: str, study: str | None = None) -> tuple[Published, ...]:
    """Return what is published of ``model`` (alias or hub id, in any case), in one study or all; may be empty."""
    known = published_index.find(model)
    hub = (known.model if known else model).lower()
    rows = (row for row in all_published() if hub in {row.hub.lower(), row.model})
    return tuple(row for row in rows if study in {None, row.study})


def compare(studies: Iterable[Study], numbers: Iterable[Published], *, corpus: str | None = None) -> tuple[Cell, ...]:
    """Pair each of ``numbers`` with what ``studies`` measured in the same study, condition, quantity and place.

    An average accuracy is the mean of the tasks that its source averages, if all of them were measured. A perplexity is
    compared only if ``corpus`` ("wikitext-2", "c4") says that it was measured on the same text. A ratio of perplexities
    is always compared, because it hardly depends on the text if the text is long enough.
    """
    measured = {study.name: study.measurements for study in studies}
    return tuple(_cell(number, measured.get(number.study), corpus) for number in numbers)


def table_rows(cells: Sequence[Cell]) -> list[list[str]]:
    """Return the comparison as rows of text, the header first."""
    rows = [["study", "condition", "quantity", "item", "x", "published", "measured", "ratio", "source", "note"]]
    for cell in cells:
        entry = cell.published
        percent = entry.unit == "%"
        value = "-" if cell.measured is None else f"{cell.measured * (100 if percent else 1):.5g}"
        ratio = "-" if cell.ratio is None else f"{cell.ratio:.3f}"
        notes = "; ".join(part for part in (entry.status, cell.reason, entry.note) if part)
        unit = f" {entry.unit}" if entry.unit else ""
        rows.append(
            [
                entry.study,
                entry.condition,
                entry.quantity,
                entry.item,
                entry.x,
                f"{entry.value:.6g}{unit}",
                value,
                ratio,
                entry.source,
                notes,
            ]
        )
    return rows


def _cell(entry: Published, rows: Sequence[Measurement] | None, corpus: str | None) -> Cell:
    if entry.suspect:
        return Cell(entry, None, "not compared")
    if rows is None:
        return Cell(entry, None, f"the study {entry.study} was not taken")
    if entry.quantity == "perplexity" and entry.item != corpus:
        return Cell(entry, None, f"published on {entry.item or 'a text that is not named'}, measured on another text")
    matching = [
        row for row in rows if row.quantity == entry.quantity and row.condition == entry.condition and _fits(row, entry)
    ]
    if entry.quantity == "accuracy" and entry.item == "average":
        return _average_accuracy(entry, matching)
    if entry.quantity not in {"perplexity", "perplexity ratio"}:
        matching = [row for row in matching if entry.item in {row.task or "", row.prompt or ""}]
    if not matching:
        return Cell(entry, None, "not measured")
    reason = f"mean of {len(matching)} of {len(entry.places)}" if len(entry.places) > 1 else ""
    return Cell(entry, sum(row.value for row in matching) / len(matching), reason)


def _fits(row: Measurement, entry: Published) -> bool:
    """Return whether a measurement belongs to the setting or layer of a published number."""
    if not entry.places:
        return row.x is None
    place = row.x if row.layer is None else float(row.layer + (entry.quantity == HIDDEN_STATE))
    return place in entry.places


def _average_accuracy(entry: Published, rows: Sequence[Measurement]) -> Cell:
    """Compare an average accuracy. The paper averages seven tasks; the average of other tasks is another number."""
    by_task = {row.task: row.value for row in rows if row.task}
    missing = [task for task in PAPER_TASKS if task not in by_task]
    if missing:
        return Cell(entry, None, f"an average of seven tasks; {', '.join(missing)} not measured")
    return Cell(entry, sum(by_task[task] for task in PAPER_TASKS) / len(PAPER_TASKS))
