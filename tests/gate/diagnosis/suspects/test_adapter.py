"""A merged adapter is told from rounding, training and edits by the rank of the difference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck import RobustnessError, assert_perplexity_within
from swcheck.gate.diagnosis.suspects.adapter import rank_of_difference
from swcheck.testing.candidates import candidate


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MATRIX = random(96, 64)


@given(st.integers(1, 16), st.floats(0.02, 2), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_the_rank_of_an_adapter_is_read_back(rank, size, dtype):
    """Every rank up to a quarter of the width is told to the number in floats of four bytes, and never as another."""
    product = random(96, rank, seed=1) @ random(rank, 64, seed=2)
    merged = (MATRIX + size * MATRIX.norm() / product.norm() * product).to(dtype)
    assert rank_of_difference(merged, MATRIX) in ({rank} if dtype is torch.float32 else {rank, 0})


def test_the_rank_is_told_where_one_part_is_far_larger_than_the_others():
    """Training moves an adapter in one direction mostly; the last of its parts is a five-hundredth of the first."""
    parts = torch.tensor([9, 0.3, 0.05, 0.016])
    wide, thin = (torch.linalg.qr(random(rows, 4, seed=seed)).Q for rows, seed in ((96, 1), (64, 2)))
    assert rank_of_difference(MATRIX + wide * parts @ thin.T, MATRIX) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m,
        lambda m: m + 0.1 * random(96, 64, seed=3),
        lambda m: (m * 8).round() / 8,
        lambda m: m * (torch.arange(96) != 5)[:, None],
        lambda m: m.index_put((torch.tensor(3), torch.tensor(4)), torch.tensor(50.0)),
        lambda m: m.bfloat16(),
        lambda m: m[:, :32],
    ],
)
def test_no_other_change_is_an_adapter(change):
    """Noise, rounding, a lost row, one value, another dtype and another shape have no low rank over the whole matrix."""
    assert rank_of_difference(change(MATRIX), MATRIX) == 0


@pytest.mark.slow
def test_half_of_an_adapter_that_was_merged_again_is_tried(tiny):
    """An adapter merged several times is named with its rank, and proven; the reference's own training is no adapter."""
    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(candidate("adapter merged again", tiny), tiny, ratio=1.05)
    verdict = caught.value.verdict
    assert verdict.cause_kind == "adapter"
    assert "15 linear maps differ by a matrix of rank 4" in verdict.cause
    assert "merge the adapter once" in verdict.attempt
