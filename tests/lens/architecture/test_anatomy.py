"""Where the layers and down projections of a model are, and which coordinates lie inside."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import MambaConfig, MambaForCausalLM, T5Config, T5ForConditionalGeneration

from swcheck.base.errors import ArchitectureError, CoordinateError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import Anatomy, anatomy
from swcheck.lens.architecture.storage import device_of
from tests.planted import Packed


class Wrapped(nn.Module):
    """A model inside another, as PEFT has it."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})


def layer(down):
    """A decoder layer that is nothing but a down projection."""
    return nn.ModuleDict({"mlp": nn.ModuleDict({"down_proj": down})})


def body_of(*downs):
    """A model of such layers."""
    return nn.ModuleDict({"layers": nn.ModuleList(downs)})


def test_a_llama(random_llama):
    """A Llama's anatomy lists its own layers and down projections, in order, with the two widths."""
    body = anatomy(random_llama)
    assert body.layers == tuple(random_llama.model.layers)
    assert body.down_projections == tuple(one.mlp.down_proj for one in random_llama.model.layers)
    assert (body.path, body.hidden, body.inner) == ("model.layers", 16, 32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped, torch.compile], ids=["bare", "wrapped", "compiled"])
def test_wrapping_changes_nothing_but_the_path(random_llama, wrap):
    """However a model is wrapped, the same modules are found, and ``down_name`` leads to them."""
    model = wrap(random_llama)
    body = anatomy(model)
    assert body.down_projections == anatomy(random_llama).down_projections
    for number, down in enumerate(body.down_projections):
        assert model.get_submodule(body.down_name(number)) is down


class Encoder(nn.Module):
    """A model whose only block lets a token see all others."""

    config = SimpleNamespace(is_decoder=False)

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(16, 4)
        self.blocks = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 6), "down": nn.Linear(6, 4)})])
        self.blocks[0].forward = self.block

    def block(self, x):
        return x + self.blocks[0]["down"](torch.relu(self.blocks[0]["up"](x.mean(1, keepdim=True) + x)))

    def forward(self, ids, use_cache=False):
        return self.blocks[0](self.embed(ids))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Linear(2, 2), "a pass over 5 tokens ends in TypeError"),
        (body_of(nn.Linear(2, 2)), "a pass over 5 tokens ends in TypeError"),
        (
            MambaForCausalLM(MambaConfig(vocab_size=16, hidden_size=8, state_size=4, num_hidden_layers=3)),
            "a state-space or",
        ),
        (
            T5ForConditionalGeneration(T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1)),
            "an encoder-decoder",
        ),
        (Encoder(), r"an encoder: what blocks\.0 returns depends on later tokens"),
    ],
    ids=["no model", "no forward", "state-space", "encoder-decoder", "encoder"],
)
def test_other_kinds_of_models_are_refused(model, found):
    """What is no causal language model with MLPs or experts is refused with its kind, each time that it is asked for."""
    words = rf"decoder layers write into one residual stream: \w+\n  found: {found}.*\n  try: .*families"
    for _ in range(2):
        with pytest.raises(ArchitectureError, match=words):
            anatomy(model.eval())


@given(st.integers(-2, 6), st.integers(-2, 18), st.integers(-2, 34))
def test_inside(random_llama, layer, row, column):
    """A coordinate is accepted exactly where the tensor has an element of non-negative indices."""
    body = anatomy(random_llama)
    inside = layer in range(4) and row in range(16) and column in range(32)
    try:
        body.check([SuperWeight(0, 0, 0), SuperWeight(layer, row, column)])
    except CoordinateError:
        assert not inside
    else:
        assert inside


@pytest.mark.parametrize(
    ("weight", "asked", "found"),
    [
        (SuperWeight(4, 0, 0), "layer 4 was asked for (super weight at layer 4 [0, 0])", "layers 0 to 3"),
        (SuperWeight(-1, 0, 0), "layer -1 was asked for", "layers 0 to 3"),
        (SuperWeight(0, 16, 0), "row 16 was asked for", "rows 0 to 15"),
        (SuperWeight(0, 0, 32), "column 32 was asked for", "columns 0 to 31"),
    ],
)
def test_outside(random_llama, weight, asked, found):
    """A coordinate outside the model is refused with its name, and the range the model has."""
    with pytest.raises(CoordinateError, match=rf"{re.escape(asked)}.*\n  found: this model has {found}\n  try: "):
        anatomy(random_llama).check([weight])


def test_layers_outside(random_llama):
    """A layer that the model does not have is refused, from either side."""
    body = anatomy(random_llama)
    body.check_layers(range(4))
    for asked in (-1, 4):
        words = f"layer {asked} was asked for\n  found: this model has layers 0 to 3"
        with pytest.raises(CoordinateError, match=words):
            body.check_layers([0, asked])


def test_widths_of_a_packed_module(random_llama):
    """A module that keeps no weight but says its widths has them in the anatomy."""
    body = anatomy(body_of(layer(Packed(random_llama.model.layers[0].mlp.down_proj))))
    assert (body.hidden, body.inner) == (16, 32)


def test_widths_of_the_config(random_llama):
    """Where no module says its widths, the model's config does."""
    model = body_of(layer(nn.Identity()))
    model.config = random_llama.config
    body = anatomy(model)
    assert (body.hidden, body.inner) == (16, 32)


def test_widths_unknown():
    """Where nobody says the widths, only negative coordinates and layers are known to lie outside."""
    body: Anatomy = anatomy(body_of(layer(nn.Identity())))
    body.check([SuperWeight(0, 10**6, 10**6)])
    with pytest.raises(CoordinateError, match=r"row -1 was asked for .*\n  found: this model has rows 0 to \?"):
        body.check([SuperWeight(0, -1, 0)])


def test_device(random_llama):
    """Token ids go to the device of the first parameter, of the first buffer where there is none, else to the CPU."""
    meta = nn.Linear(2, 2, device="meta")
    only_buffers = Packed(random_llama.model.layers[0].mlp.down_proj).to("meta")
    assert [device_of(model).type for model in (meta, only_buffers, nn.Identity())] == ["meta", "meta", "cpu"]
