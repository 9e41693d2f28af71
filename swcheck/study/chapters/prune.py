"""Pruning super weights (table 1): zeroed, the other largest weights zeroed, and the super activation put back.

The paper's rows, and what it left open: each weight alone, the activation at every token that carried it and not only at
the strongest, and the two controls: a constant in the place of what the weights write, and whole rows or columns gone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Final

from swcheck.base.errors import OptionError
from swcheck.base.formatting import format_number
from swcheck.base.limits import CONTRIBUTING, collapse_class
from swcheck.base.records import Limit, Outcome, SuperWeight, Verdict
from swcheck.lens.intervene import zeroed
from swcheck.lens.nulls import LARGEST_SHARE, without_largest
from swcheck.study.common.chapter import Chapter, Rows, claim
from swcheck.study.common.plots import COLOURS, by_task
from swcheck.study.common.record import INTACT, OTHERS, ZEROED, Measurement, Study
from swcheck.study.common.setup import ACCURACY, PERPLEXITY, RATIO, Setup
from swcheck.study.common.surgery import (
    PAPERS_SHARE,
    calibrated,
    carriers,
    put_back,
    strongest,
    without_columns,
    without_rows,
)

AT_STRONGEST: Final = f"{ZEROED}, super activation restored"
AT_CARRIERS: Final = f"{AT_STRONGEST} at every carrying token"
CONSTANT: Final = f"{ZEROED}, mean contribution restored"
ROWS: Final = "row zeroed"
COLUMNS: Final = "column zeroed"

REMOVED: Final = "weights zeroed"
RISE: Final = "rise of the loss"
CONTRIBUTION: Final = "contribution"
CARRYING: Final = "carrying tokens a window"

FAR: Final = Limit(10.0, None, "the paper has x214 against x1.07 (Llama-7B, Wikitext-2); critical is from x10")
NO_LESS: Final = Limit(-1.0, None, "more of the activation cannot help less; a point for noise")
HARMLESS: Final = Limit(None, 1.05, "a constant keeps LLaMA2-7B at x1.00, OLMo-1B at x1.00 (Sun et al.; follow-ups)")


def measure(setup: Setup) -> Iterator[Measurement]:
    """Perplexity in every condition, accuracy where the paper has it."""
    model, weights = setup.model, setup.weights
    carried = calibrated(model, weights, setup.ids)
    for one in carried:
        yield Measurement(CONTRIBUTION, one.mean, layer=one.layer, channel=one.row)
        yield Measurement(CARRYING, one.tokens, layer=one.layer, channel=one.row)
    constants = {(one.layer, one.row): one.mean for one in carried}
    scored: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        INTACT: nullcontext,
        ZEROED: setup.without,
        AT_STRONGEST: lambda: put_back(model, weights, strongest),
        AT_CARRIERS: lambda: put_back(model, weights, carriers),
    }
    others: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        CONSTANT: lambda: put_back(model, weights, carriers, constants),
        ROWS: lambda: without_rows(model, weights),
        COLUMNS: lambda: without_columns(model, weights),
    }
    ratios: dict[str, float] = {}
    for condition in setup.steps([*scored, *others], "condition"):
        with (scored | others)[condition]():
            for taken in setup.scores(condition) if condition in scored else setup.likelihood(condition):
                ratios |= {condition: taken.value} if taken.quantity == RATIO else {}
                yield taken
    intact = float(setup.intact().mean())
    yield Measurement(RISE, math.log(ratios[ROWS]) / intact, ROWS)
    if ratios[COLUMNS] ** 2 < ratios[ZEROED]:
        setup.note(
            f"the whole column removed costs {format_number(ratios[COLUMNS], 'x')}, the super weights alone "
            f"{format_number(ratios[ZEROED], 'x')}: what harms is what the neuron goes on to write into other channels"
        )
    yield from _alone(setup)
    yield from _others(setup)


def _alone(setup: Setup) -> Iterator[Measurement]:
    """Each weight of a set zeroed on its own."""
    for weight in setup.steps(setup.weights if len(setup.weights) > 1 else (), "alone"):
        with zeroed(setup.model, [weight]):
            yield from setup.likelihood(alone(weight))


def alone(weight: SuperWeight) -> str:
    """The condition of one weight zeroed on its own."""
    return f"{replace(weight, value=None)} zeroed alone"


def _others(setup: Setup) -> Iterator[Measurement]:
    """The largest weights of every matrix zeroed, those larger than a super weight included, the super weights kept.

    The paper's share comes without ``x``, the larger one of this package's null with it.
    """
    for share, x in setup.steps(((PAPERS_SHARE, None), (LARGEST_SHARE, LARGEST_SHARE)), "share of every matrix"):
        try:
            with without_largest(setup.model, setup.weights, share) as count:
                yield Measurement(REMOVED, count, OTHERS, x)
                yield from setup.scores(OTHERS) if x is None else setup.likelihood(OTHERS, x=x)
        except OptionError as error:
            setup.note(f"the {OTHERS}: left out, {error.found}")
            return


def recovered(study: Study, condition: str) -> float:
    """The share of the lost nats that return, in percent; NaN where nothing finite was lost."""
    lost = math.log(study.value(RATIO, ZEROED))
    still = math.log(study.value(RATIO, condition))
    return 100 * (1 - still / lost) if 0 < lost < math.inf else math.nan


def average(study: Study, condition: str) -> float:
    """The mean accuracy over tasks, each counting once; NaN where none was measured."""
    found = [one.value for one in study.select(ACCURACY, condition)]
    return math.fsum(found) / len(found) if found else math.nan


def label(study: Study, one: Measurement) -> str:
    """A row's name: the condition, and how many weights went where it is a share."""
    if one.condition != OTHERS:
        return one.condition
    share = "one in a million" if one.x is None else f"{100 * one.x:g} %"
    return f"{int(study.value(REMOVED, OTHERS, x=one.x)):,} {one.condition} ({share} of every matrix)"


