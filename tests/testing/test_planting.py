"""Planted super weights of every geometry are located in models of many families, and nothing besides."""

from __future__ import annotations

import copy

import pytest
import torch

from swcheck import Planting, anatomy, locate, plant_super_weights
from swcheck.base.errors import OptionError
from swcheck.testing.planting import visited_experts
from tests.planted import Packed
from tests.versions import RECENT
from tools.families_table import GEOMETRIES, IDS, places_to_plant
from tools.small_models import small_model

SOME = ("gpt2", "gemma2", "mixtral", "qwen2_moe")
MORE = (
    "apertus", "aria_text", "bloom", "cohere2", "dbrx", "deepseek_v2", "falcon_h1", "glm4", "gpt_neox", "gpt_oss", "codegen",
    "granitemoehybrid", "jamba", "jetmoe", "lfm2", "llama4_text", "minimax_m2", "mpt", "olmo3", "opt",
    "phi", "phimoe", "qwen3_next", "starcoder2", "xglm",
)  # fmt: skip


def wrongly_located(name, geometries):
    """The geometries and places of a family at which something else was located than was planted."""
    model = small_model(name)
    assert locate(model, token_ids=IDS).super_weights == ()
    wrong = []
    for layer, expert in list(places_to_plant(model)):
        for geometry in geometries:
            planted = copy.deepcopy(model)
            try:
                wanted = GEOMETRIES[geometry](planted, layer, expert)
            except OptionError:
                assert geometry == "two layers"  # few random models let two be large at one token alone
                continue
            if set(locate(planted, token_ids=IDS).super_weights) != set(wanted):
                wrong.append((geometry, layer, expert))
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seed", "expert"),
    [
        ("arcee", 2, None),
        ("llama", 2, None),
        ("mixtral", 4, 1),
        ("aria_text", 4, "shared"),
        ("deepseek_v2", 1, "shared"),
        ("rwkv", 3, None),
    ],
)
def test_two_layers_are_located(name, seed, expert):
    """Both are, in a dense map and in an expert, also where without the first one the second is larger, at its own or another token."""
    model = small_model(name, seed)
    wanted = GEOMETRIES["two layers"](model, 1, expert)
    assert {one.layer for one in wanted} == {1, 2}
    assert set(locate(model, token_ids=IDS).super_weights) == set(wanted)


@RECENT
def test_weights_that_write_most_at_different_tokens_are_both_located():
    """One of a row writes more at a later token than at the planted one; without it the other one is seen at this."""
    model = small_model("axk1")
    plan = [Planting(1, 3, expert="shared"), Planting(1, 3, expert="shared")]
    wanted = plant_super_weights(model, plan, IDS)
    assert set(locate(model, token_ids=IDS).super_weights) == set(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_all_geometries_are_located(name):
    """Each geometry, in a dense map, an expert or a shared expert, is located, and a model without any has none."""
    assert wrongly_located(name, GEOMETRIES) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MORE)
def test_families_without_a_row_are_located(name):
    """A super weight in a family that nothing was written for is located."""
    assert wrongly_located(name, ["one", "negative"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 5, 8])
def test_several_equal_weights_in_a_row_are_all_located(count):
    """Up to eight weights of about the same size are located together, also where each has a small share."""
    model = small_model("llama")
    planted = plant_super_weights(model, [Planting(1, 3)] * count, IDS)
    assert set(locate(model, token_ids=IDS).super_weights) == set(planted)


def test_a_channel_that_is_loud_everywhere_hides_nothing():
    """An outlier feature ten times as large as the super activation does not raise the threshold."""
    model = small_model("llama")
    model.model.embed_tokens.weight.data[:, 20] = 500.0
    for layer in model.model.layers:  # as trained models do, no layer looks at it
        layer.input_layernorm.weight.data[20] = layer.post_attention_layernorm.weight.data[20] = 0
    planted = plant_super_weights(model, [Planting(1, 3, size=1000)], IDS)
    found = locate(model, token_ids=IDS)
    assert abs(found.activations[0].value) < 50
    assert (20 in {one.channel for one in found.activations}, found.super_weights) == (False, planted)


