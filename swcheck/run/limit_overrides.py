"""What a run was asked for in place of default limits, and for whom: ``NAME=VALUE``, or ``MODEL:NAME=VALUE``.

Entries come from the command line, the environment and the ini-file, and add up to one table. Of those that speak of
one limit of one model, what stands first wins: the place where it was given, in this order; then whom it names, the
candidate before its reference, both before everybody; then a name before a glob, a glob of more letters before one of
fewer; then the last one given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from swcheck.base.errors import OptionError
from swcheck.base.limits import DEFAULTS, SINGLE_MODEL_LIMITS, chosen_limit
from swcheck.base.records import Limit
from swcheck.loading import engines, published_index

PLACES: Final[Mapping[str, str]] = {
    "command line": "on the command line",
    "environment": "in the environment",
    "ini": "in the ini-file",
}
"""Where an entry may be given, and how that is said; an earlier place wins over a later one."""

WRITTEN: Final = (
    "write it as perplexity=1.03 or activation=0.8..1.5; for one model or candidate as MODEL:perplexity=1.03"
)


@dataclass(frozen=True)
class Override:
    """One entry: the limit ``name`` of every model, or of those that ``model``, a name or a glob, means."""

    name: str
    limit: Limit
    model: str = ""
    origin: str = "command line"

    def __str__(self) -> str:
        return f"{self.model}: {self.name} {self.limit}" if self.model else f"{self.name} {self.limit}"

    @property
    def text(self) -> str:
        """The entry as it is typed."""
        low, high = ("" if end is None else f"{end:g}" for end in (self.limit.low, self.limit.high))
        return f"{self.model}:{self.name}={low}..{high}" if self.model else f"{self.name}={low}..{high}"

    def rank(self, model: str, candidate: str | None) -> tuple[int, ...] | None:
        """How closely it speaks of a model, or of a candidate beside it; None where it does not."""
        if not self.model:
            return 0, 0, 0
        for whose, spec in ((2, None if self.name in SINGLE_MODEL_LIMITS else candidate), (1, model)):
            if spec is not None and _is_named(self.model, spec):
                return whose, 1, 0
            if spec is not None and _is_matched(self.model, spec):
                return whose, 0, sum(mark not in "*?[]" for mark in self.model)
        return None


def read(texts: Iterable[str], origin: str = "command line") -> tuple[Override, ...]:
    """The entries that ``texts`` write, of one place. Raises ``OptionError`` for what cannot be read."""
    return tuple(_read(text, origin) for text in texts)


def _read(text: str, origin: str) -> Override:
    head, equals, value = (part.strip() for part in text.rpartition("="))
    model, colon, name = (part.strip() for part in head.rpartition(":"))
    if not equals and text.rpartition(":")[2].strip() in DEFAULTS:
        raise OptionError(f"limit {text!r}", "no value behind it", WRITTEN)
    if name not in DEFAULTS or not equals:
        raise OptionError(f"limit {text!r}", f"known: {', '.join(DEFAULTS)}", WRITTEN)
    if colon and not model:
        raise OptionError(f"limit {text!r}", "no model before the colon", WRITTEN)
    try:
        low, high = _ends(value, DEFAULTS[name])
    except ValueError as error:
        raise OptionError(f"limit {text!r}", f"{value!r} is no number", f"default: {DEFAULTS[name]}") from error
    source = f"given {PLACES[origin]}" + f" for {model}" * bool(model)
    return Override(name, replace(chosen_limit(name, low, high), source=source), model, origin)


def _ends(value: str, default: Limit) -> tuple[float | None, float | None]:
    """The two ends that ``low..high`` names; a single number is the side that the default leaves to be set."""
    low, dots, high = value.partition("..")
    if dots:
        return (float(low) if low.strip() else None, float(high) if high.strip() else None)
    return (float(value), None) if default.high is None else (None, float(value))


def ruling(overrides: Sequence[Override], model: str, candidate: str | None = None) -> dict[str, Override]:
    """By name of a limit the entry that rules it, for a model or for a candidate beside it; none where none speaks."""
    places, chosen = list(PLACES), {}
    best: dict[str, tuple[int, ...]] = {}
    for number, override in enumerate(overrides):
        rank = override.rank(model, candidate)
        if rank is None:
            continue
        key = (-places.index(override.origin), *rank, number)
        if override.name not in best or key > best[override.name]:
            best[override.name], chosen[override.name] = key, override
    return chosen


def idle(overrides: Sequence[Override], model_specs: Sequence[str], candidates: Sequence[str]) -> tuple[Override, ...]:
    """The entries that speak of no model and no candidate of a run; none where the run has no model."""
    pairs = [(model, candidate) for model in model_specs for candidate in (None, *candidates)]
    return tuple(one for one in overrides if pairs and all(one.rank(*pair) is None for pair in pairs))


def check_spoken_to(overrides: Sequence[Override], model_specs: Sequence[str], candidates: Sequence[str]) -> None:
    """Raise ``OptionError`` for an entry of the command line that speaks of nothing in this run: it would gate nothing."""
    for one in idle(overrides, model_specs, candidates):
        if one.origin == "command line":
            whom = "model" if one.name in SINGLE_MODEL_LIMITS or not candidates else "model or candidate"
            names = model_specs if one.name in SINGLE_MODEL_LIMITS else (*model_specs, *candidates)
            found = f"no {whom} of this run is called so: {', '.join(dict.fromkeys(names))}"
            advice = "a name as it is typed, or a glob as '*awq*'; what is meant for other runs belongs in the ini-file"
            raise OptionError(f"limit {one.text!r}", found, advice)


def _is_named(name: str, spec: str) -> bool:
    """Whether ``name`` means the same model as ``spec``: as typed, by its directory's name, an alias or its hub id."""
    return name in _names(spec) or engines.meaning(name) == engines.meaning(spec)


def _is_matched(glob: str, spec: str) -> bool:
    return any(fnmatchcase(name, glob) for name in _names(spec))


def _names(spec: str) -> tuple[str, ...]:
    """All that a model may be called by."""
    meaning = engines.meaning(spec)
    known = published_index.find(meaning)
    return (spec, engines.name_of(spec), meaning, *(known.aliases if known else ()))
