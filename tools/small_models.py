"""Small random models of every causal-LM type of transformers, from its own configuration with small sizes."""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES: Final = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
HIDDEN, INNER, LAYERS, EXPERTS, VOCABULARY = 32, 80, 6, 4, 64

SIZES: Final[dict[str, Any]] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "word_embed_proj_dim", "lru_width"), HIDDEN),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "index_n_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "inner_dim", "ffn_hidden_size", "dff", "dim_ff"), INNER),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size"), INNER),
    **dict.fromkeys(("intermediate_size_mlp", "shared_expert_intermediate_size"), INNER),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "prefix_dense_intermediate_size"), INNER),
    **dict.fromkeys(("head_dim", "global_head_dim", "dim_head", "q_lora_rank", "kv_lora_rank", "v_head_dim"), 16),
    **dict.fromkeys(("index_head_dim", "mamba_d_head", "mamba_head_dim", "linear_key_head_dim"), 16),
    **dict.fromkeys(("linear_value_head_dim",), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "index_topk", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_dt_rank"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "mamba_expand"), 2),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "n_shared_experts", "n_group", "topk_group", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("first_k_dense_replace",), 1),
    "hidden_size_per_layer_input": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Values of configuration fields, where a type has them."""

VOCABULARY_FIELDS: Final = (
    "vocab_size", "vocab_size_per_layer_input", "n_positions", "max_position_embeddings", "n_ctx", "max_seq_len",
)  # fmt: skip
"""Fields that get the size of the vocabulary."""

OWN_SIZES: Final[dict[str, dict[str, Any]]] = {
    **{name: {"head_dim": 8} for name in ("deepseek_v3", "youtu", "axk1")},
    **{name: {"head_dim": 8, "num_key_value_heads": 2} for name in ("deepseek_v32", "glm_moe_dsa", "axk2")},
    "deepseek_v2": {"head_dim": 8, "num_experts_per_tok": 2, "topk_method": "greedy"},
    **{name: {"per_layer_config": None} for name in ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")},
    "diffllama": {"num_key_value_heads": 2},
    "kimi_linear": {"num_experts_per_token": 2, "num_experts": EXPERTS, "linear_head_dim": 16, "linear_num_heads": 2},
    "trocr": {"decoder_layers": LAYERS, "decoder_attention_heads": 2, "decoder_ffn_dim": INNER},
    "rwkv": {"attention_hidden_size": HIDDEN},
    "laguna": {"num_attention_heads_per_layer": None},
    "longcat_flash": {"qk_head_dim": 16, "head_dim": 8, "num_key_value_heads": 2, "zero_expert_num": 0},
    "zaya": {"num_experts_per_tok": 1},
    **{name: {"head_dim": 16} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "dbrx": {
        "_name_or_path": ..., "output_attentions": ...,
        "attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": INNER, "moe_num_experts": EXPERTS, "moe_top_k": 2, "ffn_act_fn": {"name": "silu"}},
    },
    "dots1": {"n_shared_experts": 1, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    **{
        name: {
            "intermediate_size": [INNER] * LAYERS, "activation_sparsity_pattern": [0.0] * LAYERS, "num_kv_shared_layers": 0,
            "laurel_rank": 8,
        }
        for name in ("gemma3n", "gemma3n_text")
    },
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
        },
        "head_dim": 128,
    },
    **{
        name: {
            "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
            "indexer_compress_ratio": 2, "hc_lowrank": 8, "ple_embed_dim": 16, "heads_per_ngram": 2,
        }
        for name in ("qwen4_exp", "qwen4_exp_text")
    },
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * (LAYERS // 2), "attention_head_dim": 32,
              "attention_hidden_size": 64, "num_key_value_heads": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "nemotron": {"num_key_value_heads": 1, "head_dim": 16},
    "plbart": {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": INNER},
    "whisper": {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": INNER, "decoder_layers": LAYERS},
    "xlnet": {"d_head": 16, "d_inner": INNER},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8},
    "reformer": {
        "is_decoder": True, "axial_pos_embds": False, "num_buckets": 2, "attn_layers": ["local"] * LAYERS, "feed_forward_size": INNER,
        "attention_head_size": 16,
    },
    "hrm_text": {  # matrices that do to a narrow stream what 0.02 does to a wide one
        "num_layers_per_stack": LAYERS, "num_hidden_layers": 8 * LAYERS, "initializer_range": 0.1, "embedding_scale": 10.0,
    },
    "xlstm": {"embedding_dim": HIDDEN, "num_blocks": LAYERS, "ffn_round_up_to_multiple_of": 8, "chunk_size": 64},
    "blt": {"encoder_hash_byte_group_vocab": 64, "hidden_size_global": HIDDEN, "vocab_size": 260, "encoder_cross_output_size": HIDDEN},
    "codegen": {"rotary_dim": 8, "n_head": 4},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]], "num_layers": LAYERS, "attention_layers": ...},
    "falcon_h1": {"mamba_d_ssm": 64},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "mlp", "full_attention", "moe", "mlp"]},
    "zamba2": {
        "attention_head_dim": 32, "attention_hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2,
        "mamba_headdim": 16, "n_mamba_heads": 4, "hybrid_layer_ids": [1, 3, 5],
        "layers_block_type": ["mamba", "hybrid"] * (LAYERS // 2),
    },
}  # fmt: skip
"""Fields of single types, set also where the default configuration does not have them; ``...`` leaves one out."""

PER_LAYER: Final = ("layer_types", "mlp_layer_types", "layers_block_type", "moe_layer_pattern", "block_types")


def small_model(model_type: str, seed: int = 0, *, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """Return a random model of a type, float32 on the CPU, in evaluation mode. Raises whatever its configuration raises."""
    kind = CONFIG_MAPPING[model_type]
    own = OWN_SIZES.get(model_type, {})
    sizes = {**SIZES, **dict.fromkeys(VOCABULARY_FIELDS, vocabulary), **own}
    fields = {**_shrunk(kind().to_dict(), sizes), **own}
    if isinstance(fields.get("text_config"), dict):
        fields["text_config"] |= own
    config = kind(**{name: value for name, value in fields.items() if value is not ...})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    if model_type == "xmod":
        model.set_default_language(config.languages[0])
    if model_type == "xlstm":  # its gates begin at zero, and let nothing through
        for block in model.backbone.blocks:
            block.ffn.proj_up_gate.reset_parameters()
    return model


def _shrunk(fields: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """Return configuration fields with small sizes, those of inner configurations as well."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name in {"model_type", "transformers_version"} or sizes.get(name) is ...:
            continue
        if name.endswith("_config") and isinstance(value, dict):
            found[name] = _shrunk(value, sizes)
        elif name in sizes and value is not None and not isinstance(value, list | dict):
            found[name] = sizes[name]
        elif name in PER_LAYER and isinstance(value, list):
            found[name] = value[: sizes["num_hidden_layers"]]
        else:
            found[name] = value
    return found
