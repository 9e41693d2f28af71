"""What the rooms hand to each other: equality, order, sums and intervals."""

from __future__ import annotations

import inspect
import json
import math
import pickle
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base import records
from swcheck.base.records import Likelihood, Limit, Loaded, Outcome, SuperActivation, SuperWeight, Verdict
from swcheck.strategies import super_weights

FINITE = st.floats(allow_nan=False, allow_infinity=False)
CLASSES = [c for _, c in inspect.getmembers(records, is_dataclass) if c.__module__ == records.__name__]


@pytest.mark.parametrize("record", CLASSES, ids=lambda c: c.__name__)
def test_frozen(record):
    """No field of a record can be changed after it was made."""
    made = object.__new__(record)
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(record)[0].name, 1)


@given(super_weights(layers=3, rows=3, columns=3), super_weights(layers=3, rows=3, columns=3), FINITE)
def test_a_super_weight_is_its_place(one, other, value):
    """Equality, hash and order of super weights depend on layer, row and column, never on the value."""
    place, elsewhere = (one.layer, one.row, one.column), (other.layer, other.row, other.column)
    read = replace(one, value=value)
    assert read == one
    assert hash(read) == hash(one)
    assert (read == other) == (place == elsewhere)
    assert (read < other) == (place < elsewhere)


def test_words_of_a_super_weight():
    """A super weight is printed as its place, with its signed value where somebody has read it."""
    assert str(SuperWeight(2, 3968, 7003)) == "layer 2 [3968, 7003]"
    assert str(SuperWeight(2, 3968, 7003, -1.94312)) == "layer 2 [3968, 7003] = -1.943"


def test_json_of_a_super_weight():
    """What a super weight gives to JSON makes an equal one, value included."""
    weight = SuperWeight(1, 2, 3, 0.5)
    again = SuperWeight(**json.loads(json.dumps(weight.as_json())))
    assert (again, again.value) == (weight, 0.5)


def test_ratio_of_an_activation():
    """An activation's ratio is its magnitude over the median; over a median of zero it is infinite."""
    spike = SuperActivation(layer=1, channel=2, position=0, value=-30.0, median=0.5, last=4)
    assert spike.ratio == 60
    assert replace(spike, median=0.0).ratio == math.inf


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10**6)), min_size=1, max_size=8))
def test_likelihoods_add_before_they_divide(parts):
    """The mean of added likelihoods is all nats over all tokens, however unequal the parts are."""
    first, *rest = (Likelihood(nats, tokens) for nats, tokens in parts)
    total = sum(rest, start=first)
    assert total.tokens == sum(tokens for _, tokens in parts)
    assert total.mean == pytest.approx(math.fsum(nats for nats, _ in parts) / total.tokens)


@pytest.mark.parametrize(
    ("nats", "perplexity"), [(0.0, 1.0), (math.log(2) * 4, 2.0), (1e6, math.inf), (math.inf, math.inf)]
)
def test_perplexity(nats, perplexity):
    """Perplexity is exp(nats / tokens), and infinite where that overflows."""
    assert Likelihood(nats, 4).perplexity == pytest.approx(perplexity)


def test_perplexity_of_nan():
    """A likelihood that is NaN has a perplexity that is NaN."""
    assert math.isnan(Likelihood(math.nan, 4).perplexity)


def test_a_likelihood_of_nothing():
    """A likelihood of no token has no mean: asking for it is an error, not infinity or NaN."""
    with pytest.raises(ZeroDivisionError):
        _ = Likelihood(0.0, 0).perplexity


@given(st.none() | FINITE, st.none() | FINITE, st.floats())
def test_a_limit_is_a_closed_interval(low, high, measured):
    """A limit holds for the numbers between its ends, ends included; an end that is None excludes only NaN."""
    inside = not math.isnan(measured) and (low is None or low <= measured) and (high is None or measured <= high)
    assert Limit(low, high, "").holds(measured) == inside


@pytest.mark.parametrize("limit", [Limit(None, None, ""), Limit(0.5, None, ""), Limit(None, 2, ""), Limit(0.5, 2, "")])
def test_nan_never_holds(limit):
    """NaN lies inside no limit, not even one that is open on both sides."""
    assert not limit.holds(math.nan)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(None, None, "-"), (None, 1.05, "<= 1.05"), (10.0, None, ">= 10"), (0.75, 2.0, "0.75 .. 2")],
)
def test_words_of_a_limit(low, high, words):
    """A limit is printed with the ends it has."""
    assert str(Limit(low, high, "")) == words


@pytest.mark.parametrize("outcome", Outcome)
def test_red(outcome):
    """Failed and inconclusive verdicts are red, and no others."""
    assert Verdict("check", "model", outcome, "").red == (outcome in {Outcome.FAILED, Outcome.INCONCLUSIVE})


def test_verdicts_travel():
    """A verdict arrives whole in another process."""
    limit = Limit(0.75, 2.0, "given")
    verdict = Verdict("check", "model", Outcome.FAILED, "", measured=math.inf, limit=limit, facts={"a": [1]})
    assert pickle.loads(pickle.dumps(verdict)) == verdict


def test_loaded_needs_no_text():
    """What is loaded has a model, a tokenizer and a name; text and source may be left out."""
    loaded = Loaded(model=1, tokenizer=2, name="n")
    assert (loaded.text, loaded.source) == (None, "")


def test_a_verdict_is_printed_in_one_line():
    """What a script prints of a verdict says of whom it is, how it ended and why, without details and facts."""
    verdict = Verdict(
        "perplexity", "tiny", Outcome.FAILED, "x3.000 on 60 tokens", "w4", cause="clipped", facts={"a": 1}
    )
    assert str(verdict) == "perplexity of w4 against tiny: failed: clipped; x3.000 on 60 tokens"
    assert str(Verdict("null", "tiny", Outcome.PASSED, "x1.000")) == "null of tiny: passed: x1.000"
