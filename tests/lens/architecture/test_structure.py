"""The decoder layers and down projections of a model of any family are found in one short forward pass."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from swcheck import Planting, SuperWeight, anatomy, locate, plant_super_weights, scaled
from swcheck.base.errors import ArchitectureError, CoordinateError
from swcheck.lens.architecture.anatomy import MapKey, checked_anatomy
from tests.versions import RECENT
from tools.small_models import LAYERS, small_model

IDS = torch.arange(5, 29)[None]


def places(model, layer=-1):
    """The paths of one layer's down projections, with the names of experts' parameters and labels."""
    return [(place.path, place.parameter, place.expert) for place in anatomy(model).structure.places[layer]]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gpt2", [("mlp.c_proj", None, None)]),
        ("opt", [("fc2", None, None)]),
        ("bloom", [("mlp.dense_4h_to_h", None, None)]),
        ("bitnet", [("mlp.down_proj", None, None)]),
        pytest.param("modernbert-decoder", [("mlp.Wo", None, None)], marks=RECENT),
        ("mixtral", [("mlp.experts", "down_proj", None)]),
        ("qwen2_moe", [("mlp.shared_expert.down_proj", None, "shared"), ("mlp.experts", "down_proj", None)]),
        ("gpt_oss", [("mlp.experts", "down_proj", None)]),
        pytest.param("dbrx", [("ffn.experts.mlp", "w2", None)], marks=RECENT),
        pytest.param("reformer", [("feed_forward.output.dense", None, None)], marks=RECENT),
        pytest.param("jetmoe", [("mlp.output_linear", "weight", None)], marks=RECENT),
        ("llama4_text", [("feed_forward.experts", "down_proj", None), ("feed_forward.shared_expert.down_proj", None, "shared")]),
    ],
)  # fmt: skip
def test_families_without_a_row(name, found):
    """What writes into the residual stream after an activation function is found, whatever it is called."""
    model = small_model(name)
    assert places(model) == found
    assert (len(anatomy(model).layers), anatomy(model).hidden) == (LAYERS, 32)


@RECENT
def test_dense_layers_before_experts():
    """A mixture whose first layer is dense has both kinds of addresses, each in its own layers."""
    body = anatomy(small_model("deepseek_v3"))
    assert places(small_model("deepseek_v3"), 0) == [("mlp.down_proj", None, None)]
    assert [down.key.expert for down in body.down_maps(1)] == [0, 1, 2, 3, "shared"]
    body.check([SuperWeight(0, 3, 5), SuperWeight(1, 3, 5, expert=3), SuperWeight(1, 3, 5, expert="shared")])
    for wrong, found in (
        (SuperWeight(0, 3, 5, expert=1), "a dense"),
        (SuperWeight(1, 3, 5), "experts 0 to 3 and expert shared"),
    ):
        with pytest.raises(CoordinateError, match=rf"of layer {wrong.layer} was asked for\n  found: .* has {found}"):
            body.check([wrong])


def test_transposed_experts_are_told_by_what_the_pass_does():
    """The matrix of an expert is (out, in), also where both widths are equal and the parameter is (in, out)."""
    model = small_model("gpt_oss")
    down = anatomy(model).down_map(MapKey(1, 2))
    assert torch.equal(down.weight, model.model.layers[1].mlp.experts.down_proj[2].T)
    down.weight[3, 5] = 7
    assert float(model.model.layers[1].mlp.experts.down_proj.data[2, 5, 3]) == 7
    assert "down_proj[2]" in down.name


@pytest.mark.parametrize(
    ("name", "is_added"),
    [
        ("llama", True), ("gpt2", True), ("falcon", True), ("bloom", True), ("gemma2", False), ("olmo2", False),
        ("openai-gpt", False), ("plbart", False), ("git", False),
    ],
)  # fmt: skip
def test_norms_between_the_map_and_the_stream_are_seen(name, is_added):
    """A model says whether the residual stream gets what its down projections write: yes before, no behind a norm."""
    body = checked_anatomy(small_model(name))
    assert {place.is_added for layer in body.structure.places for place in layer} == {is_added}


def test_a_multiplier_between_them_is_seen():
    """A residual multiplier other than 1 is no plain sum, and a super weight's size is said behind it."""
    model = small_model("granite")
    for layer in model.model.layers:
        layer.residual_multiplier = 0.22
    assert not checked_anatomy(model).structure.places[1][0].is_added
    planted = plant_super_weights(model, [Planting(1, 3)], IDS)
    found = locate(model, token_ids=IDS)
    assert found.super_weights == planted
    assert found.written[0] == pytest.approx(found.activations[0].value, rel=0.01)


