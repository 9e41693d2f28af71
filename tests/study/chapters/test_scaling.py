"""Figure 6 on the embedded model: flat from alpha 0.75 to 2, collapse at 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from swcheck.base.errors import NotObservedError
from swcheck.base.records import Outcome
from swcheck.study.chapters import scaling
from swcheck.study.common.record import Measurement
from swcheck.study.common.setup import ACCURACY, RATIO
from swcheck.study.runner import measure_study


@pytest.fixture(scope="module")
def study(read_setup):
    return measure_study(read_setup, "scaling")


@pytest.mark.slow
def test_the_model_is_flat_around_one_and_collapses_at_zero(study):
    """The dose-response of the embedded model has the shape that is published for real ones."""
    assert study.value(RATIO, scaling.SCALED, x=1.0) == pytest.approx(1.0, abs=1e-9)
    assert study.value(RATIO, scaling.SCALED, x=0.0) > 1000
    assert scaling.judge(study)[0].outcome is Outcome.PASSED


@pytest.mark.slow
def test_every_alpha_has_its_error_and_every_task_its_accuracy(study):
    """Perplexity ratios come with a paired standard error, accuracies with the scorer's."""
    assert [one.x for one in study.select(RATIO)] == list(scaling.ALPHAS)
    assert all(one.error is not None and one.error >= 0 for one in study.select(RATIO))
    assert study.value(ACCURACY, scaling.SCALED, x=0.0, task="cloze") == 0.25
    assert len(study.select(ACCURACY)) == 2 * len(scaling.ALPHAS)


@pytest.mark.slow
def test_a_model_that_is_not_flat_is_red(study):
    """Where scaling by 1.5 already costs, the claim fails and says at which alpha."""
    worse = [replace(one, value=1.4) if one.quantity == RATIO and one.x == 1.5 else one for one in study.measurements]
    (verdict,) = scaling.judge(replace(study, measurements=tuple(worse)))

    assert verdict.outcome is Outcome.FAILED
    assert verdict.cause == "scaling by 1.5 already costs x1.400"


def test_a_number_that_is_none_is_red(study):
    """Not a number inside the harmless range is no pass."""
    broken = [replace(one, value=float("nan")) if one.x == 0.75 else one for one in study.measurements]

    assert scaling.judge(replace(study, measurements=tuple(broken)))[0].outcome is Outcome.FAILED


def test_the_table_has_a_row_for_every_alpha(study):
    """Alpha, perplexity and one column per task."""
    head, *rows = scaling.table(study)

    assert head == ["alpha", "perplexity", "cloze", "other"]
    assert len(rows) == len(scaling.ALPHAS)


@pytest.mark.parametrize("tasks", [True, False])
def test_the_picture_shows_units(study, tasks):
    """With accuracy there are three panels, without it two; each axis says what it is, and the claim has one of its own."""
    kept = study.measurements if tasks else tuple(one for one in study.measurements if one.quantity != ACCURACY)
    figure = Figure()
    scaling.draw(replace(study, measurements=kept), figure)

    assert len(figure.axes) == (3 if tasks else 2)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert [axes.get_yscale() for axes in figure.axes[:2]] == ["log", "linear"]
    assert figure.axes[1].get_legend() is not None


def test_without_a_scorer_accuracy_is_left_out_with_the_reason(tiny_setup):
    """The note says what is missing, and the perplexities are there all the same."""
    setup = replace(tiny_setup, scorer=None, why_unscored="lm-eval is not installed", notes=[])

    setup.prepare()

    assert list(setup.accuracies("intact")) == []
    assert setup.notes == ["zero-shot accuracy is left out: lm-eval is not installed"]
    assert all(isinstance(one, Measurement) for one in setup.scores("intact"))


def test_what_is_compared_with_has_to_be_taken_before(tiny_setup):
    """A setup that was not prepared refuses to compare: its model may be edited already."""
    setup = replace(tiny_setup, intact_nats={})

    with pytest.raises(NotObservedError, match="call prepare"):
        list(setup.likelihood("intact"))
