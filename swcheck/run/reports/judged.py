"""Whether a run has judged what it names: a gate that checks nothing is green, so it has to say so."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from swcheck.base.records import Outcome
from swcheck.run.options import Option, repeat_arguments
from swcheck.run.settings import Settings

if TYPE_CHECKING:
    from swcheck.run.reports.margins import Reported

JUDGED: Final = frozenset({Outcome.PASSED, Outcome.NEAR, Outcome.FAILED, Outcome.INCONCLUSIVE})
"""The outcomes of a check that looked at its model; a check that was skipped or does not apply has judged nothing."""

PLACES: Final = {"ini": "ini-file", "pyproject": "pyproject.toml"}
"""How the places where an option is given are called, where not by their own name."""


def unjudged(settings: Settings, reported: Iterable[Reported]) -> str:
    """Return one sentence about the candidates of a run that no check has judged; empty if there is none.

    With ``--swcheck-require`` a run without a candidate has to judge its models, and a run that names nothing is told
    so.
    """
    judged = [verdict for _, verdict in reported if verdict.outcome in JUDGED]
    if settings.candidates:
        return _sentence(settings, "candidate", settings.candidates, [one.candidate for one in judged])
    if "candidate" in settings.origins:
        return f"a candidate is named ({_place(settings, 'candidate')}) without a model, and no check judged it"
    if settings.require and not settings.models:
        return "no model and no candidate is named, and no check ran"
    return _sentence(settings, "model", settings.models * settings.require, [one.model for one in judged])


def _sentence(settings: Settings, what: str, specs: Sequence[str], judged: Sequence[str | None]) -> str:
    missing = [spec for spec in specs if settings.name_of(spec) not in judged]
    if not missing:
        return ""
    words = f"{what}{'s' * (len(missing) > 1)} {', '.join(missing)} named ({_place(settings, what)})"
    return f"{words}, and no check judged {'it' if len(missing) == 1 else 'them'}"


def _place(settings: Settings, name: str) -> str:
    origin = settings.origins.get(name, "")
    return PLACES.get(origin, origin)


def gate_command(settings: Settings, taken: Sequence[Option] = ()) -> str:
    """Return the command line that judges what this run names, whatever paths its ini-file adds.

    ``taken`` are the options whose short alias belongs to another plugin.
    """
    if not settings.models:
        return "pytest --swcheck-model=REFERENCE --swcheck-candidate=CANDIDATE"
    words = [word for spec in settings.models for word in repeat_arguments(settings, spec, settings.candidates, taken)]
    return shlex.join(["pytest", *dict.fromkeys(words), "--pyargs", "swcheck.suite"])
