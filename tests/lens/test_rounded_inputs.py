"""Inputs rounded as engines round activations."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swcheck.lens.replace import inputs_rounded, rounded_in_one_range


@given(st.integers(0, 20), st.integers(2, 8), st.floats(-5, 5))
def test_an_input_keeps_its_ends_and_differs_by_half_a_step(seed, bits, shift):
    """Whatever the bits: at most half a step off, at most 2^bits levels, and zeros stay zeros."""
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(seed)) + shift
    x[:, 0, 0] = 0
    found = rounded_in_one_range(x, bits)
    for one, rounded in zip(x, found, strict=True):
        step = (one.max().clamp_min(0) - one.min().clamp_max(0)) / (2**bits - 1)
        assert float((rounded - one).abs().max()) <= float(step) * 0.5001
        assert len((rounded / step).round().unique()) <= 2**bits
        assert not bool(rounded[0, 0].any())


def test_a_model_is_left_as_it_was():
    """Inside the block its inputs are rounded, behind it they are not."""
    model, x = nn.Linear(4, 3), torch.randn(1, 6, 4)
    plain = model(x)
    with inputs_rounded([model], 2):
        assert not torch.equal(model(x), plain)
    assert torch.equal(model(x), plain)
