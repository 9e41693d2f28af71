"""Pruning super weights (table 1): zeroed, the other largest weights zeroed, and the super activation restored.

Beyond the paper's rows it measures what the paper leaves open: each weight zeroed alone; the activation restored at
every token that carried it, not only at the strongest; and two controls. In one, a constant replaces what the weights
write. In the other, whole rows or columns are zeroed.
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
from swcheck.study.common.chapter import Chapter, Rows, claim_verdict
from swcheck.study.common.plots import COLOURS, measured_tasks
from swcheck.study.common.record import INTACT, OTHERS, ZEROED, Measurement, Study
from swcheck.study.common.setup import ACCURACY, PERPLEXITY, RATIO, Setup
from swcheck.study.common.surgery import (
    PAPERS_SHARE,
    carrying_tokens,
    contributions_restored,
    mean_contributions,
    strongest_token,
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
"""How much zeroing the rows adds to the mean loss, as a share of the intact loss."""
CONTRIBUTION: Final = "contribution"
CARRYING: Final = "carrying tokens a window"

FAR_WORSE_LIMIT: Final = Limit(
    10.0, None, "the paper has x214 against x1.07 (Llama-7B, Wikitext-2); critical is from x10"
)
MORE_HELPS: Final = Limit(-1.0, None, "more of the activation cannot help less; a point for noise")
HARMLESS_LIMIT: Final = Limit(
    None, 1.05, "a constant keeps LLaMA2-7B at x1.00, OLMo-1B at x1.00 (Sun et al.; follow-ups)"
)


def measure(setup: Setup) -> Iterator[Measurement]:
    """Yield perplexity in every condition, and accuracy in the conditions of the paper."""
    model, weights = setup.model, setup.weights
    with_accuracy: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        INTACT: nullcontext,
        ZEROED: setup.super_weights_zeroed,
    }
    likelihood_only: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        ROWS: lambda: without_rows(model, weights),
        COLUMNS: lambda: without_columns(model, weights),
    }
    if any(setup.subject.anatomy.down_map(weight).is_routed for weight in weights):
        setup.note("a super weight of an expert is not put back token by token: experts are computed together")
    else:
        contributions = mean_contributions(model, weights, setup.ids)
        for contribution in contributions:
            yield Measurement(CONTRIBUTION, contribution.mean, layer=contribution.layer, channel=contribution.row)
            yield Measurement(CARRYING, contribution.tokens, layer=contribution.layer, channel=contribution.row)
        constants = {(contribution.layer, contribution.row): contribution.mean for contribution in contributions}
        with_accuracy |= {
            AT_STRONGEST: lambda: contributions_restored(model, weights, strongest_token),
            AT_CARRIERS: lambda: contributions_restored(model, weights, carrying_tokens),
        }
        likelihood_only = {
            CONSTANT: lambda: contributions_restored(model, weights, carrying_tokens, constants),
            **likelihood_only,
        }
    ratios: dict[str, float] = {}
    for condition in setup.steps([*with_accuracy, *likelihood_only], "condition"):
        with (with_accuracy | likelihood_only)[condition]():
            for measurement in setup.scores(condition) if condition in with_accuracy else setup.likelihood(condition):
                ratios |= {condition: measurement.value} if measurement.quantity == RATIO else {}
                yield measurement
    intact_loss = float(setup.intact().mean())
    yield Measurement(RISE, math.log(ratios[ROWS]) / intact_loss, ROWS)
    if ratios[ZEROED] >= CONTRIBUTING and ratios[COLUMNS] ** 2 < ratios[ZEROED]:  # less than half of the nats
        setup.note(
            f"the whole column removed costs {format_number(ratios[COLUMNS], 'x')}, the super weights alone "
            f"{format_number(ratios[ZEROED], 'x')}: what harms is what the neuron goes on to write into other channels"
        )
    yield from _each_zeroed_alone(setup)
    yield from _largest_others_zeroed(setup)


def _each_zeroed_alone(setup: Setup) -> Iterator[Measurement]:
    """Yield the perplexity with each weight of a set zeroed on its own."""
    for weight in setup.steps(setup.weights if len(setup.weights) > 1 else (), "alone"):
        with zeroed(setup.model, [weight]):
            yield from setup.likelihood(zeroed_alone(weight))


def zeroed_alone(weight: SuperWeight) -> str:
    """Return the name of the condition in which one weight is zeroed on its own."""
    return f"{replace(weight, value=None)} zeroed alone"


def _largest_others_zeroed(setup: Setup) -> Iterator[Measurement]:
    """Yield the scores with the largest weights of every matrix zeroed, even those larger than a super weight.

    The super weights stay. The paper's share is measured without ``x``, the larger share of this package's null with
    it.
    """
    for share, x in setup.steps(((PAPERS_SHARE, None), (LARGEST_SHARE, LARGEST_SHARE)), "share of every matrix"):
        try:
            with without_largest(setup.model, setup.weights, share) as count:
                yield Measurement(REMOVED, count, OTHERS, x)
                yield from setup.scores(OTHERS) if x is None else setup.likelihood(OTHERS, x=x)
        except OptionError as error:
            setup.note(f"the {OTHERS}: left out, {error.found}")
            return


def recovered_percent(study: Study, condition: str) -> float:
    """Return the percentage of the lost nats that returns; NaN unless the loss is positive and finite."""
    lost = math.log(study.value(RATIO, ZEROED))
    remaining = math.log(study.value(RATIO, condition))
    return 100 * (1 - remaining / lost) if 0 < lost < math.inf else math.nan


def mean_accuracy(study: Study, condition: str) -> float:
    """Return the mean accuracy over tasks, each counting once; NaN if none was measured."""
    values = [measurement.value for measurement in study.select(ACCURACY, condition)]
    return math.fsum(values) / len(values) if values else math.nan


def row_label(study: Study, ratio: Measurement) -> str:
    """Return the label of a row: its condition, and for a share of the weights how many were zeroed."""
    if ratio.condition != OTHERS:
        return ratio.condition
    share = "one in a million" if ratio.x is None else f"{100 * ratio.x:g} %"
    return f"{int(study.value(REMOVED, OTHERS, x=ratio.x)):,} {ratio.condition} ({share} of every matrix)"


def ordered_ratios(study: Study) -> tuple[Measurement, ...]:
    """Return the perplexity ratios in the order of ``ROW_ORDER``; conditions that are not in it come second."""
    return tuple(sorted(study.select(RATIO), key=lambda ratio: ROW_ORDER.get(ratio.condition, 1)))


ROW_ORDER: Final = {INTACT: 0, OTHERS: 2, AT_STRONGEST: 3, AT_CARRIERS: 4, CONSTANT: 5, ROWS: 6, COLUMNS: 7}
RESTORED_CONDITIONS: Final = (AT_STRONGEST, AT_CARRIERS, CONSTANT)
"""The conditions in which something is restored, so that a share of the loss can return."""


def table(study: Study) -> Rows:
    """Return one row per condition: perplexity, its ratio, the share of the loss that returned, accuracy by task."""
    tasks = measured_tasks(study)
    lines = [["", "perplexity", "times", "recovered", *tasks]]
    for ratio in ordered_ratios(study):
        share = recovered_percent(study, ratio.condition) if ratio.condition in RESTORED_CONDITIONS else math.nan
        perplexity = study.value(PERPLEXITY, ratio.condition, x=ratio.x)
        accuracies = [study.select(ACCURACY, ratio.condition, x=ratio.x, task=task) for task in tasks]
        lines.append(
            [
                row_label(study, ratio),
                format_number(perplexity),
                format_number(ratio.value, "x"),
                f"{share:.1f} %" if math.isfinite(share) else "",
                *(f"{found[0].value:.3f}" if found else "" for found in accuracies),
            ]
        )
    return lines


def draw(study: Study, figure: Any) -> None:
    """Draw bars of perplexity in every condition on a logarithmic axis, and of accuracy if it was measured."""
    tasks, ratios = measured_tasks(study), ordered_ratios(study)
    ratio_axes, *accuracy_panels = figure.subplots(
        1, 1 + bool(tasks), sharey=True, squeeze=False, width_ratios=[3, 2][: 1 + bool(tasks)]
    )[0]
    finite = [ratio.value for ratio in ratios if math.isfinite(ratio.value)]
    bar_end = max(10.0, *finite) * 1.5
    ratio_axes.set_xscale("log")
    ratio_axes.set_xlim(min(0.9, *finite), bar_end * 30)
    for place, ratio in enumerate(ratios):
        value = min(ratio.value, bar_end)
        ratio_axes.barh(place, value - 1, left=1.0, color=COLOURS[bar_colour(ratio.condition)])
        ratio_axes.text(max(1.0, value) * 1.15, place, format_number(ratio.value, "x"), va="center", fontsize=9)
    ratio_axes.axvline(1.0, color="0.4", linewidth=0.8)
    ratio_axes.set_yticks(range(len(ratios)), [wrapped_label(row_label(study, ratio)) for ratio in ratios], fontsize=8)
    ratio_axes.invert_yaxis()
    present = {bar_colour(ratio.condition) for ratio in ratios}
    figure.legend(
        [ratio_axes.barh(0, 0, color=COLOURS[number]) for number in BAR_WORDS if number in present],
        [words for number, words in BAR_WORDS.items() if number in present],
        fontsize=8,
        loc="outside lower left",
        ncols=len(BAR_WORDS),
    )
    ratio_axes.tick_params(axis="x", labelsize=8)
    ratio_axes.set_xlabel("perplexity, times the intact model's")
    ratio_axes.grid(visible=False, axis="y")
    height = 0.8 / max(1, len(tasks))
    for number, task in enumerate(tasks):
        bars = [
            (place, study.select(ACCURACY, ratio.condition, x=ratio.x, task=task)) for place, ratio in enumerate(ratios)
        ]
        bars_present = [(place, found[0]) for place, found in bars if found]
        accuracy_panels[0].barh(
            [place - 0.4 + height * (number + 0.5) for place, _ in bars_present],
            [ratio.value for _, ratio in bars_present],
            xerr=[ratio.error or 0.0 for _, ratio in bars_present],
            height=height,
            label=task,
            color=COLOURS[3 + number % (len(COLOURS) - 3)],
            ecolor="0.3",
        )
        for place, ratio in bars_present:
            text_x = ratio.value + (ratio.error or 0.0) + 0.02
            accuracy_panels[0].text(
                text_x, place - 0.4 + height * (number + 0.5), f"{ratio.value:.2f}", va="center", fontsize=7
            )
    if accuracy_panels:
        accuracy_panels[0].set_xlim(0, 1.12)
        accuracy_panels[0].set_xlabel("zero-shot accuracy")
        accuracy_panels[0].grid(visible=False, axis="y")
        accuracy_panels[0].legend(fontsize=8, loc="lower right")


BAR_WORDS: Final = {0: "other weights zeroed, or none", 1: "super weights zeroed", 2: "zeroed, activation restored"}
"""What the colour of a bar says."""


def bar_colour(condition: str) -> int:
    """Return the index of a bar's colour: restored, intact or other weights zeroed, anything else."""
    if condition in RESTORED_CONDITIONS:
        return 2
    return 0 if condition in {INTACT, OTHERS} else 1


