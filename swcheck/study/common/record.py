"""The record of a study: a flat list of measurements, with facts and notes.

Every output of a study (table, picture, CSV, verdicts) is made from its measurements alone. A stopped run can therefore
continue from its files. Layer, position, channel, row and column count from 0.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from swcheck.base.errors import CheckpointError, NotObservedError
from swcheck.base.json_text import json_text
from swcheck.base.reading import schema
from swcheck.base.reading.bounded import parsed_json

SCHEMA: Final = 1

INTACT: Final = "intact"
ZEROED: Final = "super weights zeroed"
OTHERS: Final = "other largest weights zeroed"


@dataclass(frozen=True)
class Measurement:
    """One number of a study.

    ``quantity`` says what was measured and in what unit, ``condition`` what was done to the model. ``x`` is the setting
    that a curve runs over (alpha, block size, bits), ``error`` the standard error if there is one, ``task`` the
    zero-shot task of an accuracy. The other fields say where it was measured; they are None where they do not apply.
    """

    quantity: str
    value: float
    condition: str = INTACT
    x: float | None = None
    error: float | None = None
    layer: int | None = None
    position: int | None = None
    channel: int | None = None
    prompt: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class Study:
    """The measurements of one study on one model.

    ``facts`` say what was measured and with what (revision, text, seed, versions). ``notes`` are sentences for the
    reader, among them what was left out and why.
    """

    name: str
    model: str
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def select(self, quantity: str, condition: str | None = None, **place: Any) -> tuple[Measurement, ...]:
        """Return the measurements of ``quantity`` in order, filtered by condition and by the fields in ``place``."""
        return tuple(
            point
            for point in self.measurements
            if point.quantity == quantity
            and (condition is None or point.condition == condition)
            and all(getattr(point, name) == value for name, value in place.items())
        )

    def value(self, quantity: str, condition: str = INTACT, **place: Any) -> float:
        """Return the one number with this quantity, condition and place.

        Raises ``NotObservedError`` unless there is exactly one.
        """
        found = self.select(quantity, condition, **place)
        if len(found) != 1:
            description = f"{quantity} ({condition}{''.join(f', {name} {value}' for name, value in place.items())})"
            raise NotObservedError(description, f"{len(found)} measurements in the study {self.name}")
        return found[0].value

    def conditions(self, quantity: str) -> tuple[str, ...]:
        """Return the conditions under which a quantity was measured, in order."""
        return tuple(dict.fromkeys(point.condition for point in self.select(quantity)))

    def has(self, quantity: str) -> bool:
        """Return whether a quantity was measured at all."""
        return bool(self.select(quantity))


def as_json(study: Study) -> str:
    """Return a study as a JSON document, which ``from_json`` reads."""
    body = {
        "schema": SCHEMA,
        "study": study.name,
        "model": study.model,
        "facts": dict(study.facts),
        "notes": list(study.notes),
        "measurements": [
            {name: value for name, value in asdict(point).items() if value is not None} for point in study.measurements
        ],
    }
    return json_text(body)


_TEXT: Final = schema.nullable(schema.text(100_000))
_PLACE: Final = dict.fromkeys(("layer", "position", "channel"), schema.nullable(schema.whole()))
_ROW: Final = schema.record(
    {"quantity": schema.text(1000), "value": schema.NUMBER},
    {
        **_PLACE,
        "condition": schema.text(1000),
        "x": schema.NUMBER,
        "error": schema.NUMBER,
        "prompt": _TEXT,
        "task": _TEXT,
    },
)
_STUDY: Final = schema.record(
    {
        "schema": schema.whole(SCHEMA, SCHEMA),
        "study": schema.text(1000),
        "model": schema.text(10_000),
        "measurements": schema.items(_ROW),
        "notes": schema.items(schema.text(100_000)),
        "facts": schema.table(schema.anything),
    }
)


def from_json(text: str | bytes, origin: str) -> Study:
    """Return the study that ``as_json`` wrote. Raises ``CheckpointError``, which names ``origin``, for other text."""
    asked, attempt = f"a study in {origin}", "remove it, it is measured again"
    body = schema.checked(parsed_json(text, asked), _STUDY, asked, attempt)
    try:
        measurements = tuple(Measurement(**{**row, **_numbers(row)}) for row in body["measurements"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(asked, f"no file of swcheck ({error!r})", attempt) from error
    return Study(body["study"], body["model"], measurements, tuple(body["notes"]), body["facts"])


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row; those that are not finite are texts in JSON."""
    return {name: float(row[name]) for name in ("value", "x", "error") if row.get(name) is not None}


COLUMNS: Final = (
    "study", "model", "revision", "seed", *(column.name for column in fields(Measurement)),
)  # fmt: skip


def as_csv(studies: Iterable[Study]) -> str:
    """Return tidy CSV, one measurement a row: study, model, revision, seed, then the fields of ``Measurement``."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for study in studies:
        study_columns = {"study": study.name, "model": study.model}
        study_columns |= {name: study.facts.get(name, "") for name in ("revision", "seed")}
        for point in study.measurements:
            row = {**study_columns, **asdict(point)}
            writer.writerow({name: _cell(value) for name, value in row.items()})
    return stream.getvalue()


def _cell(value: Any) -> Any:
    """Return a value of a CSV file; a text that a spreadsheet would compute as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of independent values and its standard error, which is None for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
