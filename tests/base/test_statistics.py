"""The arithmetic of verdicts, against sums that are done by hand or again in plain Python."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base import statistics as ours
from swcheck.base.records import Limit

NATS = st.lists(st.floats(0, 20), min_size=1, max_size=6)


def nats(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_a_rise_is_capped_at_guessing():
    """From 1 nat to 3 is a rise of 2, but a vocabulary of 8 gives ln 8 to a guesser."""
    assert ours.capped_collapse(nats(1.0, 1.0), nats(3.0, 3.0), 1000) == 2.0
    assert ours.capped_collapse(nats(1.0, 1.0), nats(3.0, 3.0), 8) == math.log(8) - 1
    assert ours.capped_collapse(nats(1.0, 3.0), nats(2.0, 3.0), 1000) == 0.5


def test_a_model_no_better_than_guessing_cannot_rise():
    """The cap is then 0, not negative; a fall stays a fall."""
    assert ours.capped_collapse(nats(5.0), nats(9.0), 8) == 0.0
    assert ours.capped_collapse(nats(5.0), nats(4.0), 1000) == -1.0


@pytest.mark.parametrize("ablated", [math.nan, math.inf])
def test_a_rise_that_is_no_number_counts_as_the_cap(ablated):
    """Where the loss is not finite the model guesses."""
    assert ours.capped_collapse(nats(1.0), nats(ablated), 8) == math.log(8) - 1


def test_a_share_of_a_collapse_is_never_negative():
    """Half of the reference's rise is a half; where zeroing even helps it is none."""
    theirs = nats(1.0, 1.0), nats(3.0, 3.0)
    assert ours.collapse_share((nats(2.0), nats(3.0)), theirs, 1000) == 0.5
    assert ours.collapse_share(theirs, theirs, 1000) == 1.0
    assert ours.collapse_share((nats(5.0), nats(4.0)), theirs, 1000) == 0.0


def test_the_ratio_of_a_collapse_is_not_capped():
    """Two nats more is e squared, 699 nats are still a number, 700 are infinite."""
    assert ours.collapse_ratio(nats(1.0), nats(3.0)) == math.exp(2.0)
    assert ours.collapse_ratio(nats(3.0), nats(1.0)) == math.exp(-2.0)
    assert math.isfinite(ours.collapse_ratio(nats(0.0), nats(699.0)))
    assert ours.collapse_ratio(nats(0.0), nats(700.0)) == math.inf
    assert math.isinf(ours.collapse_ratio(nats(1.0), nats(math.nan)))


@given(values=NATS)
def test_perplexity_is_the_exponential_of_the_mean(values):
    """As plain Python says."""
    assert ours.perplexity_of(nats(*values)) == pytest.approx(math.exp(statistics.fmean(values)), rel=1e-12)


def test_perplexity_of_what_is_no_loss():
    """NaN stays NaN, so that no limit holds; an endless loss is a finite number that none holds either."""
    assert math.isnan(ours.perplexity_of(nats(1.0, math.nan)))
    assert ours.perplexity_of(nats(math.inf)) == math.exp(700)


@given(vocabulary=st.integers(2, 50_000), tokens=st.integers(1, 9))
def test_uniform_losses_are_a_perplexity_of_the_vocabulary(vocabulary, tokens):
    """Whoever guesses among V tokens has a perplexity of V."""
    assert ours.perplexity_of(nats(*[math.log(vocabulary)] * tokens)) == pytest.approx(vocabulary, rel=1e-12)


def test_a_ratio_to_nothing_is_no_number():
    """Nothing holds NaN, so a check of it is red."""
    assert ours.ratio_of(3.0, 2.0) == 1.5
    assert ours.ratio_of(0.0, 2.0) == 0.0
    assert math.isnan(ours.ratio_of(3.0, 0.0))


def test_the_worst_ratio_is_outside_first_and_then_the_farthest():
    """Halved is as far as doubled; what the limit does not hold is worse than what is farther and held."""
    limit = Limit(0.75, 10.0, "")
    assert ours.worst_of([1.0, 5.0, 1.2], limit) == 1
    assert ours.worst_of([5.0, 0.7, 1.0], limit) == 1
    assert ours.worst_of([0.8, 1.1, 1.0], limit) == 0
    assert ours.worst_of([0.5, 0.4, 0.6], limit) == 1


@pytest.mark.parametrize("broken", [math.nan, math.inf, -2.0, 0.0])
def test_a_ratio_that_is_no_positive_number_is_the_worst(broken):
    """A sign that turned and a vanished value are farther than any factor."""
    assert ours.worst_of([1e-9, broken, 1e9], Limit(0.75, 2.0, "")) == 1


@given(rows=st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=2, max_size=5))
def test_the_standard_error_is_that_of_the_windows(rows):
    """The deviation of the means of windows over the root of their number."""
    means = [statistics.fmean(row) for row in rows]
    expected = statistics.stdev(means) / math.sqrt(len(means))
    assert ours.standard_error(torch.tensor(rows, dtype=torch.float64)) == pytest.approx(expected, abs=1e-12)


def test_the_standard_error_of_one_window_is_that_of_its_tokens():
    """One token says nothing about its spread."""
    assert ours.standard_error(nats(1.0, 2.0, 4.0)) == pytest.approx(statistics.stdev([1, 2, 4]) / math.sqrt(3))
    assert ours.standard_error(nats(1.0, 2.0)) == pytest.approx(0.5)
    assert ours.standard_error(nats(7.0)) == 0.0
    assert ours.standard_error(torch.tensor([[1.0], [3.0]])) == pytest.approx(1.0)


def test_near_is_within_the_slack_of_either_end():
    """An end that is not there is near to nothing."""
    both, none = Limit(1.0, 2.0, ""), Limit(None, None, "")
    assert [ours.is_near(both, value, 0.25) for value in (0.7, 0.75, 1.25, 1.3, 1.75, 2.25, 2.3)] == [
        False, True, True, False, True, True, False,
    ]  # fmt: skip
    assert ours.is_near(Limit(0.0, None, ""), 0.1, 0.1)
    assert not ours.is_near(none, 0.0, 9.0)


def test_near_is_within_three_standard_errors():
    """A number that is less than so many inside its limit is near: it may be beyond it on another text."""
    assert ours.STANDARD_ERRORS == 3


def test_near_for_ratios_is_a_distance_of_logarithms():
    """x2 and x0.5 are as far from x1; an end of zero is near to nothing."""
    limit, slack = Limit(1.0, None, ""), math.log(2) + 1e-12
    assert [ours.is_near_ratio(limit, ratio, slack) for ratio in (0.4, 0.5, 2.0, 2.1)] == [False, True, True, False]
    assert ours.is_near_ratio(Limit(None, 4.0, ""), 3.0, 0.5)
    assert ours.is_near_ratio(Limit(1.0, None, ""), 1.0, 0.0)
    assert not ours.is_near_ratio(limit, 0.0, slack)
    assert not ours.is_near_ratio(limit, -1.0, slack)
    assert not ours.is_near_ratio(Limit(0.0, None, ""), 1e-9, slack)


def test_percentiles_are_called_as_they_were_asked_for():
    """Between two values they are interpolated; min and max are the ends."""
    values = torch.tensor([[3.0, 1.0], [2.0, 5.0]])
    assert ours.percentiles(values, ["min", "25", "50", "max"]) == {"min": 1.0, "25": 1.75, "50": 2.5, "max": 5.0}
    assert ours.percentiles(values, []) == {}
