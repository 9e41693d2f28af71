"""What a study is made of: flat measurements, and the record that holds them.

Everything that is shown of a study (table, picture, CSV, verdict) is made from its measurements alone, so that a
stopped run goes on from its files. Layer, position, channel, row and column count from 0.
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

    ``quantity`` says what was measured and in what unit, ``condition`` what was done to the model, ``x`` the setting
    that a curve runs over (alpha, block size, bits), ``error`` the standard error where there is one, ``task`` the
    zero-shot task of an accuracy. The others say where; None where that does not apply.
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
    """What one study of one model has measured.

    ``facts`` say of what, on what and with what (model, revision, text, seed, versions); ``notes`` are sentences for
    its reader, among them what was left out and why.
    """

    name: str
    model: str
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def select(self, quantity: str, condition: str | None = None, **place: Any) -> tuple[Measurement, ...]:
        """The measurements of a quantity, in order, of one condition and one place where these are given."""
        return tuple(
            one
            for one in self.measurements
            if one.quantity == quantity
            and (condition is None or one.condition == condition)
            and all(getattr(one, name) == value for name, value in place.items())
        )

    def value(self, quantity: str, condition: str = INTACT, **place: Any) -> float:
        """The one number of this quantity, condition and place. Raises ``NotObservedError`` where there is none."""
        found = self.select(quantity, condition, **place)
        if len(found) != 1:
            asked = f"{quantity} ({condition}{''.join(f', {name} {value}' for name, value in place.items())})"
            raise NotObservedError(asked, f"{len(found)} measurements in the study {self.name}")
        return found[0].value

    def conditions(self, quantity: str) -> tuple[str, ...]:
        """The conditions under which a quantity was measured, in order."""
        return tuple(dict.fromkeys(one.condition for one in self.select(quantity)))

    def has(self, quantity: str) -> bool:
        """Whether a quantity was measured at all."""
        return bool(self.select(quantity))


def as_json(study: Study) -> str:
    """A study as a JSON document; ``from_json`` reads it."""
    body = {
        "schema": SCHEMA,
        "study": study.name,
        "model": study.model,
        "facts": dict(study.facts),
        "notes": list(study.notes),
        "measurements": [
            {name: value for name, value in asdict(one).items() if value is not None} for one in study.measurements
        ],
    }
    return json_text(body)


def from_json(text: str, origin: str) -> Study:
    """The study that ``as_json`` wrote. Raises ``CheckpointError`` for anything else."""
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
    """Tidy CSV, one measurement a row: study, model, revision, seed, then the fields of ``Measurement``."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for study in studies:
        whose = {"study": study.name, "model": study.model}
        whose |= {name: study.facts.get(name, "") for name in ("revision", "seed")}
        for one in study.measurements:
            writer.writerow({**whose, **asdict(one)})
    return stream.getvalue()


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of independent values, and its standard error where there are two or more."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
