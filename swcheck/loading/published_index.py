"""The index of published super weights: coordinates, who found them, what zeroing them did, and doubts about them.

Half of the published coordinates are inert alone, some are echoes, one is a misprint. The index keeps all of them with
their sources. Only *sound* ones (``Coordinate.sound``) are asserted; the others are candidates, which are only shown.
``locate`` starts from an entry and completes it, because published sets are often incomplete. It finds the super
weights of a model without an entry from nothing.

The data are in ``published_index.csv``, read on first use. The head of that file explains columns, tags, sources and
aliases. The embedded models are not in it: each has its own card. Standard library only, no torch.
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
    """What is known of a coordinate. Measured means that it was zeroed, in the checkpoint of the entry."""

    CRITICAL = "critical"  # measured alone: perplexity x10 or more
    CONTRIBUTING = "contributing"  # measured alone: x1.1 to x10, or 0.1 nats or more if only a divergence is known
    JOINT = "joint"  # measured with its whole set: x10 or more, or accuracy collapsed; not known for it alone
    INERT = "inert"  # measured alone: below x1.1
    UNMEASURED = "unmeasured"  # nobody has published what zeroing it does here
    UNATTRIBUTED = "unattributed"  # the source does not say which checkpoint it means
    UNPLACED = "unplaced"  # the source gives only a row, a column or an expert
    DISPUTED = "disputed"  # sources contradict each other
    INSUFFICIENT = "insufficient"  # called insufficient by its finder
    WITHDRAWN = "withdrawn"  # withdrawn by its finder
    RECEIVED = "received"  # passes on a spike that an earlier layer wrote
    ECHO = "echo"  # a late layer's own spike
    SPURIOUS = "spurious"  # a false positive


_EFFECTIVE: Final = frozenset({Status.CRITICAL, Status.CONTRIBUTING, Status.JOINT})
_UNDOUBTED: Final = _EFFECTIVE | {Status.INERT, Status.UNMEASURED}
_SOUND_STATUSES: Final[Mapping[str, frozenset[Status]]] = {
    "PAPER": _UNDOUBTED,
    "CODE": _UNDOUBTED,
    "FOLLOWUP": _EFFECTIVE,
}
"""The statuses with which a coordinate is sound, for each tag (where it was published)."""


@dataclass(frozen=True)
class Coordinate:
    """One published coordinate, or the part of it that was published.

    ``value`` is the weight as the source read it in this model. ``alone_ratio`` is the perplexity with this scalar
    zeroed over perplexity intact; ``joint_ratio`` is the same with the model's whole set zeroed. ``alone_kl`` is the
    mean KL divergence from the intact model in nats, with this scalar zeroed. ``source`` holds keys of ``sources()``,
    separated by blanks.
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
        """The super weight at this coordinate; None unless it names a single scalar."""
        if self.row is None or self.column is None:
            return None
        return SuperWeight(self.layer, self.row, self.column, self.value, self.expert)

    @property
    def sound(self) -> bool:
        """Whether the coordinate is asserted by default.

        It is sound if it is from the paper or its code and not in doubt; or if it is from later work and zeroing it,
        alone or with its set, had an effect in this very model.
        """
        return self.super_weight is not None and self.status in _SOUND_STATUSES.get(self.tag, frozenset())

    def __str__(self) -> str:
        if self.super_weight is not None:
            return str(self.super_weight)
        row, column = ("*" if place is None else place for place in (self.row, self.column))
        expert = "" if self.expert is None else f" expert {self.expert}"
        return f"layer {self.layer}{expert} [{row}, {column}]"


@dataclass(frozen=True)
class Entry:
    """All that is published about one model.

    ``status`` is "known" if at least one coordinate is sound; "none" if the model is reported to have no super weight
    or not to depend on one (``note`` says on what grounds, ``source`` by whom); "candidates" otherwise. ``aliases`` are
    normalized names (lower case).
    """

    model: str
    aliases: tuple[str, ...]
    status: Literal["known", "candidates", "none"]
    coordinates: tuple[Coordinate, ...]
    note: str = ""
    source: str = ""

    @property
    def super_weights(self) -> tuple[SuperWeight, ...]:
        """The sound super weights, sorted by coordinate, with values if known."""
        return tuple(sorted(c.super_weight for c in self.coordinates if c.sound and c.super_weight is not None))

    @property
    def candidates(self) -> tuple[Coordinate, ...]:
        """The coordinates that are not sound, in the order of the file. They are shown, not asserted."""
        return tuple(c for c in self.coordinates if not c.sound)


def entry(name: str) -> Entry:
    """Look up an alias, a hub id or its last part, in upper or lower case. Raises ``UnknownModelError`` if unknown."""
    found = find(name)
    if found is None:
        raise _unknown_model_error(name)
    return found


def find(name: str) -> Entry | None:
    """Look up an alias, a hub id or its last part, in upper or lower case. Return None if there is no entry."""
    return _entries_by_name().get(_normalized(name))


def known_super_weights(name: str) -> tuple[SuperWeight, ...]:
    """Return the sound published super weights of a model, sorted by coordinate.

    ``name`` is an alias, a hub id or its last part. The tuple is empty for a model that has only candidates or is
    reported to have none. Raises ``UnknownModelError`` for a model without an entry.
    """
    return entry(name).super_weights


