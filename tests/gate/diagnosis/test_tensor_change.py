"""How a tensor differs is told by its form: zeroed, constant, scaled, transposed, its rows moved, or merely different."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck.gate.diagnosis.evidence.tensor_change import change_in_few_values, places_of_rows, tensor_change


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MATRIX = random(64, 64)


@given(st.integers(0, 5), st.sampled_from([(8,), (16, 12)]), st.floats(0, 0.01))
def test_rounding_to_eight_bits_is_no_change(seed, shape, noise):
    """A tensor is the same as itself, and as itself with a noise of 1 % of its norm."""
    tensor = random(*shape, seed=seed)
    assert tensor_change(tensor + noise * tensor.norm() / tensor.numel() ** 0.5, tensor) is None


@given(st.integers(0, 5), st.one_of(st.just(0), st.floats(-8, -0.01), st.floats(0.01, 0.9), st.floats(1.1, 8)))
def test_a_factor_is_told(seed, factor):
    """Every factor that is not near 1 is read back, zero as zeros; a scaled tensor is a structural change."""
    tensor = random(24, seed=seed)
    found = tensor_change(tensor * factor, tensor)
    assert found is not None
    assert found.is_structural
    if factor:
        assert float(found.words.removeprefix("is scaled x")) == pytest.approx(factor, rel=1e-3)
    else:
        assert found.words == "is all zeros"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.zeros_like, "is all zeros"),
        (lambda m: torch.full_like(m, 0.25), "is the constant 0.25"),
        (lambda m: m.T, "is transposed"),
        (lambda m: m.roll(1, 0), "has its rows rolled by 1"),
        (lambda m: m.roll(-3, 0), "has its rows rolled by -3"),
        (lambda m: m.roll(16, 1), "has its columns rolled by 16"),
        (lambda m: m.roll(32, 0), "has its rows rolled by -32, which exchanges its halves"),
        (lambda m: m.flip(0), "has its rows reversed"),
        (lambda m: m.reshape(4, 16, 64)[[1, 0, 3, 2]].reshape(64, 64), "has its rows moved in blocks of 16, as heads are, or the parts of a fused matrix"),
        (lambda m: m.reshape(2, 2, 16, 64).transpose(1, 2).reshape(64, 64), "(another rope layout)"),
        (lambda m: torch.cat([m[:8].flip(0), m[8:]]), "has its rows 0 to 7 in another order"),
        (lambda m: m[torch.randperm(64, generator=torch.Generator().manual_seed(1))], "has its rows shuffled"),
        (lambda m: m.index_put((torch.tensor(7), torch.tensor(9)), torch.tensor(30.0)), "differs in 1 value, [7, 9]: 30 for -0.3164"),
        (lambda m: m[:, :32], "has the shape 64 x 32 for 64 x 64"),
    ],
)  # fmt: skip
def test_the_form_of_a_change_is_named(change, words):
    """Each form has its words, and counts as structural."""
    found = tensor_change(change(MATRIX), MATRIX)
    assert found.words.endswith(words)
    assert found.is_structural


def test_another_constant_is_a_factor():
    """A norm of ones that became one of twenties is scaled; zeros, as a new bias has, have no factor."""
    assert tensor_change(torch.full((24,), 20.0), torch.ones(24)).words == "is scaled x20"
    assert tensor_change(torch.full((24,), 20.0), torch.zeros(24)).words == "is the constant 20"


def test_moved_rows_are_found_under_rounding():
    """A matrix that was rounded to 4 bits as well is still told to have its rows rolled."""
    step = MATRIX.abs().amax(1, keepdim=True) / 7
    assert tensor_change(((MATRIX / step).round() * step).roll(1, 0), MATRIX).words == "has its rows rolled by 1"


@given(st.integers(0, 5), st.integers(1, 16), st.floats(0.5, 100))
def test_the_places_of_few_values_are_read_back(seed, count, size):
    """Up to 16 values that differ are found with their places, beside rounding to 8 bits of all others."""
    matrix, places = (
        random(64, 64, seed=seed),
        torch.randperm(4096, generator=torch.Generator().manual_seed(seed))[:count],
    )
    ours = matrix + 1e-3 * size * random(64, 64, seed=7)
    ours.view(-1)[places] += size * 2
    found = change_in_few_values(ours, matrix)
    assert {row * 64 + column for row, column in found.places} == set(places.tolist())


def test_zeroed_rows_are_not_moved_rows():
    """Rows of zeros have no place, and are no rows in another order."""
    assert places_of_rows(MATRIX * (torch.arange(64) > 31)[:, None], MATRIX) is None


def test_another_tensor_differs_and_is_not_structural():
    """Noise has no form: how much differs is said. A matrix that has nothing of the reference's is told as that."""
    noisy = tensor_change(MATRIX + 0.3 * random(64, 64, seed=2), MATRIX)
    assert (noisy.words, noisy.is_structural) == ("differs by 30%", False)
    other = tensor_change(random(64, 64, seed=1), MATRIX)
    assert (other.words, other.is_structural) == ("is unrelated to the reference's, as if drawn again", True)


@pytest.mark.parametrize(
    ("factors", "what"),
    [
        (random(64, 1), "row"),
        (random(1, 64), "column"),
        (random(64, 2).repeat_interleave(32, 1), "group of 32 columns"),
    ],
)
def test_a_factor_for_each_part_is_told(factors, what):
    """Rows, columns or groups with a scale of their own, as after a wrong order of scales; also beside rounding."""
    found = tensor_change(MATRIX * (1 + factors.abs()) + 0.05 * random(64, 64, seed=3), MATRIX)
    assert found.words.startswith(f"has a factor of its own in each {what} (x")
    assert found.is_structural


@given(st.permutations(range(12)))
def test_a_permutation_of_rows_is_read_back(order):
    """The place of every row is found, unless none has moved."""
    rows = random(12, 32)
    places = places_of_rows(rows[list(order)], rows)
    assert places is None if list(order) == list(range(12)) else places.tolist() == list(order)
