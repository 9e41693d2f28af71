"""A model with another configuration shares the weights of the old one, and computes what that configuration says."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from swcheck.lens.architecture.reconfigure import with_configuration

IDS = torch.arange(12)[None]


def small(kind, config, **fields):
    torch.manual_seed(0)
    return kind(config(vocab_size=64, **fields)).eval()


def llama(**fields):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return small(LlamaForCausalLM, LlamaConfig, **sizes, **fields)


def nobody(name):
    return f"no {name}"


def values(model, **fields):
    return json.loads(model.config.to_json_string(use_diff=False)) | fields


@pytest.mark.parametrize(
    "model",
    [llama(), llama(tie_word_embeddings=True), small(GPT2LMHeadModel, GPT2Config, n_embd=32, n_layer=2, n_head=2)],
)
@torch.no_grad()
def test_the_same_configuration_gives_the_same_model(model):
    """Bit by bit the same answer, from the same storage."""
    made = with_configuration(model, values(model), nobody)
    assert torch.equal(made(IDS).logits, model(IDS).logits)
    assert {p.data_ptr() for p in made.parameters()} == {p.data_ptr() for p in model.parameters()}


@pytest.mark.parametrize("field", [{"hidden_act": "gelu"}, {"rms_norm_eps": 0.5}, {"num_attention_heads": 2, "head_dim": 16, "num_key_value_heads": 2}])  # fmt: skip
@torch.no_grad()
def test_another_configuration_is_computed_with(field):
    """The answer is that of a model that was built so and loaded with the same weights."""
    model = llama()
    expected = type(model)(LlamaConfig.from_dict(values(model, **field))).eval()
    expected.load_state_dict(model.state_dict())
    made = with_configuration(model, values(model, **field), nobody)
    assert torch.equal(made(IDS).logits, expected(IDS).logits)
    assert not torch.equal(made(IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_a_layer_more_is_read_where_the_model_has_none():
    """Parameters that the model lacks are asked for by name."""
    whole = llama()
    cut = type(whole)(LlamaConfig.from_dict(values(whole, num_hidden_layers=1))).eval()
    cut.load_state_dict(whole.state_dict(), strict=False)
    made = with_configuration(cut, values(whole), whole.state_dict().__getitem__)
    assert torch.equal(made(IDS).logits, whole(IDS).logits)
    with pytest.raises(ValueError, match=r"^no model\.layers\.1\."):
        with_configuration(cut, values(whole), nobody)


def test_a_shape_that_the_weights_do_not_have_is_refused():
    """A configuration for other sizes is an error that names the parameter and both shapes."""
    model = llama()
    with pytest.raises(ValueError, match=r"gate_proj\.weight is \(48, 32\), that configuration wants \(64, 32\)"):
        with_configuration(model, values(model, intermediate_size=64), nobody)


def test_building_leaves_no_trace():
    """A configuration that cannot be built leaves modules registering their parameters as before."""
    model = llama()
    with pytest.raises(Exception):  # noqa: B017 - whatever transformers raises
        with_configuration(model, values(model, hidden_act="nonsense"), nobody)
    assert not any(p.is_meta for p in copy.deepcopy(llama()).parameters())
