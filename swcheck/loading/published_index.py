"""The published super weights: where, found by whom, what zeroing them did, and what is doubted.

Half of what is published is inert alone, some is an echo, one coordinate is a misprint. The index keeps all of it, with
its sources, and asserts only what is sound; the rest are candidates, to be shown. An entry is where ``locate`` starts,
never where it ends, because published sets are often incomplete; a model without an entry is located from nothing.

``published_index.csv`` beside this file is the index, its head the legend of columns, tags, sources and aliases. It is read when
first asked. The embedded models are not in it: each has its own card. Standard library only, never torch.
"""

from __future__ import annotations

import csv
import re
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from swcheck.base.errors import UnknownModelError
from swcheck.base.records import SuperWeight
from swcheck.loading import tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")


class Status(StrEnum):
    """What is known of a coordinate; measured means zeroed, on the checkpoint of the entry."""

    CRITICAL = "critical"  # measured alone: perplexity x10 or more
    CONTRIBUTING = "contributing"  # measured alone: x1.1 to x10, or 0.1 nats and more where only a divergence is known
    JOINT = "joint"  # measured with its whole set: x10 or more, or accuracy collapsed; not known to collapse alone
    INERT = "inert"  # measured alone: less
    UNMEASURED = "unmeasured"  # nobody has published what zeroing it does here
    UNATTRIBUTED = "unattributed"  # the source leaves open which checkpoint it means
    UNPLACED = "unplaced"  # a row, a column or an expert without the rest
    DISPUTED = "disputed"  # sources contradict each other
    INSUFFICIENT = "insufficient"  # in the words of its finder
    WITHDRAWN = "withdrawn"  # by its finder
    RECEIVED = "received"  # carries a spike that an earlier layer made
    ECHO = "echo"  # a late layer's own spike
    SPURIOUS = "spurious"  # a false positive


_EFFECTIVE: Final = frozenset({Status.CRITICAL, Status.CONTRIBUTING, Status.JOINT})
_UNDOUBTED: Final = _EFFECTIVE | {Status.INERT, Status.UNMEASURED}
_SOUND: Final[Mapping[str, frozenset[Status]]] = {"PAPER": _UNDOUBTED, "CODE": _UNDOUBTED, "FOLLOWUP": _EFFECTIVE}


@dataclass(frozen=True)
class Coordinate:
    """One published coordinate, or as much of one as was published.

    ``value`` is the weight as somebody read it in this model. ``alone_ratio`` and ``joint_ratio`` are perplexities with
    this scalar, or with the model's whole set, zeroed, over perplexity intact; ``alone_kl`` is the divergence in nats.
    ``source`` holds keys of ``sources()``, separated by blanks.
    """

    layer: int
    row: int | None
    column: int | None
    expert: int | Literal["shared"] | None
    tag: str
    status: Status
    value: float | None
    alone_ratio: float | None
    joint_ratio: float | None
    alone_kl: float | None
    effect: str
    note: str
    source: str

    @property
    def super_weight(self) -> SuperWeight | None:
        """The scalar it names; None where it names no single scalar of a dense ``down_proj``."""
        if self.row is None or self.column is None or self.expert is not None:
            return None
        return SuperWeight(self.layer, self.row, self.column, self.value)

    @property
    def sound(self) -> bool:
        """Whether it is asserted by default.

        What the paper or its code holds, unless doubted; what later work found, if zeroing it, alone or with its set,
        had an effect in this very model.
        """
        return self.super_weight is not None and self.status in _SOUND.get(self.tag, frozenset())

    def __str__(self) -> str:
        if self.super_weight is not None:
            return str(self.super_weight)
        row, column = ("*" if place is None else place for place in (self.row, self.column))
        expert = "" if self.expert is None else f", expert {self.expert}"
        return f"layer {self.layer}{expert} [{row}, {column}]"


@dataclass(frozen=True)
class Entry:
    """All that is published on one model.

    ``status`` is "known" where at least one coordinate is sound, "none" where the model is reported to have no super
    weight or not to depend on one (``note`` says on what grounds, ``source`` by whom), "candidates" otherwise.
    """

    model: str
    aliases: tuple[str, ...]
    status: Literal["known", "candidates", "none"]
    coordinates: tuple[Coordinate, ...]
    note: str = ""
    source: str = ""

    @property
    def super_weights(self) -> tuple[SuperWeight, ...]:
        """The sound ones in order, with their values where known."""
        return tuple(sorted(c.super_weight for c in self.coordinates if c.sound and c.super_weight is not None))

    @property
    def candidates(self) -> tuple[Coordinate, ...]:
        """The rest, in the order of the file: to be shown and looked at, not asserted."""
        return tuple(c for c in self.coordinates if not c.sound)


def entry(name: str) -> Entry:
    """Look up an alias, a hub id or a hub id's last part, in any case; raises ``UnknownModelError``."""
    found = find(name)
    if found is None:
        raise _unknown(name)
    return found


def find(name: str) -> Entry | None:
    """Look up an alias, a hub id or a hub id's last part, in any case; None where there is no entry."""
    return _names().get(_fold(name))


def known_super_weights(name: str) -> tuple[SuperWeight, ...]:
    """List the sound published super weights of a model; ``entry(name)`` has their sources and effects.

    Empty for a model that has only candidates, or is reported to have none; raises ``UnknownModelError``.
    """
    return entry(name).super_weights