def wrapped_label(text: str) -> str:
    """Return a label broken into lines that fit beside an axis."""
    return "\n".join(textwrap.wrap(text, 34))


def judge(study: Study) -> tuple[Verdict, ...]:
    """Judge the claims of table 1.

    Zeroing the super weights is far worse than zeroing the largest others; restoring the activation at more tokens
    helps no less; a constant contribution does as well.
    """
    zeroed_ratio = study.value(RATIO, ZEROED)
    verdicts = [_far_worse_verdict(study, zeroed_ratio)] if study.has(REMOVED) else []
    is_restored = bool(study.select(RATIO, AT_STRONGEST))
    if not zeroed_ratio >= CONTRIBUTING or not is_restored:
        words = f"zeroed together they cost {format_number(zeroed_ratio, 'x')}: there is nothing to put back"
        if not is_restored:
            words = "a super weight stands in an expert, where nothing is put back token by token"
        checks = ("paper: activation put back", "paper: constant")
        return (*verdicts, *(Verdict(check, study.model, Outcome.NOT_APPLICABLE, words) for check in checks))
    return (*verdicts, _restored_verdict(study), _constant_verdict(study))


def _far_worse_verdict(study: Study, zeroed_ratio: float) -> Verdict:
    worst = max(study.select(RATIO, OTHERS), key=lambda ratio: math.inf if math.isnan(ratio.value) else ratio.value)
    measured = zeroed_ratio / worst.value if math.isfinite(worst.value) else math.nan
    removed = int(study.value(REMOVED, OTHERS, x=worst.x))
    words = (
        f"zeroed: {format_number(zeroed_ratio, 'x')}, {collapse_class(zeroed_ratio)}; the {removed:,} largest others: "
        f"{format_number(worst.value, 'x')}"
    )
    cause = f"{len(study.facts.get('super_weights', ()))} super weights matter no more than large weights do: {words}"
    return claim_verdict(study, "paper: prune", measured, FAR_WORSE_LIMIT, words, cause=cause, unit="x")