@cache
def entries() -> tuple[Entry, ...]:
    """Return the entries of all models, in the order of the file."""
    models: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(line for line in _file_lines() if not line.startswith("#")):
        models.setdefault(row["model"], []).append(row)
    aliases_of = _head_entries("alias")
    return tuple(_make_entry(model, rows, aliases_of.get(model, "").split()) for model, rows in models.items())


@cache
def aliases() -> Mapping[str, str]:
    """Return the hub id of every alias. The last part of a hub id is an alias too. Aliases are in lower case."""
    return MappingProxyType({alias: e.model for e in entries() for alias in e.aliases})


@cache
def sources() -> Mapping[str, str]:
    """Return the publication of every key that may be in ``Coordinate.source``."""
    return MappingProxyType(_head_entries("source"))


SHORT_NAME: Final = 5
"""The length up to which a name that is only half the same is proposed for a misspelt one."""


def closest(name: str) -> tuple[str, ...]:
    """Return up to four known names similar to ``name``, of different models: hub ids if ``name`` is one."""
    key = _normalized(name)
    models = {known: e.model for known, e in _entries_by_name().items()} | {name: name for name in tiny.CHECKPOINTS}
    comparable = {known: model for known, model in models.items() if ("/" in known) == ("/" in key)}
    name_of: dict[str, str] = {}
    # Two letters of a short name in the wrong order are half of what difflib compares.
    for match in get_close_matches(key, comparable, n=16, cutoff=0.5 if len(key) <= SHORT_NAME else 0.6):
        name_of.setdefault(comparable[match], match)
    return tuple(name_of.values())[:4]


def as_json(found: Entry) -> dict[str, Any]:
    """Return an entry as plain values, each coordinate with its ``sound``. An infinite ratio stays infinite."""
    coordinates = [{**asdict(c), "sound": c.sound} for c in found.coordinates]
    return {**asdict(found), "coordinates": coordinates}


def as_text(found: Entry, *, full: bool) -> list[str]:
    """Return an entry as lines of text: the sound coordinates with their effects and sources.

    ``full`` adds the candidates and the publications that the keys of the sources stand for.
    """
    lines = [f"{found.model} ({', '.join(found.aliases)}): {found.status}"]
    if found.source:
        lines.append(f"  {found.note}; {found.source}")
    lines += [_format_coordinate(c) for c in found.coordinates if c.sound]
    if full and found.candidates:
        lines += ["  candidates, not asserted:", *("  " + _format_coordinate(c) for c in found.candidates)]
    elif found.candidates:
        lines.append(f"  candidates, not asserted: {len(found.candidates)}")
    if full:
        cited = " ".join([found.source, *(c.source for c in found.coordinates)]).split()
        lines += ["  sources:", *(f"    {key}: {words}" for key, words in sources().items() if key in cited)]
    return lines


@cache
def _file_lines() -> tuple[str, ...]:
    return tuple(
        resources.files("swcheck.loading").joinpath("published_index.csv").read_text(encoding="utf-8").splitlines()
    )


@cache
def _entries_by_name() -> Mapping[str, Entry]:
    return {name: e for e in entries() for name in (_normalized(e.model), *e.aliases)}


def _head_entries(kind: str) -> dict[str, str]:
    """Return key and text of the lines "# kind key: text" in the head of the file."""
    start = f"# {kind} "
    return dict(line.removeprefix(start).split(": ", 1) for line in _file_lines() if line.startswith(start))


def _normalized(name: str) -> str:
    """Return ``name`` in lower case, with blanks and underscores as hyphens: "Llama 7B" becomes "llama-7b"."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def _make_entry(model: str, rows: list[dict[str, str]], short_names: list[str]) -> Entry:
    coordinates = tuple(_make_coordinate(row) for row in rows if row["tag"] != "NONE")
    report = next((row for row in rows if row["tag"] == "NONE"), None)
    names = tuple(dict.fromkeys([_normalized(model.rpartition("/")[2]), *short_names]))
    if report is not None:
        return Entry(model, names, "none", coordinates, report["note"], report["source"])
    return Entry(model, names, "known" if any(c.sound for c in coordinates) else "candidates", coordinates)


def _make_coordinate(row: Mapping[str, str]) -> Coordinate:
    return Coordinate(
        layer=int(row["layer"]),
        row=_parse_cell(row["row"], int),
        column=_parse_cell(row["column"], int),
        expert="shared" if row["expert"] == "shared" else _parse_cell(row["expert"], int),
        tag=row["tag"],
        status=Status(row["status"]),
        value=_parse_cell(row["value"], float),
        alone_ratio=_parse_cell(row["alone_ratio"], float),
        joint_ratio=_parse_cell(row["joint_ratio"], float),
        alone_kl=_parse_cell(row["alone_kl"], float),
        effect=row["effect"],
        note=row["note"],
        source=row["source"],
    )


def _parse_cell(cell: str, kind: Callable[[str], T]) -> T | None:
    return kind(cell) if cell else None


def _format_coordinate(c: Coordinate) -> str:
    numbers = (("x", c.alone_ratio, " alone"), ("x", c.joint_ratio, " with its set"), ("KL ", c.alone_kl, " alone"))
    effects = [f"{unit}{number:g}{how}" for unit, number, how in numbers if number is not None]
    return "  " + "; ".join(text for text in (f"{c}: {c.status}", *effects, c.effect, c.note, c.source) if text)


def _unknown_model_error(name: str) -> UnknownModelError:
    key, asked = _normalized(name), f"The published super weights of {name!r} were asked for."
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
