"""The record of a study: a flat list of measurements, with facts and notes.

Every output of a study (table, picture, CSV, verdicts) is made from its measurements alone. A stopped run can therefore
continue from its files. Layer, position, channel, row and column count from 0.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from swcheck.base.errors import CheckpointError, NotObservedError
from swcheck.base.json_text import json_text

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


def from_json(text: str, origin: str) -> Study:
    """Return the study that ``as_json`` wrote. Raises ``CheckpointError``, which names ``origin``, for other text."""
    try:
        body = json.loads(text)
        if body["schema"] != SCHEMA:
            raise ValueError(f"schema {body['schema']}")
        measurements = tuple(Measurement(**{**row, "value": float(row["value"])}) for row in body["measurements"])
        return Study(body["study"], body["model"], measurements, tuple(body["notes"]), body["facts"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"a study in {origin}", f"no file of swcheck ({error!r})", "remove it, it is measured again"
        ) from error


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
            writer.writerow({**study_columns, **asdict(point)})
    return stream.getvalue()


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean of independent values and its standard error, which is None for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
