"""Families with a norm behind the MLP: a scalar that only the norm makes large is located, and place and cause agree."""

from __future__ import annotations

import copy

import pytest
import torch

from swcheck import (
    Planting,
    RobustnessError,
    anatomy,
    assert_perplexity_within,
    assert_super_weights_preserved,
    locate,
    plant_super_weights,
)
from swcheck.lens.likelihood import token_nats
from swcheck.testing.damage.edits import rounded
from tools.families_table import IDS
from tools.planted_families import untie
from tools.small_models import small_model


@pytest.fixture(scope="module", params=["gemma2", "olmo2"])
def amplified(request):
    """A model of such a family whose norm amplifies what one scalar writes, that scalar, and a text that it made."""
    model = small_model(request.param)
    untie(model)
    model.lm_head.weight.data.mul_(60)
    [weight] = plant_super_weights(model, [Planting(1, 3)], IDS)
    torch.manual_seed(0)
    text = IDS[:, :1].repeat(16, 1)
    with torch.no_grad():
        for _ in range(23):
            drawn = torch.distributions.Categorical(logits=model(text).logits[:, -1]).sample()
            text = torch.cat([text, drawn[:, None]], 1)
    return model, weight, torch.cat([IDS, text])


def edited(model, weight, edit):
    made = copy.deepcopy(model)
    with torch.no_grad():
        edit(anatomy(made).down_map(weight).weight)
    return made


def test_the_scalar_is_located_though_its_map_writes_little(amplified):
    """What its map writes is no outlier; behind the norm it is. Zeroing it costs."""
    model, weight, text = amplified
    assert locate(model, token_ids=IDS).super_weights == (weight,)
    zeroed = edited(model, weight, lambda matrix: matrix[weight.row, weight.column].zero_())
    assert float(token_nats(zeroed, text).mean()) > float(token_nats(model, text).mean()) + 0.1


def lose(matrix, weight):
    matrix[weight.row, weight.column] = 0


def turn(matrix, weight):
    matrix[weight.row, weight.column] *= -1


@pytest.mark.slow
@pytest.mark.parametrize("edit", [lose, turn])
def test_place_and_cause_agree_with_the_matrix_that_is_named(amplified, edit):
    """The first line names the scalar, and the matrix to keep is the one that holds it."""
    model, weight, text = amplified
    made = edited(model, weight, lambda matrix: edit(matrix, weight))
    name = anatomy(model).down_map(weight).module_name

    for check in (assert_super_weights_preserved, assert_perplexity_within):
        with pytest.raises(RobustnessError) as caught:
            check(made, model, token_ids=text)
        verdict = caught.value.verdict
        assert weight.place in verdict.cause
        assert verdict.cause_kind == "super_weight"
        assert name in verdict.attempt


def test_a_scalar_too_small_to_be_located_is_named_with_its_matrix(amplified):
    """The norm amplifies it less, and the reference has nothing to guard: the first line names matrix and scalar."""
    model, weight, text = amplified
    quiet, down = copy.deepcopy(model), anatomy(model).down_map(weight)
    with torch.no_grad():
        for name, vector in anatomy(quiet).layers[weight.layer].named_parameters():
            if "post_feedforward" in name:
                vector[weight.row] /= 4
    assert not locate(quiet, token_ids=IDS).super_weights
    with pytest.raises(RobustnessError) as caught:
        made = edited(quiet, weight, lambda matrix: lose(matrix, weight))
        assert_perplexity_within(made, quiet, token_ids=text, ratio=1.0001)
    assert caught.value.verdict.cause.startswith(
        f"linear map {down.name} differs in 1 value, [{weight.row}, {weight.column}]: 0 for"
    )


def test_without_a_super_weight_none_is_ruled_out(amplified):
    """Where the reference has none, no first line says that it is not the super weights."""
    model, weight, text = amplified
    plain = edited(model, weight, lambda matrix: lose(matrix, weight))
    assert not locate(plain, token_ids=IDS).super_weights
    made = edited(plain, weight, lambda matrix: matrix.copy_(rounded(matrix, 1.5)))
    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(made, plain, token_ids=text, ratio=1.0001)
    assert "the super weights" not in caught.value.verdict.cause
