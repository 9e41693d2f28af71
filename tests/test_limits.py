"""Limits: defaults with their reasons, and what replaces them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.errors import OptionError
from swcheck.limits import DEFAULTS, interval, kind_of, with_overrides
from swcheck.records import Limit


def test_every_default_has_a_reason_and_admits_a_healthy_ratio():
    """No default limit refuses what is unchanged, and each says where it comes from."""
    for name, limit in DEFAULTS.items():
        assert limit.source
        unchanged = {"collapse": 20.0, "kl": 0.0}.get(name, 1.0)
        assert limit.holds(unchanged)


@pytest.mark.parametrize("limit", DEFAULTS.values(), ids=DEFAULTS)
def test_nan_is_never_within_a_limit(limit):
    """Comparisons are written so that NaN fails."""
    assert not limit.holds(math.nan)


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_an_interval_holds_its_ends_and_nothing_beyond(one, other):
    """A limit is closed on both sides."""
    low, high = sorted((one, other))
    limit = interval("contribution", low, high)

    assert limit.holds(low)
    assert limit.holds(high)
    assert not limit.holds(math.nextafter(high, math.inf))
    assert not limit.holds(math.nextafter(low, -math.inf))


@pytest.mark.parametrize(
    ("text", "name", "low", "high"),
    [
        ("perplexity=1.03", "perplexity", None, 1.03),
        ("activation=0.8..1.5", "activation", 0.8, 1.5),
        ("activation=0.8..", "activation", 0.8, 2.0),
        ("contribution=..3", "contribution", 0.75, 3.0),
        ("collapse=100", "collapse", 100.0, None),
        ("dependence = 0.25", "dependence", 0.25, None),
    ],
)
def test_an_override_replaces_one_limit(text, name, low, high):
    """A single number sets the side the default leaves to be set; an interval sets both."""
    limits = with_overrides([text])

    assert (limits[name].low, limits[name].high) == (low, high)
    assert {other: limits[other] for other in limits if other != name} == {
        other: DEFAULTS[other] for other in DEFAULTS if other != name
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed=3", "known: contribution, activation"),
        ("perplexity", "write it as perplexity=1.03"),
        ("perplexity=low", "'low' is no number"),
        ("perplexity=nan", "nothing finite is in"),
        ("activation=2..1", "nothing finite is in"),
    ],
)
def test_an_override_that_makes_no_sense_is_refused(text, words):
    """Unknown names, missing numbers and empty intervals are worded errors."""
    with pytest.raises(OptionError, match=words):
        with_overrides([text])


@pytest.mark.parametrize(
    ("ratio", "kind"), [(1.0, "inert"), (1.0999, "inert"), (1.1, "contributing"), (9.99, "contributing"), (10.0, "critical"), (math.inf, "critical")],
)  # fmt: skip
def test_a_set_is_called_by_its_collapse(ratio, kind):
    """Critical from x10, contributing from x1.1, inert below."""
    assert kind_of(ratio) == kind


def test_a_limit_says_its_interval():
    """Open sides are written as an inequality."""
    assert [str(limit) for limit in (Limit(1, None, ""), Limit(None, 2, ""), Limit(1, 2, ""), Limit(None, None, ""))] == [
        ">= 1", "<= 2", "1 .. 2", "-",
    ]  # fmt: skip
