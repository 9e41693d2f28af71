"""Rows that stand in another map of the same input are told as a fused matrix that was split wrongly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck.gate.diagnosis.suspects.split import are_mixed
from swcheck.testing.candidates import candidate
from tests.gated import first_red


def matrices(seed, *rows):
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 48, generator=drawn) for count in rows]


@given(st.integers(0, 5), st.permutations(range(60)), st.floats(0, 0.1))
def test_rows_in_another_matrix_are_found(seed, order, noise):
    """Any order of the rows of three matrices, with some rounding: mixed if enough of them lie in another one."""
    theirs = matrices(seed, 30, 15, 15)
    rows = torch.cat(theirs)[list(order)]
    ours = (rows + noise * torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))).split([30, 15, 15])
    owner = torch.tensor([0] * 30 + [1] * 15 + [2] * 15)
    share = float((owner != owner[list(order)]).float().mean())
    assert are_mixed(ours, theirs) == (share >= 0.05)


def test_other_matrices_are_not_mixed():
    """Unrelated matrices, and the same ones, are no split."""
    one, other = matrices(0, 30, 15), matrices(1, 30, 15)
    assert not are_mixed(one, other)
    assert not are_mixed(one, one)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fused q, k, v split wrongly", "q_proj, k_proj and v_proj of 3 layers, first layer 0, hold each other's rows"),
        ("fused gate and up split wrongly", "gate_proj and up_proj of 3 layers, first layer 0, hold each other's rows"),
    ],
)
def test_a_fused_matrix_that_was_split_wrongly_is_named(tiny, name, words):
    """The maps and the layers are named, and the proof gives the reference's matrices back."""
    verdict = first_red(candidate(name, tiny), tiny)
    assert verdict.cause == f"{words}: a fused matrix was split wrongly"
    assert verdict.cause_kind == "order"
