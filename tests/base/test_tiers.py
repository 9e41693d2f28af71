"""Tiers: how many windows of how many tokens, which one by default, and what is told of the cost before the work."""

from __future__ import annotations

import pytest

from swcheck.base.errors import OptionError
from swcheck.base.tiers import FULL, LARGE_MODEL_PARAMETERS, SMOKE, STANDARD, TIERS, default_tier, tier_named


@pytest.mark.parametrize(
    ("tier", "context", "shape"),
    [
        (STANDARD, None, (16, 512)),
        (STANDARD, 4096, (16, 512)),
        (STANDARD, 256, (32, 256)),
        (STANDARD, 300, (28, 300)),
        (SMOKE, 4096, (8, 512)),
        (SMOKE, 64, (64, 64)),
        (FULL, 131072, (32, 2048)),
        (FULL, 1024, (64, 1024)),
    ],
)
@pytest.mark.whole_text
def test_a_short_context_gets_more_windows(tier, context, shape):
    """The tokens of a tier stay what they are, whatever a model can take at once."""
    assert tier.shape(context) == shape


def test_names():
    """Three tiers go by their names, another one is refused with the three."""
    assert [tier_named(name) for name in TIERS] == [SMOKE, STANDARD, FULL]
    with pytest.raises(OptionError, match="known: smoke, standard, full"):
        tier_named("quick")


@pytest.mark.parametrize(
    ("parameters", "device", "tier"),
    [
        (LARGE_MODEL_PARAMETERS, "cpu", STANDARD),
        (LARGE_MODEL_PARAMETERS + 1, "cpu", SMOKE),
        (70 * LARGE_MODEL_PARAMETERS, "cuda", STANDARD),
        (0, "cpu", STANDARD),
    ],
)
def test_the_default(parameters, device, tier):
    """Above a billion parameters a CPU measures little unless it is told to."""
    assert default_tier(parameters, device) is tier
