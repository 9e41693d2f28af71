"""What one study is: how it measures, and how its record becomes a table, a picture and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.study.common.record import Measurement, Study
from swcheck.study.common.setup import Setup

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chapter:
    """One claim of the paper as a study.

    ``measure`` yields measurements of the model of a setup, ``total`` says how many steps of progress it takes;
    ``table`` gives rows of text, the head first; ``draw`` fills an empty matplotlib figure; ``judge`` gives the verdicts
    of what the study claims, none where it only reports. ``source`` names the figure or table of the paper.
    """

    name: str
    title: str
    source: str
    measure: Callable[[Setup], Iterator[Measurement]]
    table: Callable[[Study], Rows]
    draw: Callable[[Study, Any], None]
    judge: Callable[[Study], tuple[Verdict, ...]] = lambda _study: ()


def claim(
    study: Study, check: str, measured: float, limit: Limit, words: str, *, cause: str, unit: str = ""
) -> Verdict:
    """What a study claims, held against a limit: passed, or failed with ``cause``."""
    passed = limit.holds(measured)
    outcome = Outcome.PASSED if passed else Outcome.FAILED
    return Verdict(
        check, study.model, outcome, words, measured=measured, limit=limit, unit=unit, cause="" if passed else cause
    )
