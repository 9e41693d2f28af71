"""What is shared among processes: the maps of transformers' plan, each with its whole output, or words why not."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Phi3Config

from swcheck.base.errors import EngineError, OptionError
from swcheck.loading.parallel.plan import WHOLE_OUTPUTS, shared_maps
from tests.versions import RECENT

pytestmark = RECENT

SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def empty(configuration):
    """The model of a configuration, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(configuration)


def test_every_linear_map_of_a_llama_is_shared_with_its_whole_output():
    """Those that transformers cuts by their inputs as well: no sum is split."""
    plan = shared_maps(empty(LlamaConfig(**SMALL)), 2, "small")
    attention = [f"model.layers.*.self_attn.{name}_proj" for name in "qkvo"]
    assert plan == dict.fromkeys(
        [*attention, *(f"model.layers.*.mlp.{name}_proj" for name in ("gate", "up", "down")), "lm_head"], WHOLE_OUTPUTS
    )


def test_a_head_that_is_the_embedding_stays_whole():
    """An embedding is looked up by rows, in every process."""
    plan = shared_maps(empty(LlamaConfig(**SMALL, tie_word_embeddings=True)), 2, "small")
    assert "lm_head" not in plan
    assert "model.layers.*.mlp.down_proj" in plan


def test_maps_that_transformers_fuses_are_shared_whole():
    """Query, key and value in one matrix, gate and up in another."""
    plan = shared_maps(empty(Phi3Config(**SMALL, pad_token_id=0)), 2, "small")
    assert {"model.layers.*.self_attn.qkv_proj", "model.layers.*.mlp.gate_up_proj"} <= plan.keys()


@pytest.mark.parametrize(
    ("count", "fitting"), [(3, "torchrun --nproc-per-node=2"), (5, "torchrun --nproc-per-node=4"), (32, "=16")]
)
def test_a_number_of_processes_that_does_not_divide_the_widths_is_refused(count, fitting):
    """With the first map that it does not divide, and the most processes that can share the model."""
    with pytest.raises(OptionError, match=f"tensor parallel among {count} processes, small") as caught:
        shared_maps(empty(LlamaConfig(**SMALL)), count, "small")
    assert "has 16 outputs" in caught.value.found
    assert caught.value.attempt.endswith(fitting)


def test_where_no_number_of_processes_fits_one_is_advised():
    """Widths that have no divisor in common."""
    with pytest.raises(OptionError) as caught:
        shared_maps(empty(LlamaConfig(**{**SMALL, "vocab_size": 65, "intermediate_size": 33})), 2, "small")
    assert caught.value.attempt == "one process, without --swcheck-tensor-parallel"


def test_experts_are_not_shared():
    """The styles that are not known here are named."""
    with pytest.raises(EngineError, match="tensor parallel, small") as caught:
        shared_maps(empty(MixtralConfig(**SMALL, num_local_experts=2)), 2, "small")
    assert "moe_tp_experts" in caught.value.found


def test_a_model_without_a_plan_is_refused():
    """transformers has none for it."""
    with pytest.raises(EngineError, match="tensor parallel, small") as caught:
        shared_maps(empty(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=64)), 2, "small")
    assert "transformers has no plan for gpt2" in caught.value.found
