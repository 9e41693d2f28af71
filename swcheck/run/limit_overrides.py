"""Reads limits that replace the defaults: ``NAME=VALUE`` for every model, ``MODEL:NAME=VALUE`` for some.

Entries come from the command line, the environment, the ini-file and ``pyproject.toml``. Where several set the same limit
of the same model, these rules decide, in this order: an earlier one of these places wins over a later one; an entry for the candidate wins over one for its reference, and both over one without a model; an exact name wins over a
glob, and a glob with more letters over one with fewer; a later entry wins over an earlier one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

from swcheck.base.errors import OptionError
from swcheck.base.limits import DEFAULTS, JUDGED_OR_REPORTED, SINGLE_MODEL_LIMITS, chosen_limit
from swcheck.base.records import Limit
from swcheck.loading import engines, published_index

ORIGINS: Final[Mapping[str, str]] = {
    "command line": "on the command line",
    "environment": "in the environment",
    "ini": "in the ini-file",
    "pyproject": "in pyproject.toml",
}
"""Where an entry may be given, and the phrase that names that place. An earlier place wins over a later one."""

REPORTED: Final = "reported"
"""The value of an entry that lifts a limit."""

SYNTAX_HINT: Final = (
    "write it as perplexity=1.03 or activation=0.8..1.5; for one model or candidate as MODEL:perplexity=1.03"
)


@dataclass(frozen=True)
class Override:
    """One entry: the limit ``name`` of the models that ``model`` matches, a name or a glob; empty means every model."""

    name: str
    limit: Limit
    model: str = ""
    origin: str = "command line"

    def __str__(self) -> str:
        limit = REPORTED if self.limit.low is None and self.limit.high is None else str(self.limit)
        return f"{self.model}: {self.name} {limit}" if self.model else f"{self.name} {limit}"

    @property
    def text(self) -> str:
        """The entry as the user types it."""
        if self.limit.low is None and self.limit.high is None:
            return f"{self.model}:{self.name}={REPORTED}" if self.model else f"{self.name}={REPORTED}"
        low, high = ("" if end is None else f"{end:g}" for end in (self.limit.low, self.limit.high))
        return f"{self.model}:{self.name}={low}..{high}" if self.model else f"{self.name}={low}..{high}"

    def rank(self, model: str, candidate: str | None) -> tuple[int, ...] | None:
        """Return how specific this entry is for a model, or for its candidate; None if it is about neither.

        The tuple is (2 for the candidate or 1 for the model, 1 for an exact name or 0 for a glob, letters of the glob),
        all zeros for an entry without a model. A larger tuple wins.
        """
        if not self.model:
            return 0, 0, 0
        for precedence, spec in ((2, None if self.name in SINGLE_MODEL_LIMITS else candidate), (1, model)):
            if spec is not None and _is_exact_name(self.model, spec):
                return precedence, 1, 0
            if spec is not None and _matches_glob(self.model, spec):
                return precedence, 0, sum(char not in "*?[]" for char in self.model)
        return None


def parse_overrides(texts: Iterable[str], origin: str = "command line") -> tuple[Override, ...]:
    """Return the entries that ``texts`` of one place describe. Raises ``OptionError`` for an invalid one."""
    return tuple(_parse_override(text, origin) for text in texts)


def _parse_override(text: str, origin: str) -> Override:
    head, equals, value = (part.strip() for part in text.rpartition("="))
    model, colon, name = (part.strip() for part in head.rpartition(":"))
    if not equals and text.rpartition(":")[2].strip() in DEFAULTS:
        raise OptionError(f"limit {text!r}", "no value behind it", SYNTAX_HINT)
    if name not in DEFAULTS or not equals:
        raise OptionError(f"limit {text!r}", f"known: {', '.join(DEFAULTS)}", SYNTAX_HINT)
    if colon and not model:
        raise OptionError(f"limit {text!r}", "no model before the colon", SYNTAX_HINT)
    source = f"given {ORIGINS[origin]}" + f" for {model}" * bool(model)
    if value == REPORTED and name in JUDGED_OR_REPORTED:
        return Override(name, Limit(None, None, f"{source}: reported, not judged"), model, origin)
    try:
        low, high = _parse_interval(value, DEFAULTS[name])
    except ValueError as error:
        lifted = f", or {REPORTED}" * (name in JUDGED_OR_REPORTED)
        raise OptionError(f"limit {text!r}", f"{value!r} is no number{lifted}", f"default: {DEFAULTS[name]}") from error
    return Override(name, replace(chosen_limit(name, low, high), source=source), model, origin)


def _parse_interval(value: str, default: Limit) -> tuple[float | None, float | None]:
    """Return the two ends of ``low..high``; a single number is the end that ``default`` has, the high one if both."""
    low, dots, high = value.partition("..")
    if dots:
        return (float(low) if low.strip() else None, float(high) if high.strip() else None)
    return (float(value), None) if default.high is None else (None, float(value))


def winning_overrides(overrides: Sequence[Override], model: str, candidate: str | None = None) -> dict[str, Override]:
    """Return the winning entry of each limit that is overridden, by its name, for a model or for a candidate of it."""
    places, chosen = list(ORIGINS), {}
    best: dict[str, tuple[int, ...]] = {}
    for number, override in enumerate(overrides):
        rank = override.rank(model, candidate)
        if rank is None:
            continue
        key = (-places.index(override.origin), *rank, number)
        if override.name not in best or key > best[override.name]:
            best[override.name], chosen[override.name] = key, override
    return chosen


def unused_overrides(
    overrides: Sequence[Override], model_specs: Sequence[str], candidates: Sequence[str]
) -> tuple[Override, ...]:
    """Return the entries that match no model and no candidate of a run; nothing if the run has no model."""
    pairs = [(model, candidate) for model in model_specs for candidate in (None, *candidates)]
    return tuple(entry for entry in overrides if pairs and all(entry.rank(*pair) is None for pair in pairs))


def check_all_used(overrides: Sequence[Override], model_specs: Sequence[str], candidates: Sequence[str]) -> None:
    """Raise ``OptionError`` for an entry of the command line that matches no model of this run: it would limit nothing.

    Entries of the environment and the ini-file may be meant for other runs.
    """
    for entry in unused_overrides(overrides, model_specs, candidates):
        if entry.origin == "command line":
            whom = "model" if entry.name in SINGLE_MODEL_LIMITS or not candidates else "model or candidate"
            names = model_specs if entry.name in SINGLE_MODEL_LIMITS else (*model_specs, *candidates)
            found = f"no {whom} of this run is called so: {', '.join(dict.fromkeys(names))}"
            advice = "a name as it is typed, or a glob as '*awq*'; what is meant for other runs belongs in the ini-file"
            raise OptionError(f"limit {entry.text!r}", found, advice)


def _is_exact_name(name: str, spec: str) -> bool:
    """Return whether ``name`` is ``spec`` as typed, the name of its directory, an alias, or its hub id."""
    return name in _names(spec) or engines.canonical_name(name) == engines.canonical_name(spec)


def _matches_glob(glob: str, spec: str) -> bool:
    return any(fnmatchcase(name, glob) for name in _names(spec))


def _names(spec: str) -> tuple[str, ...]:
    """Return all names that a model may be called by."""
    meaning = engines.canonical_name(spec)
    known = published_index.find(meaning)
    return (spec, engines.name_of(spec), meaning, *(known.aliases if known else ()))
