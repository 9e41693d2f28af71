"""Tables 3 and 4 on the embedded model: restoring the super activation takes back what one step for all tokens costs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from swcheck import load
from swcheck.base.records import Outcome, SuperWeight
from swcheck.lens.linear_maps import inputs_of
from swcheck.study.chapters import w8a8
from swcheck.study.common.record import INTACT
from swcheck.study.common.setup import RATIO, setup_of
from swcheck.study.runner import measure_study
from swcheck.superweights.measurements.inputs import prompt_ids

pytestmark = pytest.mark.slow


TENSOR = w8a8.PER_TENSOR


@pytest.fixture(scope="module")
def study(tiny_setup):
    return measure_study(tiny_setup, "w8a8")


def test_the_claim_holds_where_activations_cost_something(study):
    """Per tensor most of the gap returns; per token the gap of the embedded model is its weights', and nothing is claimed."""
    token, tensor = w8a8.judge(study)

    assert (token.check, tensor.check) == ("paper: w8a8", "paper: w8a8, per tensor")
    assert tensor.outcome is Outcome.PASSED
    assert tensor.measured > 0.5
    assert token.outcome is Outcome.NOT_APPLICABLE
    assert "the gap is the weights' own" in token.summary


def test_every_condition_is_measured(study):
    """Weights alone, then naive, restored and smoothed, per token and per tensor; one step for all tokens costs more."""
    expected = [INTACT, w8a8.WEIGHTS, *w8a8.METHODS, *(name + TENSOR for name in w8a8.METHODS)]
    assert list(study.conditions(RATIO)) == expected
    assert study.value(RATIO, INTACT) == 1.0
    assert study.value(RATIO, w8a8.NAIVE + TENSOR) > study.value(RATIO, w8a8.NAIVE)
    assert study.value(RATIO, w8a8.RESTORED + TENSOR) < study.value(RATIO, w8a8.NAIVE + TENSOR)


def test_a_share_is_what_the_perplexities_say(study):
    """The share of the gap is the part of naive's rise in nats that a method takes back."""
    for name in (w8a8.RESTORED, w8a8.SMOOTH):
        naive, other = (math.log(study.value(RATIO, one + TENSOR)) for one in (w8a8.NAIVE, name))
        assert study.value(w8a8.GAP, name + TENSOR) == pytest.approx((naive - other) / naive)
        assert study.select(w8a8.GAP, name + TENSOR)[0].error > 0


def test_the_model_is_as_before(study, tiny_setup):
    """Weights and hooks: the answers after the study are those before it."""
    assert study.model == "tiny"
    assert torch.equal(tiny_setup.nats(), tiny_setup.intact())


def test_the_wrong_channel_is_no_super_activation(tiny_setup):
    """With an ordinary weight in place of the super weight nothing is recovered: the claim is red."""
    wrong = replace(tiny_setup, weights=(SuperWeight(2, 200, 33),))
    _, tensor = w8a8.judge(measure_study(wrong, "w8a8"))

    assert tensor.outcome is Outcome.FAILED
    assert tensor.cause.startswith("restoring the super activation recovers")


def test_who_reads_the_super_activation(tiny_setup):
    """Its own down projection reads the spike in the super weight's column, the maps of the layers after it the channel."""
    maps = tuple(one for one in tiny_setup.maps() if one.path != "self_attn.o_proj")
    found = {(one.layer, one.path): channels for one, channels in w8a8.super_channels(tiny_setup, maps).items()}

    assert found.pop((1, "mlp.down_proj")) == (301,)
    assert set(found.values()) == {(97,)}
    paths = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    assert set(found) == {(layer, path) for layer in (2, 3, 4) for path in paths}


