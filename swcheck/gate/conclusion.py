"""Ends a check: reports its verdict, then returns it, or raises it if it is red."""

from __future__ import annotations

from dataclasses import replace

from swcheck.base.errors import RobustnessError
from swcheck.base.records import Verdict
from swcheck.gate.checks.pair import Pair
from swcheck.gate.verdict_message import verdict_message
from swcheck.superweights.subject.subject import Subject


def conclude_pair(pair: Pair, verdict: Verdict) -> Verdict:
    """Report the verdict on a pair to the candidate and return it, or raise ``RobustnessError`` if it is red.

    The notes of the reference are added to its facts as well.
    """
    __tracebackhide__ = True
    if pair.candidate.is_runtime:
        verdict = replace(verdict, facts={**verdict.facts, "runtime": pair.candidate.runtime_title})
    return conclude(_with_notes(verdict, pair.reference), pair.candidate)


def conclude(verdict: Verdict, *subjects: Subject) -> Verdict:
    """Report the verdict to its subjects and return it, or raise ``RobustnessError`` if it is red.

    The tier of the first subject, unless its tokens were given, and the notes of all subjects are added to its facts.
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
    runs_in = (f"{subject.name} is computed by {subject.runtime_title}",) if subject.is_runtime else ()
    notes = list(dict.fromkeys((*verdict.facts.get("notes", ()), *subject.notes, *runs_in)))
    return replace(verdict, facts={**verdict.facts, "notes": notes}) if notes else verdict
