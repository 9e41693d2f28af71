"""The published numbers as data, and what a study of the same model measures held against them, cell by cell.

``paper.csv`` beside this file has them with their sources: the paper (arXiv 2411.07191), the curves behind its figures,
and the replications. Two cells that look like copy errors, and one misprinted coordinate, are marked and never compared.
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
from swcheck.study.zeroshot.harness import PAPER

PLACES: Final = "largest hidden state"
"""The quantity whose x is an index of hidden states: layer + 1."""


@dataclass(frozen=True)
class Published:
    """One published number.

    ``condition`` and ``quantity`` are words of the studies; ``item`` is a task, a text, a token or a coordinate; ``x``
    is alpha, the side of a block, a layer or a hidden state, as written. ``value`` is in ``unit`` as printed.
    ``source`` is a key of ``index.sources()`` and the place in it.
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
        """Whether it looks like a copy error or a misprint; then it is shown, never held against anything."""
        return self.status == "suspect"

    @property
    def expected(self) -> float:
        """The value as a study measures it: shares and accuracies between 0 and 1."""
        return self.value / 100 if self.unit == "%" else self.value

    @property
    def places(self) -> tuple[float, ...]:
        """The settings that it holds for: one, those of a range ("5-29"), or none."""
        found = re.fullmatch(r"(\d+)-(\d+)", self.x)
        if found:
            return tuple(float(place) for place in range(int(found[1]), int(found[2]) + 1))
        return (float(self.x),) if self.x else ()


@dataclass(frozen=True)
class Cell:
    """A published number and the measured one; ``measured`` is None where there is none, and ``reason`` says why."""

    published: Published
    measured: float | None
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        """Measured over published; None where one is missing or the published one is 0."""
        if self.measured is None or not self.published.expected:
            return None
        return self.measured / self.published.expected


@cache
def everything() -> tuple[Published, ...]:
    """Every published number, in the order of the file."""
    text = resources.files("swcheck.study").joinpath("paper.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(Published(**{**row, "value": float(row["value"])}) for row in rows)  # type: ignore[arg-type]


def published(model: str, study: str | None = None) -> tuple[Published, ...]:
    """What is published of a model, an alias or a hub id in any case, in one study or in all; empty where nothing is."""
    known = published_index.find(model)
    hub = (known.model if known else model).lower()
    chosen = (one for one in everything() if hub in {one.hub.lower(), one.model})
    return tuple(one for one in chosen if study in {None, one.study})


def compare(studies: Iterable[Study], numbers: Iterable[Published], *, corpus: str | None = None) -> tuple[Cell, ...]:
    """Each of ``numbers`` beside what ``studies`` measured in the same study, condition, quantity and place.

    An average accuracy is the mean of the tasks that its source averages, given that all of them were measured. A
    perplexity is compared only where ``corpus`` ("wikitext-2", "c4") says that it was measured on the same text; a
    ratio of perplexities always, since it hardly depends on a text that is long enough.
    """
    measured = {study.name: study.measurements for study in studies}
    return tuple(_cell(one, measured.get(one.study), corpus) for one in numbers)


def as_text(cells: Sequence[Cell]) -> list[list[str]]:
    """The comparison as rows of text, the head first."""
    rows = [["study", "condition", "quantity", "item", "x", "published", "measured", "ratio", "source", "note"]]
    for cell in cells:
        one = cell.published
        percent = one.unit == "%"
        value = "-" if cell.measured is None else f"{cell.measured * (100 if percent else 1):.5g}"
        ratio = "-" if cell.ratio is None else f"{cell.ratio:.3f}"
        notes = "; ".join(part for part in (one.status, cell.reason, one.note) if part)
        unit = f" {one.unit}" if one.unit else ""
        rows.append(
            [
                one.study,
                one.condition,
                one.quantity,
                one.item,
                one.x,
                f"{one.value:.6g}{unit}",
                value,
                ratio,
                one.source,
                notes,
            ]
        )
    return rows


def _cell(one: Published, found: Sequence[Measurement] | None, corpus: str | None) -> Cell:
    if one.suspect:
        return Cell(one, None, "not compared")
    if found is None:
        return Cell(one, None, f"the study {one.study} was not taken")
    if one.quantity == "perplexity" and one.item != corpus:
        return Cell(one, None, f"published on {one.item or 'a text that is not named'}, measured on another text")
    alike = [
        row for row in found if row.quantity == one.quantity and row.condition == one.condition and _there(row, one)
    ]
    if one.quantity == "accuracy" and one.item == "average":
        return _average(one, alike)
    if one.quantity not in {"perplexity", "perplexity ratio"}:
        alike = [row for row in alike if one.item in {row.task or "", row.prompt or ""}]
    if not alike:
        return Cell(one, None, "not measured")
    reason = f"mean of {len(alike)} of {len(one.places)}" if len(one.places) > 1 else ""
    return Cell(one, sum(row.value for row in alike) / len(alike), reason)


def _there(row: Measurement, one: Published) -> bool:
    """Whether a measurement stands where a published number does."""
    if not one.places:
        return row.x is None
    place = row.x if row.layer is None else float(row.layer + (one.quantity == PLACES))
    return place in one.places


def _average(one: Published, alike: Sequence[Measurement]) -> Cell:
    """The paper averages seven tasks; the average of others is another number."""
    by_task = {row.task: row.value for row in alike if row.task}
    missing = [task for task in PAPER if task not in by_task]
    if missing:
        return Cell(one, None, f"an average of seven tasks; {', '.join(missing)} not measured")
    return Cell(one, sum(by_task[task] for task in PAPER) / len(PAPER))