@cache
def entries() -> tuple[Entry, ...]:
    """Every model with published coordinates or a published "none", in the order of the file."""
    models: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(line for line in _lines() if not line.startswith("#")):
        models.setdefault(row["model"], []).append(row)
    typed = _legend("alias")
    return tuple(_entry(model, rows, typed.get(model, "").split()) for model, rows in models.items())


@cache
def aliases() -> Mapping[str, str]:
    """Every short name and the hub id it stands for, last parts of hub ids included, in lower case."""
    return MappingProxyType({alias: e.model for e in entries() for alias in e.aliases})


@cache
def sources() -> Mapping[str, str]:
    """Every key of a ``source`` field and the publication it stands for."""
    return MappingProxyType(_legend("source"))


def closest(name: str) -> tuple[str, ...]:
    """Up to four known names near ``name``, of different models; hub ids for a hub id."""
    key = _fold(name)
    every = {known: e.model for known, e in _names().items()} | {name: name for name in tiny.CHECKPOINTS}
    names = {known: model for known, model in every.items() if ("/" in known) == ("/" in key)}
    nearest: dict[str, str] = {}
    for match in get_close_matches(key, names, n=16):
        nearest.setdefault(names[match], match)
    return tuple(nearest.values())[:4]


def as_json(found: Entry) -> dict[str, Any]:
    """An entry as plain values, each coordinate with its soundness; an infinite ratio stays infinite."""
    coordinates = [{**asdict(c), "sound": c.sound} for c in found.coordinates]
    return {**asdict(found), "coordinates": coordinates}


def as_text(found: Entry, *, full: bool) -> list[str]:
    """An entry as lines: sound coordinates with effects and sources; if ``full``, candidates too,
    and what the names of the sources stand for.
    """
    lines = [f"{found.model} ({', '.join(found.aliases)}): {found.status}"]
    if found.source:
        lines.append(f"  {found.note}; {found.source}")
    lines += [_line(c) for c in found.coordinates if c.sound]
    if full and found.candidates:
        lines += ["  candidates, not asserted:", *("  " + _line(c) for c in found.candidates)]
    elif found.candidates:
        lines.append(f"  candidates, not asserted: {len(found.candidates)}")
    if full:
        cited = " ".join([found.source, *(c.source for c in found.coordinates)]).split()
        lines += ["  sources:", *(f"    {key}: {words}" for key, words in sources().items() if key in cited)]
    return lines


@cache
def _lines() -> tuple[str, ...]:
    return tuple(
        resources.files("swcheck.loading").joinpath("published_index.csv").read_text(encoding="utf-8").splitlines()
    )


@cache
def _names() -> Mapping[str, Entry]:
    return {name: e for e in entries() for name in (_fold(e.model), *e.aliases)}


def _legend(kind: str) -> dict[str, str]:
    """Read the lines "# kind key: text" of the file's head."""
    start = f"# {kind} "
    return dict(line.removeprefix(start).split(": ", 1) for line in _lines() if line.startswith(start))


def _fold(name: str) -> str:
    """Give names that differ in case, or in blank, underscore and hyphen, one spelling ("Llama 7B", "evo2_7b")."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def _entry(model: str, rows: list[dict[str, str]], typed: list[str]) -> Entry:
    coordinates = tuple(_coordinate(row) for row in rows if row["tag"] != "NONE")
    report = next((row for row in rows if row["tag"] == "NONE"), None)
    names = tuple(dict.fromkeys([_fold(model.rpartition("/")[2]), *typed]))
    if report is not None:
        return Entry(model, names, "none", coordinates, report["note"], report["source"])
    return Entry(model, names, "known" if any(c.sound for c in coordinates) else "candidates", coordinates)


def _coordinate(row: Mapping[str, str]) -> Coordinate:
    return Coordinate(
        layer=int(row["layer"]),
        row=_read(row["row"], int),
        column=_read(row["column"], int),
        expert="shared" if row["expert"] == "shared" else _read(row["expert"], int),
        tag=row["tag"],
        status=Status(row["status"]),
        value=_read(row["value"], float),
        alone_ratio=_read(row["alone_ratio"], float),
        joint_ratio=_read(row["joint_ratio"], float),
        alone_kl=_read(row["alone_kl"], float),
        effect=row["effect"],
        note=row["note"],
        source=row["source"],
    )


def _read(cell: str, kind: Callable[[str], T]) -> T | None:
    return kind(cell) if cell else None


def _line(c: Coordinate) -> str:
    numbers = (("x", c.alone_ratio, " alone"), ("x", c.joint_ratio, " with its set"), ("KL ", c.alone_kl, " alone"))
    told = [f"{unit}{number:g}{how}" for unit, number, how in numbers if number is not None]
    return "  " + "; ".join(part for part in (f"{c}: {c.status}", *told, c.effect, c.note, c.source) if part)


def _unknown(name: str) -> UnknownModelError:
    key, asked = _fold(name), f"The published super weights of {name!r} were asked for."
    if not key:
        return UnknownModelError(asked, "an empty name", "a hub id or an alias, such as llama-7b")
    if key in tiny.CHECKPOINTS:
        found = f"{key} is embedded in swcheck: its super weights are on its own card, not among the published"
        return UnknownModelError(
            asked, found, f"pytest --model={key}, which finds them; `swcheck index` lists the known names"
        )
    found, close = f"no such name among {len(entries())} models", closest(name)
    found += f"; the closest are {', '.join(close)}" if close else ", and none that is close"
    attempt = "`swcheck index` lists the known names; a model need not be in it: `swcheck locate MODEL`"
    return UnknownModelError(asked, found, attempt)
