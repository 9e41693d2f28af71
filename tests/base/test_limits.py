"""Limits: defaults with their reasons, and what replaces them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.errors import OptionError
from swcheck.base.limits import (
    BY_PATTERN,
    BY_SCHEME,
    CONTRIBUTING,
    CRITICAL,
    DEFAULTS,
    FEW_PARAMETERS,
    GIVEN,
    MOST_GUESSED,
    NULL_DRAWS,
    TOP1_CONFIDENCE,
    chosen_limit,
    collapse_class,
    is_given,
    limits_for_kind,
    limits_for_scheme,
    scaled_to_confidence,
    scheme_class,
)
from swcheck.base.records import Limit, Scheme


def test_the_limits_are_those_that_were_derived():
    """Written a second time: a release gate must not become laxer by a slip of the hand in one place."""
    assert {name: (limit.low, limit.high) for name, limit in DEFAULTS.items()} == {
        "contribution": (0.75, 2), "activation": (0.75, 2), "perplexity": (None, 1.05), "kl": (None, 0.05), "top1": (0.9, None),
        "collapse": (10, None), "dependence": (0.5, None), "null": (None, 1.01), "others": (None, 1.3),
    }  # fmt: skip
    assert BY_SCHEME == {
        "8-bit weights": (1.01, 0.005, 0.97), "8-bit weights and activations": (1.03, 0.02, 0.95),
        "good 4-bit": (1.05, 0.05, 0.9), "plain 4-bit": (1.1, 0.08, 0.88), "4-bit weights and activations": (1.2, 0.15, 0.85),
        "3-bit": (1.25, 0.2, 0.8), "2-bit": (1.6, 0.45, 0.7), "fine-tuned or pruned": (None, None, None),
    }  # fmt: skip
    assert {pattern: ratio for pattern, (ratio, _) in BY_PATTERN.items()} == {"2:4": 2.2, "4:8": 1.7}
    assert (MOST_GUESSED, NULL_DRAWS, TOP1_CONFIDENCE, FEW_PARAMETERS) == (1.5, 3, 0.6, 3e9)
    assert (CRITICAL, CONTRIBUTING) == (10, 1.1)


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
        (Scheme("absmax", 8, 9), FEW_PARAMETERS, "8-bit weights"),
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


def test_the_source_of_a_scheme_is_told():
    """What the limits come from, for each class; what is not judged says so; 2 bits name their source."""
    assert limits_for_scheme(Scheme("rtn", 4))["kl"].source == "plain 4-bit: what published ones keep"
    assert limits_for_scheme(Scheme("lora", 16))["top1"].source == "fine-tuned or pruned: reported, not judged"
    assert "Llama-3-8B" in limits_for_scheme(Scheme("rtn", 2))["perplexity"].source
    assert limits_for_scheme(Scheme("rtn", 4))["null"] is DEFAULTS["null"]


def test_the_source_of_a_kind_is_told():
    """A declared kind is reported; of one that was taken by the weights the option that lifts the limit is named."""
    declared, guessed = limits_for_kind("finetuned"), limits_for_kind("finetuned", sure=False)
    assert declared["perplexity"] == Limit(None, None, "fine-tuned: reported, not judged")
    assert "nobody declared; --swcheck-kind=finetuned lifts it" in guessed["perplexity"].source
    assert "by its weights" in guessed["perplexity"].source
    assert "by its files" in limits_for_kind("merged", sure=False)["perplexity"].source
    assert limits_for_kind("distilled")["perplexity"].high == 1.5
    assert (guessed["activation"].low, guessed["activation"].high) == (0.5, 2.0)
    assert guessed["null"] is DEFAULTS["null"]


def test_the_scaled_limit_says_so_and_is_never_negative():
    """Errors of the top token grow with the doubt; the worst reference has a limit of 0."""
    scaled = scaled_to_confidence(Limit(0.9, None, "usual"), 0.2)
    assert (scaled.low, scaled.high) == (pytest.approx(0.8), None)
    assert scaled.source == "usual, scaled to a confidence of 0.20"
    assert scaled_to_confidence(Limit(0.1, None, "usual"), 0.0).low == 0.0
    lifted = Limit(None, None, "usual")
    assert scaled_to_confidence(lifted, 0.1) is lifted


def test_a_limit_is_the_default_where_nothing_else_is_asked():
    """Ends that are left out, or are the default's own, change nothing; one end alone leaves the other."""
    default = DEFAULTS["contribution"]
    assert chosen_limit("contribution") is default
    assert chosen_limit("contribution", 0.75, 2.0) is default
    assert chosen_limit("contribution", low=0.5) == Limit(0.5, 2.0, GIVEN)
    assert chosen_limit("contribution", high=1.5) == Limit(0.75, 1.5, GIVEN)
    assert chosen_limit("contribution", 1.0, 1.0) == Limit(1.0, 1.0, GIVEN)
    assert chosen_limit("perplexity", high=1.2) == Limit(None, 1.2, GIVEN)
    assert not is_given(default)
    assert is_given(chosen_limit("kl", high=0.1))


@pytest.mark.parametrize("ends", [(1.5, 1.0), (math.nan, None), (None, math.inf), (3.0, None)])
def test_an_interval_that_holds_nothing_is_refused(ends):
    """Turned round, not finite, or above the default's other end: told with the default."""
    with pytest.raises(OptionError, match="an interval that nothing finite is in") as caught:
        chosen_limit("contribution", *ends)
    assert "default: 0.75 .. 2" in str(caught.value)