def _restored_verdict(study: Study) -> Verdict:
    one, every = recovered_percent(study, AT_STRONGEST), recovered_percent(study, AT_CARRIERS)
    words = f"put back at the strongest token, {one:.1f} % of the lost nats return, at every carrying one {every:.1f} %"
    before, after, best = (mean_accuracy(study, condition) for condition in (ZEROED, AT_STRONGEST, INTACT))
    if best > before:
        words += f"; {100 * (after - before) / (best - before):.0f} % of the lost accuracy (the paper: 42 %)"
    if math.isinf(study.value(RATIO, ZEROED)):
        words = "put back: the loss without the weights is infinite, and no share of it can be told"
        return Verdict("paper: activation put back", study.model, Outcome.NOT_APPLICABLE, words)
    return claim_verdict(
        study, "paper: activation put back", every - one, MORE_HELPS, words, cause=f"less returns: {words}", unit="%"
    )


def _constant_verdict(study: Study) -> Verdict:
    ratio = study.value(RATIO, CONSTANT)
    words = f"a constant in place of the contribution: perplexity {format_number(ratio, 'x')}"
    cause = f"the model needs more than a constant: {words}"
    return claim_verdict(study, "paper: constant", ratio, HARMLESS_LIMIT, words, cause=cause, unit="x")


CHAPTER: Final = Chapter("prune", "Pruning the super weights", "table 1", measure, table, draw, judge)
