"""Table 1 on the embedded model: the rows of the paper, and the two controls."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from swcheck.base.records import Outcome
from swcheck.study.chapters import prune
from swcheck.study.common.record import INTACT, ZEROED
from swcheck.study.common.setup import ACCURACY, RATIO, setup_of
from swcheck.study.runner import measure_study


@pytest.fixture(scope="module")
def study(read_setup):
    return measure_study(read_setup, "prune")


def changed(study, condition, value):
    """The study with another perplexity ratio under one condition."""
    rows = [
        replace(one, value=value) if (one.quantity, one.condition) == (RATIO, condition) else one
        for one in study.measurements
    ]
    return replace(study, measurements=tuple(rows))


def by_check(study):
    return {verdict.check: verdict for verdict in prune.judge(study)}


def test_the_embedded_model_has_the_shape_of_table_1(study):
    """Zeroed it collapses, without more and larger others it does not, and its activation alone keeps it alive."""
    assert study.value(RATIO, ZEROED) > 1000
    assert study.value(prune.REMOVED, prune.OTHERS, x=None) == 35
    assert study.value(RATIO, prune.OTHERS, x=None) < 1.05
    assert study.value(RATIO, prune.OTHERS, x=1e-4) < 1.5
    assert prune.recovered_percent(study, prune.AT_STRONGEST) == pytest.approx(100, abs=0.1)
    assert prune.recovered_percent(study, prune.AT_CARRIERS) == pytest.approx(100, abs=0.1)
    assert [verdict.outcome for verdict in prune.judge(study)] == [Outcome.PASSED] * 3


def test_the_controls(study):
    """A constant does as well as the contribution; the row is as deadly as its one scalar, the column is not."""
    assert study.value(RATIO, prune.CONSTANT) == pytest.approx(1.0, abs=1e-3)
    assert study.value(RATIO, prune.ROWS) > 1000
    assert study.value(RATIO, prune.COLUMNS) < 2
    assert study.value(prune.CONTRIBUTION, layer=1, channel=97) == pytest.approx(395.1, rel=1e-2)
    assert study.value(prune.CARRYING, layer=1, channel=97) == 1
    assert study.value(prune.RISE, prune.ROWS) > 1
    assert any("other channels" in note for note in study.notes)


def test_accuracy_is_taken_where_the_paper_has_it(study):
    """Five conditions, every task each."""
    conditions = (INTACT, ZEROED, prune.AT_STRONGEST, prune.AT_CARRIERS, prune.OTHERS)

    assert study.conditions(ACCURACY) == conditions
    assert study.value(ACCURACY, ZEROED, task="cloze") == 0.25


@pytest.mark.parametrize(
    ("condition", "value", "check", "words"),
    [
        (ZEROED, 9.0, "paper: prune", "no more than large weights"),
        (prune.OTHERS, math.nan, "paper: prune", "no more than large weights"),
        (prune.AT_CARRIERS, 5.0, "paper: activation put back", "less returns"),
        (prune.CONSTANT, 1.52, "paper: constant", "more than a constant"),
        (prune.CONSTANT, math.nan, "paper: constant", "more than a constant"),
    ],
)
def test_a_claim_that_does_not_hold_is_red(study, condition, value, check, words):
    """Each claim fails on numbers against it, and says so."""
    verdict = by_check(changed(study, condition, value))[check]

    assert verdict.outcome is Outcome.FAILED
    assert words in verdict.cause


def test_one_share_without_a_number_is_red(study):
    """Where the larger share of the others gives no number, the smaller one does not stand in for it."""
    last = study.select(RATIO, prune.OTHERS)[-1]
    rows = tuple(replace(one, value=math.nan) if one is last else one for one in study.measurements)

    assert by_check(replace(study, measurements=rows))["paper: prune"].outcome is Outcome.FAILED


def test_where_nothing_is_lost_nothing_can_be_put_back(study):
    """An inert set is a counter-example to the first claim; the others do not apply."""
    verdicts = by_check(changed(study, ZEROED, 1.02))

    assert verdicts["paper: prune"].outcome is Outcome.FAILED
    assert verdicts["paper: constant"].outcome is Outcome.NOT_APPLICABLE
    assert verdicts["paper: activation put back"].outcome is Outcome.NOT_APPLICABLE


def test_an_infinite_collapse_is_said(study):
    """Of an infinite loss no share returns; the picture and the table are made all the same."""
    endless = changed(study, ZEROED, math.inf)

    assert by_check(endless)["paper: prune"].outcome is Outcome.PASSED
    assert by_check(endless)["paper: activation put back"].outcome is Outcome.NOT_APPLICABLE
    assert [row[3] for row in prune.table(endless)[1:]] == [""] * 9
    prune.draw(endless, Figure())


@pytest.mark.slow
def test_of_a_pair_each_alone_is_harmless(tiny_pair):
    """Of a set of two, each has its own row, named by its place; together they are deadly, given back they are not."""
    setup = setup_of(tiny_pair)
    study = measure_study(replace(setup, ids=setup.ids[:8, :128]), "prune")
    alone = [study.value(RATIO, prune.zeroed_alone(weight)) for weight in setup.weights]

    assert len(alone) == 2
    assert max(alone) < 1.1
    assert study.value(RATIO, ZEROED) > 1000
    assert [verdict.outcome for verdict in prune.judge(study)] == [Outcome.PASSED] * 3


@pytest.mark.parametrize("tasks", [True, False])
def test_the_picture_has_a_bar_for_every_row(study, tasks):
    """With accuracy there are two panels, without it one; the rows are named at the axis."""
    kept = study.measurements if tasks else tuple(one for one in study.measurements if one.quantity != ACCURACY)
    figure = Figure()
    prune.draw(replace(study, measurements=kept), figure)

    assert len(figure.axes) == (2 if tasks else 1)
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert figure.axes[0].get_xscale() == "log"
    assert len(figure.axes[0].get_yticklabels()) == 9
