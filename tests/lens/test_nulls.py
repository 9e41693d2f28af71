"""The two nulls: which weights they take away, against numpy, and that all is as before."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swcheck.base.errors import CoordinateError, OptionError
from swcheck.base.records import SuperWeight
from swcheck.lens.nulls import LARGEST_SHARE, NEXT_LARGEST, draw_matched, next_largest, without_largest, without_matched
from swcheck.strategies import super_weights
from tests.planted import Packed, plant

INSIDE = super_weights(layers=4, rows=16, columns=32)
SETS = st.lists(INSIDE, min_size=1, max_size=4, unique=True)


def down(model, layer):
    return model.model.layers[layer].mlp.down_proj.weight.detach()


def bits(model):
    return {name: tensor.contiguous().view(torch.uint8).clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def zeroes(model):
    """The places of all parameters that are zero."""
    return {
        (name, place)
        for name, tensor in model.named_parameters()
        for place in map(tuple, (tensor == 0).nonzero().tolist())
    }


# --- matched -----------------------------------------------------------------------------------------------------------


@given(weights=SETS, seed=st.integers(0, 2**32))
def test_matched(random_llama, weights, seed):
    """Each draw has as many different weights from the same matrices, none super, all among the 100 next-largest."""
    drawn = draw_matched(random_llama, weights, seed)
    assert [weight.layer for weight in drawn] == [weight.layer for weight in weights]
    assert len(set(drawn)) == len(drawn)
    assert not set(drawn) & set(weights)
    for weight in drawn:
        tensor = down(random_llama, weight.layer)
        assert weight.value == float(tensor[weight.row, weight.column])
        larger = (tensor.abs() > abs(weight.value)).nonzero().tolist()
        supers = [[w.row, w.column] for w in weights if w.layer == weight.layer]
        assert len([place for place in larger if place not in supers]) < NEXT_LARGEST


def test_draws_differ(random_llama):
    """A seed draws the same weights again, and seeds draw different ones."""
    weights = [SuperWeight(1, 2, 3), SuperWeight(2, 5, 30)]
    draws = [draw_matched(random_llama, weights, seed) for seed in range(20)]
    assert draws == [draw_matched(random_llama, weights, seed) for seed in range(20)]
    assert len(set(draws)) > 15


@given(layer=st.integers(0, 3), weights=st.lists(INSIDE, max_size=4), count=st.integers(1, 512))
def test_next_largest(random_llama, layer, weights, count):
    """The next-largest are what numpy sorts out, largest first, super weights left out."""
    matrix = np.abs(down(random_llama, layer).numpy()).copy()
    spared = {(w.row, w.column) for w in weights if w.layer == layer}
    order = [divmod(int(flat), 32) for flat in np.argsort(-matrix, axis=None, kind="stable")]
    expected = [place for place in order if place not in spared][:count]
    found = next_largest(random_llama, layer, weights, count)
    assert [(w.row, w.column) for w in found] == expected
    assert {w.layer for w in found} == {layer}


def test_without_matched(random_llama):
    """In the block exactly one draw is zeroed, and after it every bit is as before."""
    weights, before = [SuperWeight(1, 2, 3), SuperWeight(2, 5, 30)], bits(random_llama)
    drawn, empty = draw_matched(random_llama, weights, 7), zeroes(random_llama)
    with without_matched(random_llama, weights, 7):
        gone = {(f"model.layers.{w.layer}.mlp.down_proj.weight", (w.row, w.column)) for w in drawn}
        assert zeroes(random_llama) - empty == gone
    assert same(bits(random_llama), before)


def test_nothing_to_draw():
    """A matrix that holds nothing but super weights has no null, and the message names it."""
    model = plant([], layers=1, hidden=16, inner=1)
    weights = [SuperWeight(0, row, 0) for row in range(16)]
    words = "a weight of model.layers.0.mlp.down_proj to draw\n  found: all of it is super or drawn\n  try: name fewer"
    with pytest.raises(OptionError, match=words):
        draw_matched(model, weights, 0)
    with pytest.raises(OptionError, match=words):
        draw_matched(model, weights[:9], 0)
    assert len(draw_matched(model, weights[:8], 0)) == 8


def test_packed_magnitudes(random_llama):
    """A packed matrix cannot be ranked: its null has to be drawn in the reference."""
    model = copy.deepcopy(random_llama)
    model.model.layers[1].mlp.down_proj = Packed(model.model.layers[1].mlp.down_proj)
    words = (
        "the largest weights of model.layers.1.mlp.down_proj\n  found: Packed keeps them packed\n"
        "  try: draw the null in the reference"
    )
    with pytest.raises(OptionError, match=words):
        draw_matched(model, [SuperWeight(1, 2, 3)], 0)
    assert len(draw_matched(model, [SuperWeight(2, 2, 3)], 0)) == 1


@pytest.mark.parametrize("weight", [SuperWeight(4, 0, 0), SuperWeight(0, 16, 0), SuperWeight(0, 0, -1)])
def test_outside(random_llama, weight):
    """A coordinate outside the model has no null."""
    with pytest.raises(CoordinateError, match="was asked for"):
        draw_matched(random_llama, [weight], 0)
    with pytest.raises(CoordinateError, match="was asked for"), without_largest(random_llama, [weight]):
        pytest.fail("the block was entered")


def test_a_layer_outside(random_llama):
    """A layer outside the model has no largest weights."""
    with pytest.raises(CoordinateError, match="layer 4 was asked for"):
        next_largest(random_llama, 4, [])


# --- the largest others ------------------------------------------------------------------------------------------------


def brute_force(model, weights, share):
    """The places ``without_largest`` has to zero, sorted out with numpy."""
    gone = set()
    for name, tensor in model.named_parameters():
        if ".layers." not in name or tensor.ndim != 2:
            continue
        layer = int(name.split(".")[2])
        spared = {(w.row, w.column) for w in weights if w.layer == layer and "down_proj" in name}
        size = np.abs(tensor.detach().numpy())
        order = [divmod(int(flat), size.shape[1]) for flat in np.argsort(-size, axis=None, kind="stable")]
        gone |= {(name, place) for place in [p for p in order if p not in spared][: max(1, int(share * size.size))]}
    return gone


@given(weights=st.lists(INSIDE, max_size=4), share=st.sampled_from([LARGEST_SHARE, 0.003, 0.01, 0.25, 0.9, 1.0]))
def test_without_largest(random_llama, weights, share):
    """The largest share of every matrix in the layers is zeroed, at least one each, super weights spared, as counted."""
    before, empty = bits(random_llama), zeroes(random_llama)
    expected = brute_force(random_llama, weights, share)
    with without_largest(random_llama, weights + weights, share) as count:
        gone = zeroes(random_llama) - empty
        assert gone == expected
        assert count == len(gone)
    assert same(bits(random_llama), before)


def test_the_largest_super_weight_stays():
    """A super weight that is the largest of its matrix is spared, and the next-largest goes in its place."""
    weight = SuperWeight(1, 5, 7, 0.8)
    model = plant([weight])
    with without_largest(model, [weight]) as count:
        assert down(model, 1)[5, 7] == pytest.approx(0.8)
        assert (down(model, 1) == 0).sum() == 1
        assert count == 6 * 7
    with without_largest(model, []):
        assert down(model, 1)[5, 7] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_left_by_an_exception(random_llama, dtype):
    """Left by an exception, in half precision, nested and over a transposed matrix: every bit comes back."""
    model = copy.deepcopy(random_llama).to(dtype)
    query = model.model.layers[0].self_attn.q_proj
    query.weight = nn.Parameter(query.weight.detach().T.contiguous().T)
    before = bits(model)
    with pytest.raises(KeyError), without_largest(model, [], 0.1), without_largest(model, [], 0.5):
        assert (query.weight == 0).sum() == 16 * 16 // 10 + 16 * 16 // 2
        raise KeyError
    assert same(bits(model), before)


def test_a_shared_matrix(random_llama):
    """A matrix that two layers share is restored as it was."""
    model = copy.deepcopy(random_llama)
    model.model.layers[2].mlp.down_proj.weight = model.model.layers[1].mlp.down_proj.weight
    before = bits(model)
    with without_largest(model, [], 0.6):
        assert not same(bits(model), before)
    assert same(bits(model), before)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_a_share_that_makes_no_sense(random_llama, share):
    """A share of nothing, or of more than all, is refused."""
    words = f"share = {share}\n  found: a part of a matrix lies above 0 and at most at 1"
    with pytest.raises(OptionError, match=words), without_largest(random_llama, [], share):
        pytest.fail("the block was entered")


def test_no_plain_matrix(random_llama):
    """A model whose matrices are all packed has no such null: zeroing nothing would prove nothing."""
    model = copy.deepcopy(random_llama)
    for layer in model.model.layers:
        for parent, name in ((layer.mlp, "gate_proj"), (layer.mlp, "up_proj"), (layer.mlp, "down_proj"),
                             *((layer.self_attn, f"{letter}_proj") for letter in "qkvo")):  # fmt: skip
            setattr(parent, name, Packed(getattr(parent, name)))
    words = "the largest weights of every matrix\n  found: no layer keeps a plain one\n  try: draw the null in the ref"
    with pytest.raises(OptionError, match=words), without_largest(model, []):
        pytest.fail("the block was entered")
