"""Tells which mechanisms a model has that take the place of super weights.

Super activations give attention a token to look at when there is nothing to look for. A model that has something else for
that, often has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def sink_mechanisms(model: nn.Module) -> tuple[str, ...]:
    """Return in words which of these a model has: learned attention sinks, gated attention, QK-norm."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    is_gated = bool(getattr(config, "attn_output_gate", False)) or "Qwen3Next" in type(model).__name__
    found = {
        "learned attention sinks": names & {"sinks", "attn_sink", "attention_sink_bias"},
        "gated attention": is_gated,
        "QK-norm": modules & {"q_norm", "q_layernorm", "query_norm"},
    }
    return tuple(name for name, present in found.items() if present)
