"""A candidate that has no place for a super weight of its reference: it is smaller, and red, and no usage error."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from swcheck import (
    RobustnessError,
    SuperWeight,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
)
from swcheck.base.errors import CoordinateError
from swcheck.lens.tokens import token_windows
from swcheck.superweights.subject.as_subject import as_subject
from tests.in_process_runtime import candidate
from tests.planted import SINK, plant

SECOND = SuperWeight(2, 6, 9, 20.0)
IDS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = 0


def shallow(model, layers):
    """A copy that ends after so many layers."""
    found = copy.deepcopy(model)
    del found.model.layers[layers:]
    found.config.num_hidden_layers = layers
    return found


def narrow(model, inner):
    """A copy with so many inner neurons in every layer."""
    found = copy.deepcopy(model)
    found.config.intermediate_size = inner
    for layer in found.model.layers:
        for name in ("gate_proj", "up_proj"):
            getattr(layer.mlp, name).weight = torch.nn.Parameter(getattr(layer.mlp, name).weight[:inner].detach())
            getattr(layer.mlp, name).out_features = inner
        layer.mlp.down_proj.weight = torch.nn.Parameter(layer.mlp.down_proj.weight[:, :inner].detach())
        layer.mlp.down_proj.in_features = inner
    return found


def red(check, *args, **options):
    with pytest.raises(RobustnessError) as caught:
        check(*args, **options)
    return caught.value.verdict


CHECKS = (
    assert_super_weights_preserved,
    assert_super_activations_preserved,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_collapses_when_zeroed,
)


@pytest.fixture(scope="module")
def reference(tiny):
    """Tiny on a few windows."""
    return as_subject(tiny, token_ids=token_windows(tiny.tokenizer, tiny.text, count=6, length=128))


@pytest.fixture(scope="module")
def without_layers(tiny):
    """Tiny with its first layer alone, where the super weight is in the second."""
    return shallow(tiny.model, 1)


@pytest.fixture(scope="module")
def without_columns(tiny):
    """Tiny with half of its inner neurons, without that of the super weight."""
    return narrow(tiny.model, 256)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("name", "has"), [("without_layers", "layer 0 alone"), ("without_columns", "columns 0 to 255")]
)
def test_every_check_is_red_and_says_what_the_candidate_has(request, reference, check, name, has):
    """What was asked for and what is there stand in the cause, and what can be measured is."""
    verdict = red(check, request.getfixturevalue(name), reference)

    assert f"no place for the super weight at layer 1 [97, 301]: the candidate has {has}" in verdict.cause
    assert verdict.measured is not None
    assert verdict.attempt


@pytest.mark.parametrize("check", CHECKS)
def test_a_runtime_without_the_layer_is_red_too(reference, check):
    """Its layers are not compared one by one with those of a deeper model."""

    def cut(model):
        del model.model.layers[1:]

    verdict = red(check, candidate(cut), reference)

    assert "no place for the super weight at layer 1 [97, 301]: the candidate has layer 0 alone" in verdict.cause


def test_the_loss_of_a_smaller_candidate_is_not_said_to_be_beside_its_super_weights(
    reference, without_layers, without_columns
):
    """The layers or neurons that it lacks are the cause, and the super weight in them is named with them."""
    depth, width = (red(assert_perplexity_within, one, reference) for one in (without_layers, without_columns))

    assert depth.cause.startswith("without the reference's layer 1, 2, 3, 4; no place for")
    assert width.cause.startswith("256 inner neurons, where the reference has 512; no place for")
    assert (depth.cause_kind, width.cause_kind) == ("depth", "pruning")
    assert depth.measured > 2
    assert width.measured > 1.5


def test_only_what_is_absent_is_named():
    """Of two super weights the one in a layer that is there still writes, and is not blamed."""
    both = (SINK, SECOND)
    reference = plant(both)

    verdict = red(assert_super_weights_preserved, shallow(reference, 2), reference, super_weights=both, token_ids=IDS)

    assert verdict.cause == f"no place for the super weight at {SECOND.place}: the candidate has layers 0 to 1"
    assert verdict.cause_kind == "super_weight"
    assert verdict.facts["ratios"] == pytest.approx([1, 0], abs=1e-4)
    assert verdict.facts["weights"] == [SINK.value, 0]
    assert "1 of 2 weights still do" in verdict.summary
    rows = dict(verdict.detail)
    assert rows[SINK.place].startswith("weight +30 -> +30")
    assert rows[SECOND.place].endswith("; the candidate has layers 0 to 1")


def test_the_activation_behind_the_last_layer_is_the_one_that_is_named():
    """Another one stands before it as it did."""
    both = (SINK, SECOND)
    reference = plant(both)

    verdict = red(
        assert_super_activations_preserved, shallow(reference, 2), reference, super_weights=both, token_ids=IDS
    )

    assert verdict.summary.startswith(f"channel {SECOND.row} at token ")
    assert "after layer 2: not there for +" in verdict.summary
    assert verdict.measured == 0


def test_several_that_are_absent_are_named_together():
    """With what the candidate has said once."""
    both = (SINK, SECOND)
    reference = plant(both)

    verdict = red(assert_super_weights_preserved, shallow(reference, 1), reference, super_weights=both, token_ids=IDS)

    words = f"no place for the super weights at {SINK.place}, {SECOND.place}: the candidate has layer 0 alone"
    assert verdict.cause == words


def test_a_candidate_that_ends_before_its_activation_is_red_though_its_weight_is_found():
    """The weight stands in its first layer now, and the layer after which the reference has its activation is not there."""
    reference = plant([replace(SINK, layer=3)])
    with torch.no_grad():  # its first three layers do nothing: without them the others are as they were
        for layer in reference.model.layers[:3]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    later = copy.deepcopy(reference)
    later.model.layers = later.model.layers[3:]
    later.config.num_hidden_layers = 3
    for number, layer in enumerate(later.model.layers):
        layer.self_attn.layer_idx = number

    found = assert_super_weights_preserved(later, reference, token_ids=IDS)
    verdict = red(assert_super_activations_preserved, later, reference, token_ids=IDS)

    assert "located again in the candidate: layer 0" in found.summary
    assert verdict.cause == "no layer 3, after which the super activation stands: the candidate has layers 0 to 2"
    assert verdict.cause_kind == "super_activation"


def test_a_coordinate_that_the_reference_lacks_is_an_error_all_the_same(without_layers, reference):
    """It was given by a person, and the candidate is not to blame."""
    with pytest.raises(CoordinateError, match="layer 5 was asked for"):
        assert_super_weights_preserved(without_layers, reference, super_weights=[SuperWeight(5, 0, 0)])