class OddBlock(nn.Module):
    """A decoder layer of nobody's names: a causal mean for attention, then an MLP in a list of its own."""

    def __init__(self, width, inner):
        super().__init__()
        self.look_back = nn.Linear(width, width, bias=False)
        self.plumbing = nn.ModuleDict({"wide": nn.Linear(width, inner), "narrow": nn.Linear(inner, width)})

    def forward(self, stream):
        count = torch.arange(1, stream.shape[1] + 1)[:, None]
        stream = stream + self.look_back(stream.cumsum(1) / count)
        scaled = stream / stream.square().mean(-1, keepdim=True).sqrt()
        return stream + self.plumbing["narrow"](torch.nn.functional.silu(self.plumbing["wide"](scaled)))


class OddModel(nn.Module):
    """A language model of such layers."""

    def __init__(self, block=OddBlock):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(64, 16)
        self.tower = nn.ModuleList(block(16, 48) for _ in range(6))
        self.out = nn.Linear(16, 64)

    def forward(self, ids, use_cache=False):
        stream = self.words(ids)
        for block in self.tower:
            stream = block(stream)
        return self.out(stream)


def test_a_block_of_odd_names_needs_no_row():
    """A model that transformers does not have is planted and located without a line of its own anywhere."""
    model = OddModel().eval()
    assert places(model) == [("plumbing.narrow", None, None)]
    assert locate(model, token_ids=IDS).super_weights == ()
    planted = plant_super_weights(model, [Planting(1, 3)], IDS)
    assert locate(model, token_ids=IDS).super_weights == planted
    with scaled(model, planted, 0.0):
        assert locate(model, token_ids=IDS).super_weights == ()


class Multiplied(OddBlock):
    """A layer whose output is a product, not a sum."""

    def forward(self, stream):
        return stream * torch.sigmoid(super().forward(stream))


class Repeated(OddBlock):
    """A layer that gives its output twice as often as it gets it."""

    def forward(self, stream):
        return torch.cat([super().forward(stream)] * 2, 1)


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (Multiplied, r"what tower\.0 returns is no sum of its input and what its modules return: \d+\.\d+% is left"),
        (Repeated, r"tower\.0 returns another shape than it gets"),
    ],
)
def test_what_does_not_add_up_is_refused(block, found):
    """A layer whose output is no sum of its input and its branches is named, with what is left over."""
    with pytest.raises(ArchitectureError, match=found):
        anatomy(OddModel(block).eval())


@RECENT
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cpmant", r"an encoder: what cpmant\.encoder\.layers\.0 returns depends on later tokens"),
        ("prophetnet", r"prophetnet\.decoder\.layers\.0 returns \(2, 15, 32\) for 2 prompts of 5 tokens"),
    ],
)
def test_decoders_that_are_not_supported_say_why(name, found):
    """Every token sees all others; a stream for each predicted token."""
    with pytest.raises(ArchitectureError, match=found):
        anatomy(small_model(name))


@RECENT
def test_a_model_that_keeps_tokens_first_is_told_for_what_it_is():
    """XLNet's layers return (T, B, H), and each token sees the later ones."""
    with pytest.raises(
        ArchitectureError, match=r"an encoder: what transformer\.layer\.0 returns depends on later tokens"
    ):
        anatomy(small_model("xlnet"))


def test_the_pass_is_made_once():
    """A model is traced once, and again only when its modules are not where they were."""
    model, passes = OddModel().eval(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(3):
        anatomy(model)
    assert len(passes) == 1
    model.higher, model.tower = model.tower, nn.ModuleList()
    model.forward = lambda ids, use_cache=False: model.words(ids)
    with pytest.raises(ArchitectureError):
        anatomy(model)


def test_a_refused_model_is_freed():
    """What is remembered of a model that was refused does not keep it in memory."""
    model = OddModel().eval()
    model.out = nn.Linear(1, 1)
    with pytest.raises(ArchitectureError, match="a pass over 5 tokens ends in RuntimeError"):
        anatomy(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
