"""What the studies do to a model beyond zeroing: every edit against the same done by hand in the tensor."""

from __future__ import annotations

import pytest
import torch

from swcheck.base.records import SuperWeight
from swcheck.lens.intervene import zeroed
from swcheck.lens.observe import observe
from swcheck.study.common.setup import restored_after
from swcheck.study.common.surgery import (
    carrying_tokens,
    contributions_restored,
    mean_contributions,
    strongest_token,
    without_columns,
    without_rows,
)
from tests.planted import Packed, plant

PAIR = (SuperWeight(1, 3, 5, 4.0), SuperWeight(1, 7, 5, -3.0))
IDS = torch.tensor([[0, *range(3, 20)], [0, *range(20, 37)]])


@pytest.fixture
def model():
    return plant(PAIR)


def everywhere(size):
    return torch.ones_like(size, dtype=torch.bool)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def test_strongest_and_carriers():
    """One token a window is the strongest; carriers hold half of it; where nothing stands, nothing carries."""
    size = torch.tensor([[1.0, 4.0, 2.0], [0.0, 0.0, 0.0]])

    assert strongest_token(size).tolist() == [[False, True, False], [True, False, False]]
    assert carrying_tokens(size).tolist() == [[False, True, True], [False, False, False]]


def test_put_back_everywhere_is_the_intact_model(model):
    """Zeroed and given back at every token the model answers as before; at none, as zeroed."""
    intact = logits(model)
    with zeroed(model, PAIR):
        without = logits(model)
    with contributions_restored(model, PAIR, everywhere):
        back = logits(model)
    with contributions_restored(model, PAIR, lambda size: torch.zeros_like(size, dtype=torch.bool)):
        nowhere = logits(model)

    assert torch.allclose(back, intact, atol=1e-4)
    assert torch.equal(nowhere, without)
    assert not torch.allclose(without, intact, atol=1e-2)
    assert torch.equal(logits(model), intact)


def test_put_back_at_the_strongest_token_alone(model):
    """Only there the channel holds its activation: 60 and -45 at token 0, what zeroing leaves elsewhere."""
    with contributions_restored(model, PAIR, strongest_token), torch.no_grad(), observe(model, residual=[1]) as sight:
        model(IDS)
    with torch.no_grad(), observe(model, residual=[1]) as intact:
        model(IDS)

    for weight in PAIR:
        kept, whole = sight.residual[1][..., weight.row], intact.residual[1][..., weight.row]
        assert torch.allclose(kept[:, 0], whole[:, 0], atol=1e-4)
        assert not torch.allclose(kept[:, 1:], whole[:, 1:], atol=1e-5)


def test_padding_is_never_chosen(model):
    """A window that ends in padding with an activation of its own gets its activation back at the real token."""
    padded = torch.cat([IDS[:1], torch.zeros(1, 3, dtype=torch.int64)], 1)
    chosen = []

    def watch(size):
        chosen.append(strongest_token(size))
        return chosen[-1]

    with contributions_restored(model, PAIR, watch):
        logits(model, padded)

    assert all(mask.nonzero().tolist() == [[0, 0]] for mask in chosen)
    assert len(chosen) == 2


def test_a_constant_stands_in_the_place_of_the_contribution(model):
    """The given number, and not the input, decides what the channel gets."""
    constants = {(1, 3): 100.0, (1, 7): 0.0}
    with zeroed(model, PAIR), torch.no_grad(), observe(model, residual=[1]) as sight:
        model(IDS)
    without = sight.residual[1].clone()
    with (
        contributions_restored(model, PAIR, strongest_token, constants),
        torch.no_grad(),
        observe(model, residual=[1]) as sight,
    ):
        model(IDS)

    change = sight.residual[1] - without
    assert change[:, 0, 3].tolist() == pytest.approx([100.0, 100.0], rel=1e-5)
    assert change.abs().sum() == pytest.approx(200.0, rel=1e-4)


def test_the_calibrated_mean_is_what_the_weights_write(model):
    """Per row the contribution at token 0, the one token of each window that carries it."""
    first, second = mean_contributions(model, PAIR, IDS)
    with torch.no_grad(), observe(model, inputs=[1]) as sight:
        model(IDS)
    x = sight.inputs[1][0, 0, 5]

    assert (first.layer, first.row, first.tokens) == (1, 3, 1.0)
    assert first.mean == pytest.approx(4 * float(x), rel=1e-4)
    assert second.mean == pytest.approx(-3 * float(x), rel=1e-4)


def test_whole_rows_and_columns_are_gone(model):
    """Through hooks as in the tensor, where rows or columns are set to zero."""
    weight = model.model.layers[1].mlp.down_proj.weight
    with without_rows(model, PAIR):
        rows = logits(model)
    with without_columns(model, PAIR):
        columns = logits(model)
    with restored_after([weight]):
        weight[[3, 7]] = 0
        assert torch.allclose(logits(model), rows, atol=1e-5)
    with restored_after([weight]):
        weight[:, 5] = 0
        assert torch.allclose(logits(model), columns, atol=1e-5)


def test_a_packed_module_is_treated_alike(model):
    """A module that hides its weight: at every token given back it is intact, and zeroed it is not."""
    mlp = model.model.layers[1].mlp
    mlp.down_proj = Packed(mlp.down_proj)
    intact = logits(model)
    with contributions_restored(model, PAIR, everywhere):
        back = logits(model)
    with zeroed(model, PAIR):
        without = logits(model)

    assert torch.allclose(back, intact, atol=1e-4)
    assert not torch.allclose(without, intact, atol=1e-2)
