"""Limits: defaults with their reasons, and what replaces them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.limits import (
    BY_SCHEME,
    DEFAULTS,
    FEW_PARAMETERS,
    MOST_GUESSED,
    TOP1_CONFIDENCE,
    chosen_limit,
    collapse_class,
    limits_for_kind,
    limits_for_scheme,
    scaled_to_confidence,
    scheme_class,
)
from swcheck.base.records import Limit, Scheme


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


@pytest.mark.parametrize(
    ("scheme", "parameters", "kind"),
    [
        (None, FEW_PARAMETERS, None),
        (Scheme("lora", 16), FEW_PARAMETERS, "fine-tuned or pruned"),
        (Scheme("absmax", 8), FEW_PARAMETERS, "8-bit weights"),
        (Scheme("absmax", 8, 8), FEW_PARAMETERS, "8-bit weights and activations"),
        (Scheme("fp8", 8), FEW_PARAMETERS, "8-bit weights and activations"),
        (Scheme("rtn", 4, 8), FEW_PARAMETERS, "4-bit weights and activations"),
        (Scheme("nvfp4", 4), FEW_PARAMETERS, "4-bit weights and activations"),
        (Scheme("gptq", 4, calibrated=True), FEW_PARAMETERS, "good 4-bit"),
        (Scheme("gptq", 4, calibrated=True), FEW_PARAMETERS - 1, "plain 4-bit"),
        (Scheme("rtn", 3.5), FEW_PARAMETERS, "plain 4-bit"),
        (Scheme("rtn", 3.4), FEW_PARAMETERS, "3-bit"),
        (Scheme("rtn", 2.5), FEW_PARAMETERS, "3-bit"),
        (Scheme("rtn", 2.4), FEW_PARAMETERS, "2-bit"),
    ],
)
def test_a_scheme_has_the_limits_of_its_bits(scheme, parameters, kind):
    """Bits, activations and calibration choose the row; its three limits are those of the table."""
    assert scheme_class(scheme, parameters) == kind
    limits = limits_for_scheme(scheme, parameters)
    found = (limits["perplexity"].high, limits["kl"].high, limits["top1"].low)
    usual = (DEFAULTS["perplexity"].high, DEFAULTS["kl"].high, DEFAULTS["top1"].low)
    assert found == (BY_SCHEME[kind] if kind else usual)


@pytest.mark.parametrize(("sure", "most"), [(True, None), (False, MOST_GUESSED)])
def test_a_kind_that_nobody_declared_excuses_less(sure, most):
    """A declared kind has its perplexity reported; a guessed one still fails above a ratio."""
    limits = limits_for_kind("pruned", sure=sure)
    assert (limits["perplexity"].high, limits["kl"].high, limits["top1"].low) == (most, None, None)


@pytest.mark.parametrize("confidence", [TOP1_CONFIDENCE, TOP1_CONFIDENCE + 0.1])
def test_a_confident_reference_scales_nothing(confidence):
    """From the confidence on that the limit was made for, it stays, its reason too."""
    limit = Limit(0.9, None, "as for a good one")
    assert scaled_to_confidence(limit, confidence) == limit
