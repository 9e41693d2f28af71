"""How a check ends: its verdict is reported, then returned, or raised where it is red."""

from __future__ import annotations

from dataclasses import replace

from swcheck.base.errors import RobustnessError
from swcheck.base.records import Verdict
from swcheck.gate.checks.pair import Pair
from swcheck.gate.verdict_message import verdict_message
from swcheck.superweights.subject.subject import Subject


def conclude_pair(pair: Pair, verdict: Verdict) -> Verdict:
    """As ``conclude`` for the candidate, with the notes on the reference as well."""
    __tracebackhide__ = True
    return conclude(_with_notes(verdict, pair.reference), pair.candidate)


def conclude(verdict: Verdict, *subjects: Subject) -> Verdict:
    """Report the verdict to its subjects and return it; raise ``RobustnessError`` where it is red.

    The tier and the notes of the subjects are added to its facts.
    """
    __tracebackhide__ = True
    if subjects and subjects[0].token_ids is None:
        verdict = replace(verdict, facts={**verdict.facts, "tier": subjects[0].tier.name})
    for subject in subjects:
        verdict = _with_notes(verdict, subject)
    for subject in subjects:
        subject.on_verdict(verdict)
    if verdict.red:
        raise RobustnessError(verdict_message(verdict), verdict)
    return verdict


def _with_notes(verdict: Verdict, subject: Subject) -> Verdict:
    notes = list(dict.fromkeys((*verdict.facts.get("notes", ()), *subject.notes)))
    return replace(verdict, facts={**verdict.facts, "notes": notes}) if notes else verdict
