"""Limits: defaults with their reasons, and what replaces them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.limits import DEFAULTS, chosen_limit, collapse_class, scaled_to_confidence
from swcheck.base.records import Limit


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
    limit = chosen_limit("contribution", low, high)

    assert limit.holds(low)
    assert limit.holds(high)
    assert not limit.holds(math.nextafter(high, math.inf))
    assert not limit.holds(math.nextafter(low, -math.inf))


@pytest.mark.parametrize(
    ("ratio", "kind"), [(1.0, "inert"), (1.0999, "inert"), (1.1, "contributing"), (9.99, "contributing"), (10.0, "critical"), (math.inf, "critical")],
)  # fmt: skip
def test_a_set_is_called_by_its_collapse(ratio, kind):
    """Critical from x10, contributing from x1.1, inert below."""
    assert collapse_class(ratio) == kind


def test_a_limit_says_its_interval():
    """Open sides are written as an inequality."""
    assert [str(limit) for limit in (Limit(1, None, ""), Limit(None, 2, ""), Limit(1, 2, ""), Limit(None, None, ""))] == [
        ">= 1", "<= 2", "1 .. 2", "-",
    ]  # fmt: skip


def test_a_given_limit_is_not_scaled():
    """A default for the likeliest token gives way to an unsure reference, one that was asked for stands."""
    for source, low in (("as for a good one", 0.775), ("given in the ini-file", 0.9)):
        assert scaled_to_confidence(Limit(0.9, None, source), 0.1).low == pytest.approx(low)