@pytest.mark.parametrize(
    ("change", "planting", "words"),
    [
        (None, Planting(1, 3, expert=1), "token 0 does not reach it"),
        ("packed", Planting(1, 3), "it is packed"),
    ],
)
def test_what_cannot_be_planted_is_said(change, planting, words):
    """An expert that the token does not reach, and a packed map, are refused."""
    model = small_model("mixtral" if planting.expert is not None else "llama")
    if change == "packed":
        mlp = model.model.layers[1].mlp
        mlp.down_proj = Packed(mlp.down_proj)
    elif 1 in visited_experts(model, 1, IDS):
        planting = Planting(1, 3, expert=next(e for e in range(4) if e not in visited_experts(model, 1, IDS)))
    with pytest.raises(OptionError, match=words):
        plant_super_weights(model, [planting], IDS)


def test_what_is_no_super_activation_is_refused():
    """A value at many tokens, and one that later layers take away, are not what was asked for."""
    everywhere = small_model("llama")
    with pytest.raises(OptionError, match="the channel is as large at [0-9]+ tokens"):
        plant_super_weights(everywhere, [Planting(1, 3)], torch.full((1, 24), 7))
    normed = small_model("minimax")
    with pytest.raises(OptionError, match="the later layers do not carry what it writes"):
        plant_super_weights(normed, [Planting(1, 3, expert=visited_experts(normed, 1, IDS)[0])], IDS)


def test_a_value_that_another_branch_writes_is_refused():
    """What stays when the planted scalar is zeroed is none of its doing: here the embedding of the token has it."""
    model = small_model("llama")
    model.model.embed_tokens.weight.data[IDS[0, 7], 3] = 100
    with pytest.raises(OptionError, match=r"\+99[0-9.]+ with what was planted zeroed: another branch writes it"):
        plant_super_weights(model, [Planting(1, 3, size=1000)], IDS, position=7)


@RECENT
@pytest.mark.parametrize("position", [0, 7, 11])
def test_the_norm_that_is_amplified_is_that_of_the_planted_map(position):
    """Not one that makes what another branch writes a super activation, though the map moves that as well."""
    model = small_model("gemma4_text", 2)
    wanted = plant_super_weights(model, [Planting(1, 3, size=-1000)], IDS, position=position)
    assert locate(model, token_ids=IDS).super_weights == wanted


@pytest.mark.parametrize("name", ["openai-gpt", "plbart"])
def test_a_stream_that_a_norm_takes_whole_is_said_to_bound_a_channel(name):
    """No scalar is large enough there: the norm behind the layer scales the channel with all that is in it."""
    with pytest.raises(
        OptionError, match=r"of [67]\d\d in channel 3 the stream gets \d\.\d+, and no norm amplifies it"
    ):
        plant_super_weights(small_model(name), [Planting(1, 3)], IDS, position=11)


@RECENT
def test_a_value_among_others_as_large_is_refused():
    """Zamba mixes the channels behind its shared map: what makes one large there makes all of them large."""
    model = small_model("zamba")
    with pytest.raises(OptionError, match="x the median of what it makes of the other channels"):
        plant_super_weights(model, [Planting(1, 3, expert="shared")], IDS, position=11)


def test_another_token_is_taken_where_no_neuron_is_local_to_the_first():
    """The tool plants at the first token to which this random model has a local neuron; one is located there as well."""
    model = small_model("gptj")
    with pytest.raises(OptionError, match="no inner neuron is local to token 0"):
        plant_super_weights(copy.deepcopy(model), [Planting(1, 3, size=-1000)], IDS)
    wanted = GEOMETRIES["negative"](model, 1, None)
    assert locate(model, token_ids=IDS).super_weights == wanted


def test_only_the_scalar_is_changed():
    """Where nothing lies between the map and the stream, planting changes one scalar and no other bit."""
    model = small_model("llama")
    before = copy.deepcopy(model)
    [weight] = plant_super_weights(model, [Planting(2, 3, size=-500)], IDS)
    matrix = anatomy(model).down_map(weight).weight
    assert float(matrix[weight.row, weight.column]) == weight.value
    matrix[weight.row, weight.column] = anatomy(before).down_map(weight).weight[weight.row, weight.column]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
