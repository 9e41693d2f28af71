"""Scaling the super weights (figure 6): all of them times alpha, from 0 to 3.

The paper scales accuracy; perplexity is shown beside it, since it moves first. What real models do: flat from alpha 0.5
up, collapse below 0.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from swcheck.base.formatting import format_number
from swcheck.base.limits import collapse_class
from swcheck.base.records import Limit, Verdict
from swcheck.lens.intervene import scaled
from swcheck.study.common.chapter import Chapter, Rows, claim
from swcheck.study.common.plots import accuracy_axis, alone, by_task, ratio_axis
from swcheck.study.common.record import Measurement, Study
from swcheck.study.common.setup import ACCURACY, RATIO, Setup

ALPHAS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
SCALED: Final = "super weights scaled"
HARMLESS: Final = (0.75, 2.0)
FLAT: Final = Limit(None, 1.05, "alpha 0.75 costs 3 % perplexity in OLMo-1B and Mistral-7B, alpha 2 at most 0.3 points")


def measure(setup: Setup) -> Iterator[Measurement]:
    """Perplexity and accuracy at every alpha."""
    for alpha in setup.steps(ALPHAS, "alpha"):
        with scaled(setup.model, setup.weights, alpha):
            yield from setup.scores(SCALED, x=alpha)


def table(study: Study) -> Rows:
    """One row per alpha: perplexity ratio, then accuracy by task."""
    tasks = by_task(study)
    rows = [["alpha", "perplexity", *tasks]]
    for one in study.select(RATIO):
        spread = "" if one.error is None or one.value >= 1000 else f" +- {one.error:.4f}"
        marks = [f"{study.value(ACCURACY, SCALED, x=one.x, task=task):.3f}" for task in tasks]
        rows.append([f"{one.x:g}", format_number(one.value, "x") + spread, *marks])
    return rows


def draw(study: Study, figure: Any) -> None:
    """Perplexity over alpha on a logarithmic axis with its error bars; accuracy beside it where it was measured."""
    tasks = by_task(study)
    left, *rest = figure.subplots(1, 2) if tasks else [alone(figure)]
    points = study.select(RATIO)
    left.errorbar(
        [one.x for one in points],
        [one.value for one in points],
        yerr=[one.error or 0.0 for one in points],
        marker="o",
        capsize=3,
    )
    ratio_axis(left, "super weights times alpha")
    for task in tasks:
        points = study.select(ACCURACY, SCALED, task=task)
        rest[0].errorbar(
            [one.x for one in points], [one.value for one in points], yerr=[one.error or 0.0 for one in points],
            marker="o", capsize=3, label=task,
        )  # fmt: skip
    if rest:
        accuracy_axis(rest[0], "super weights times alpha", study)


def judge(study: Study) -> tuple[Verdict, ...]:
    """Between alpha 0.75 and 2 nothing happens: the worst of these is within its limit."""
    inside = [one for one in study.select(RATIO) if one.x is not None and HARMLESS[0] <= one.x <= HARMLESS[1]]
    worst = max(inside, key=lambda one: math.inf if math.isnan(one.value) else one.value)
    collapse = study.value(RATIO, SCALED, x=0.0)
    words = (
        f"alpha {HARMLESS[0]:g} to {HARMLESS[1]:g}: perplexity at most x{worst.value:.4f} (at {worst.x:g}); "
        f"alpha 0: {format_number(collapse, 'x')}, {collapse_class(collapse)}"
    )
    cause = f"scaling by {worst.x:g} already costs {format_number(worst.value, 'x')}"
    return (claim(study, "paper: scaling", worst.value, FLAT, words, cause=cause, unit="x"),)


CHAPTER: Final = Chapter("scaling", "Scaling the super weights", "figure 6", measure, table, draw, judge)
