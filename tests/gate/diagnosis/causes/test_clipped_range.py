"""A range that was clipped is told from rounding, and proven by the values that were cut off alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck import load
from swcheck.gate.diagnosis.causes.clipped_range import cut_off
from swcheck.quantizers.rounding import absmax, minmax
from tests.gated import first_red


def heavy_tailed(seed):
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(32, 128, generator=drawn) * (1 + 5 * (torch.rand(32, 128, generator=drawn) > 0.99))


@given(st.integers(0, 20), st.sampled_from([2, 3, 4, 8]), st.sampled_from([32, 128, None]), st.booleans())
def test_rounding_cuts_nothing_off(seed, bits, block, symmetric):
    """Whatever the bits and blocks: round-to-nearest keeps the ends of its range."""
    weight = heavy_tailed(seed)
    rounded = (absmax if symmetric else minmax)(weight, bits, block=block)
    assert float(cut_off(rounded, weight).float().mean()) < 0.002


@given(st.integers(0, 20), st.floats(2.5, 4))
def test_what_was_cut_off_is_found(seed, end):
    """Clipped floats: every value beyond the end by much is found, and none inside of it."""
    weight = heavy_tailed(seed)
    found = cut_off(weight.clamp(-end, end), weight)
    assert bool(found[weight.abs() > end].all())
    assert not bool(found[weight.abs() <= end].any())


@pytest.mark.slow
def test_a_clipped_quantization_is_named_as_such(tiny):
    """Four bits alone are green; clipped at three deviations they are red, and the range is the cause."""
    assert first_red(load("rtn:bits=4,block=128", reference="tiny", device="cpu"), tiny) is None
    verdict = first_red(load("rtn:bits=4,block=128,clip=3", reference="tiny", device="cpu"), tiny)
    assert verdict.cause == "a clipped range: the largest values of 35 linear maps are cut off"
    assert verdict.cause_kind == "clipping"
    assert verdict.detail[0][1].startswith("these values alone given back: perplexity x1.0")