def test_smoothing_leaves_the_function_as_it_is(tiny_setup):
    """Maps behind one norm share their factors; what they compute from the divided input is what they did before."""
    maps = tiny_setup.maps()
    factors = w8a8.smoothing_factors(tiny_setup, maps)
    read = inputs_of(tiny_setup.model, maps, prompt_ids(tiny_setup.subject))

    assert {one.path for one in factors} == {one.path for one in maps} - {"self_attn.o_proj", "mlp.down_proj"}
    by_place = {(one.layer, one.path): factor for one, factor in factors.items()}
    assert torch.equal(by_place[2, "self_attn.q_proj"], by_place[2, "self_attn.v_proj"])
    assert not torch.equal(by_place[2, "self_attn.q_proj"], by_place[2, "mlp.up_proj"])
    for one, factor in factors.items():
        assert torch.allclose((read[one] / factor) @ (one.weight * factor).T, read[one] @ one.weight.T, atol=1e-3)


def test_without_weights_in_its_norms_a_model_is_not_smoothed():
    """There is nothing to fold the factors into, as in OLMo: no factors, and the note says why."""
    setup = setup_of(load("tiny"))
    for layer in setup.model.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, nn.RMSNorm(256, elementwise_affine=False))

    assert w8a8.smoothing_factors(setup, setup.maps()) == {}
    assert setup.notes == ["SmoothQuant is left out: no linear map reads a norm with a weight to fold its factors into"]


@given(st.integers(0, 2**16), st.booleans(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_what_is_held_out_stays_and_the_others_gain(seed, per_token, dtype):
    """The largest scalar of the channel comes back to the bit; no other moves by more than half a step of what is left."""
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    x[0, 0, 3], x[1, 2, 3] = 400.0, -300.0
    held = w8a8.quantized_inputs(x, (3,), per_token=per_token)
    plain = w8a8.quantized_inputs(x, (), per_token=per_token)

    assert held[0, 0, 3] == 400.0
    assert held[1, 2, 3] == -300.0
    assert held.dtype == dtype
    quiet = x.double()
    quiet[0, 0, 3] = quiet[1, 2, 3] = float(x.median())
    peaks = quiet.abs().amax(2, keepdim=True) if per_token else quiet.abs().max()
    moved = (held.double() - x.double()).abs()
    assert (moved <= peaks / 127 / 2 + torch.finfo(dtype).eps * quiet.abs() + 1e-9).all()
    assert moved.sum() < (plain.double() - x.double()).abs().sum()


@pytest.mark.parametrize("value", [0.0, -0.4, math.nan])
def test_what_recovers_nothing_is_red(study, value):
    """No share, a negative one, and one that is no number fail in words."""
    worse = [
        replace(one, value=value) if (one.quantity, one.condition) == (w8a8.GAP, w8a8.RESTORED + TENSOR) else one
        for one in study.measurements
    ]
    _, tensor = w8a8.judge(replace(study, measurements=tuple(worse)))

    assert tensor.outcome is Outcome.FAILED
    assert "of what W8A8 costs" in tensor.cause


def test_a_share_within_the_noise_is_no_proof(study):
    """A share that cannot be told from nothing is inconclusive, one just above the limit's noise is near."""

    def outcome(error):
        changed = [
            replace(one, value=0.3, error=error) if one.quantity == w8a8.GAP and one.condition == place else one
            for one in study.measurements
        ]
        return w8a8.judge(replace(study, measurements=tuple(changed)))[1].outcome

    place = w8a8.RESTORED + TENSOR
    assert [outcome(error) for error in (0.11, 0.09, 0.01)] == [Outcome.INCONCLUSIVE, Outcome.NEAR, Outcome.PASSED]


def test_the_picture_shows_units(study):
    """Bars of what each condition adds, and of what it takes back, each with its axis."""
    figure = Figure()
    w8a8.draw(study, figure)
    left, right = figure.axes

    assert left.get_ylabel() == "perplexity above float, %"
    assert right.get_ylabel() == "share of the gap recovered, %"
    assert len([bar for bars in left.containers if hasattr(bars, "patches") for bar in bars.patches]) == 8


def test_the_table_has_every_condition(study):
    """One row a condition, shares where they apply."""
    head, *rows = w8a8.table(study)

    assert len(head) == 5
    assert [row[0] for row in rows] == list(study.conditions(RATIO))
    assert rows[1][3] == ""
    assert "%" in rows[-2][3]