def rows(study: Study) -> tuple[Measurement, ...]:
    """The perplexity ratios, those with what was put back last."""
    return tuple(sorted(study.select(RATIO), key=lambda one: ORDER.get(one.condition, 1)))


ORDER: Final = {INTACT: 0, OTHERS: 2, AT_STRONGEST: 3, AT_CARRIERS: 4, CONSTANT: 5, ROWS: 6, COLUMNS: 7}
GIVEN_BACK: Final = (AT_STRONGEST, AT_CARRIERS, CONSTANT)


def table(study: Study) -> Rows:
    """One row per condition: perplexity, its ratio, the share of the loss that returned, accuracy by task."""
    tasks = by_task(study)
    lines = [["", "perplexity", "times", "recovered", *tasks]]
    for one in rows(study):
        share = recovered(study, one.condition) if one.condition in GIVEN_BACK else math.nan
        perplexity = study.value(PERPLEXITY, one.condition, x=one.x)
        marks = [study.select(ACCURACY, one.condition, x=one.x, task=task) for task in tasks]
        lines.append(
            [
                label(study, one),
                format_number(perplexity),
                format_number(one.value, "x"),
                f"{share:.1f} %" if math.isfinite(share) else "",
                *(f"{mark[0].value:.3f}" if mark else "" for mark in marks),
            ]
        )
    return lines


def draw(study: Study, figure: Any) -> None:
    """Bars: perplexity in every condition on a logarithmic axis; accuracy beside it where it was measured."""
    tasks, points = by_task(study), rows(study)
    left, *rest = figure.subplots(
        1, 1 + bool(tasks), sharey=True, squeeze=False, width_ratios=[3, 2][: 1 + bool(tasks)]
    )[0]
    finite = [one.value for one in points if math.isfinite(one.value)]
    end = max(10.0, *finite) * 1.5
    left.set_xscale("log")
    left.set_xlim(min(0.9, *finite), end * 30)
    for place, one in enumerate(points):
        value = min(one.value, end)
        left.barh(place, value - 1, left=1.0, color=COLOURS[shade(one.condition)])
        left.text(max(1.0, value) * 1.15, place, format_number(one.value, "x"), va="center", fontsize=9)
    left.axvline(1.0, color="0.4", linewidth=0.8)
    left.set_yticks(range(len(points)), [wrapped(label(study, one)) for one in points], fontsize=8)
    left.invert_yaxis()
    left.set_xlabel("perplexity, times the intact model's")
    left.grid(visible=False, axis="y")
    height = 0.8 / max(1, len(tasks))
    for number_of, task in enumerate(tasks):
        bars = [(place, study.select(ACCURACY, one.condition, x=one.x, task=task)) for place, one in enumerate(points)]
        shown = [(place, found[0]) for place, found in bars if found]
        rest[0].barh(
            [place - 0.4 + height * (number_of + 0.5) for place, _ in shown],
            [one.value for _, one in shown],
            xerr=[one.error or 0.0 for _, one in shown],
            height=height,
            label=task,
            color=COLOURS[3 + number_of % (len(COLOURS) - 3)],
            ecolor="0.3",
        )
        for place, one in shown:
            right = one.value + (one.error or 0.0) + 0.02
            rest[0].text(right, place - 0.4 + height * (number_of + 0.5), f"{one.value:.2f}", va="center", fontsize=7)
    if rest:
        rest[0].set_xlim(0, 1.12)
        rest[0].set_xlabel("zero-shot accuracy")
        rest[0].grid(visible=False, axis="y")
        rest[0].legend(fontsize=8, loc="lower right")


