"""Folded answers: as far apart as the answers are, however the difference is spread."""

from __future__ import annotations

import pytest
import torch

from swcheck.base.count_sketch import count_sketch, generator_fingerprint


def answers(seed=0, size=4096):
    return torch.randn(8, size // 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [16, 64, 256])
def test_a_difference_everywhere_keeps_its_norm(count):
    """A spread difference is told to about one over the root of twice the numbers kept."""
    ratios = []
    for seed in range(30):
        one, noise = answers(seed), 0.01 * answers(100 + seed)
        ratios.append(float((count_sketch(one + noise, count) - count_sketch(one, count)).norm() / noise.norm()))
    spread = torch.tensor(ratios)

    assert float((spread - 1).square().mean().sqrt()) == pytest.approx((2 * count) ** -0.5, rel=0.35)
    assert abs(float(spread.mean()) - 1) < 0.05


@pytest.mark.parametrize("row", [0, 17, 511])
def test_a_single_row_is_not_missed(row):
    """A difference in one output channel shows as large as it is, wherever it stands: a sample of rows would miss it."""
    one = answers()
    other = one.clone()
    other[:, row] += 3

    assert float((count_sketch(other, 64) - count_sketch(one, 64)).norm()) == pytest.approx(3 * 8**0.5, rel=0.35)


def test_equal_answers_do_not_differ_and_few_values_are_kept_whole():
    """The same answer folds to the same numbers; what is small enough is not folded at all."""
    assert torch.equal(count_sketch(answers(), 64), count_sketch(answers().clone(), 64))
    assert count_sketch(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 6).tolist() == [0, 0, 1, 2, 3, 4]


def test_the_fingerprint_is_that_of_the_seed(monkeypatch):
    """What is drawn is known by it: another seed has another one."""
    before = generator_fingerprint()
    assert torch.equal(before, generator_fingerprint())
    monkeypatch.setattr("swcheck.base.count_sketch.SEED", 1)
    assert not torch.allclose(before, generator_fingerprint())
