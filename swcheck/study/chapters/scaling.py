"""Scaling the super weights (figure 6): all of them times alpha, from 0 to 3.

The paper plots accuracy; perplexity is shown beside it, because it reacts first. Real models are flat from alpha 0.5
up, and collapse below 0.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from swcheck.base.formatting import format_number
from swcheck.base.limits import collapse_class
from swcheck.base.records import Limit, Verdict
from swcheck.lens.intervene import scaled
from swcheck.study.common.chapter import Chapter, Rows, claim_verdict
from swcheck.study.common.plots import accuracy_axis, measured_tasks, ratio_axis
from swcheck.study.common.record import Measurement, Study
from swcheck.study.common.setup import ACCURACY, RATIO, Setup

ALPHAS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
SCALED: Final = "super weights scaled"
HARMLESS_ALPHAS: Final = (0.75, 2.0)
"""Between these alphas nothing may happen, by the claim."""
HARMLESS_LIMIT: Final = Limit(
    None, 1.05, "alpha 0.75 costs 3 % perplexity in OLMo-1B and Mistral-7B, alpha 2 at most 0.3 points"
)


def measure(setup: Setup) -> Iterator[Measurement]:
    """Yield perplexity and accuracy at every alpha."""
    for alpha in setup.steps(ALPHAS, "alpha"):
        with scaled(setup.model, setup.weights, alpha):
            yield from setup.scores(SCALED, x=alpha)


def table(study: Study) -> Rows:
    """Return one row per alpha: perplexity ratio, then accuracy by task."""
    tasks = measured_tasks(study)
    rows = [["alpha", "perplexity", *tasks]]
    for point in study.select(RATIO):
        error = "" if point.error is None or point.value >= 1000 else f" +- {point.error:.4f}"
        accuracies = [f"{study.value(ACCURACY, SCALED, x=point.x, task=task):.3f}" for task in tasks]
        rows.append([f"{point.x:g}", format_number(point.value, "x") + error, *accuracies])
    return rows


def draw(study: Study, figure: Any) -> None:
    """Draw perplexity over alpha, logarithmic; what the claim is about beside it, linear; accuracy if it was measured."""
    tasks = measured_tasks(study)
    ratio_axes, near_axes, *accuracy_panels = figure.subplots(1, 3 if tasks else 2)
    _draw_ratios(ratio_axes, study.select(RATIO))
    ratio_axis(ratio_axes, "super weights times alpha")
    inside = [point for point in study.select(RATIO) if HARMLESS_ALPHAS[0] <= (point.x or 0.0) <= HARMLESS_ALPHAS[1]]
    _draw_ratios(near_axes, inside)
    near_axes.axhline(1.0, color="0.6", linewidth=0.8, linestyle="--", marker="", label="intact")
    near_axes.ticklabel_format(axis="y", useOffset=False)
    near_axes.set_xlabel(f"alpha {HARMLESS_ALPHAS[0]:g} to {HARMLESS_ALPHAS[1]:g} (the claim)")
    near_axes.set_ylabel("the same, linear")
    near_axes.legend(fontsize=8, loc="lower right")
    for task in tasks:
        points = study.select(ACCURACY, SCALED, task=task)
        accuracy_panels[0].errorbar(
            [point.x for point in points], [point.value for point in points], yerr=[point.error or 0.0 for point in points],
            marker="o", capsize=3, label=task,
        )  # fmt: skip
    if accuracy_panels:
        accuracy_axis(accuracy_panels[0], "super weights times alpha", study)


def _draw_ratios(axes: Any, points: Sequence[Measurement]) -> None:
    axes.errorbar(
        [point.x for point in points],
        [point.value for point in points],
        yerr=[point.error or 0.0 for point in points],
        marker="o",
        capsize=3,
    )


def judge(study: Study) -> tuple[Verdict, ...]:
    """Judge the worst perplexity ratio between alpha 0.75 and 2, where scaling should do no harm."""
    inside = [
        point
        for point in study.select(RATIO)
        if point.x is not None and HARMLESS_ALPHAS[0] <= point.x <= HARMLESS_ALPHAS[1]
    ]
    worst = max(inside, key=lambda point: math.inf if math.isnan(point.value) else point.value)
    collapse = study.value(RATIO, SCALED, x=0.0)
    summary = (
        f"alpha {HARMLESS_ALPHAS[0]:g} to {HARMLESS_ALPHAS[1]:g}: perplexity at most x{worst.value:.4f} (at {worst.x:g}); "
        f"alpha 0: {format_number(collapse, 'x')}, {collapse_class(collapse)}"
    )
    cause = f"scaling by {worst.x:g} already costs {format_number(worst.value, 'x')}"
    return (claim_verdict(study, "paper: scaling", worst.value, HARMLESS_LIMIT, summary, cause=cause, unit="x"),)


CHAPTER: Final = Chapter("scaling", "Scaling the super weights", "figure 6", measure, table, draw, judge)