def shade(condition: str) -> int:
    """The colour of a bar: what is removed, what is put back, the others."""
    if condition in GIVEN_BACK:
        return 2
    return 0 if condition in {INTACT, OTHERS} else 1


def wrapped(text: str) -> str:
    """A label in lines that fit beside an axis."""
    return "\n".join(textwrap.wrap(text, 34))


def judge(study: Study) -> tuple[Verdict, ...]:
    """Zeroed is far worse than the largest others; more put back helps no less; a constant does as well."""
    zeroed_ratio = study.value(RATIO, ZEROED)
    verdicts = [_far(study, zeroed_ratio)] if study.has(REMOVED) else []
    if not zeroed_ratio >= CONTRIBUTING:
        words = f"zeroed together they cost {format_number(zeroed_ratio, 'x')}: there is nothing to put back"
        names = ("paper: activation put back", "paper: constant")
        return (*verdicts, *(Verdict(name, study.model, Outcome.NOT_APPLICABLE, words) for name in names))
    return (*verdicts, _put_back(study), _constant(study))


def _far(study: Study, zeroed_ratio: float) -> Verdict:
    worst = max(study.select(RATIO, OTHERS), key=lambda one: math.inf if math.isnan(one.value) else one.value)
    measured = zeroed_ratio / worst.value if math.isfinite(worst.value) else math.nan
    removed = int(study.value(REMOVED, OTHERS, x=worst.x))
    words = (
        f"zeroed: {format_number(zeroed_ratio, 'x')}, {collapse_class(zeroed_ratio)}; the {removed:,} largest others: "
        f"{format_number(worst.value, 'x')}"
    )
    cause = f"{len(study.facts.get('super_weights', ()))} super weights matter no more than large weights do: {words}"
    return claim(study, "paper: prune", measured, FAR, words, cause=cause, unit="x")


def _put_back(study: Study) -> Verdict:
    one, every = recovered(study, AT_STRONGEST), recovered(study, AT_CARRIERS)
    words = f"put back at the strongest token, {one:.1f} % of the lost nats return, at every carrying one {every:.1f} %"
    before, after, best = (average(study, condition) for condition in (ZEROED, AT_STRONGEST, INTACT))
    if best > before:
        words += f"; {100 * (after - before) / (best - before):.0f} % of the lost accuracy (the paper: 42 %)"
    if math.isinf(study.value(RATIO, ZEROED)):
        words = "put back: the loss without the weights is infinite, and no share of it can be told"
        return Verdict("paper: activation put back", study.model, Outcome.NOT_APPLICABLE, words)
    return claim(
        study, "paper: activation put back", every - one, NO_LESS, words, cause=f"less returns: {words}", unit="%"
    )


def _constant(study: Study) -> Verdict:
    ratio = study.value(RATIO, CONSTANT)
    words = f"a constant in place of the contribution: perplexity {format_number(ratio, 'x')}"
    cause = f"the model needs more than a constant: {words}"
    return claim(study, "paper: constant", ratio, HARMLESS, words, cause=cause, unit="x")


CHAPTER: Final = Chapter("prune", "Pruning the super weights", "table 1", measure, table, draw, judge)
