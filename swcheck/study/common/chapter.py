"""The parts of one study: how it measures, and how its record becomes a table, a picture and verdicts."""

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

    ``measure`` yields the measurements of the model of a setup. ``table`` returns rows of text, the header first.
    ``draw`` fills an empty matplotlib figure. ``judge`` returns the verdicts on the study's claims; it is empty for a
    study that only reports. ``source`` names the figure or table of the paper.
    """

    name: str
    title: str
    source: str
    measure: Callable[[Setup], Iterator[Measurement]]
    table: Callable[[Study], Rows]
    draw: Callable[[Study, Any], None]
    judge: Callable[[Study], tuple[Verdict, ...]] = lambda _study: ()


def claim_verdict(
    study: Study, check: str, measured: float, limit: Limit, summary: str, *, cause: str, unit: str = ""
) -> Verdict:
    """Return the verdict of a claim: passed where ``limit`` holds ``measured``, else failed with ``cause``.

    ``unit`` is the unit of ``measured`` ("x" is a ratio). NaN fails.
    """
    passed = limit.holds(measured)
    outcome = Outcome.PASSED if passed else Outcome.FAILED
    return Verdict(
        check, study.model, outcome, summary, measured=measured, limit=limit, unit=unit, cause="" if passed else cause
    )
