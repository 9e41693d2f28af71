"""Copies of a Llama that compute the same: channels and neurons permuted, the stream rotated or scaled, AWQ-like scales."""

from __future__ import annotations

import copy
from typing import Any

import torch

from swcheck.base.errors import OptionError


def check_layout(model: Any) -> None:
    """Raise ``OptionError`` unless the model has the modules of a Llama with a head of its own, and no biases."""
    wanted = {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    layers = getattr(getattr(model, "model", None), "layers", None)
    norms = {"input_layernorm", "post_attention_layernorm"}
    found = {} if layers is None else {name.rpartition(".weight")[0] for name in layers[0].state_dict()}
    others = {"self_attn.k_proj", "self_attn.v_proj"}
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    if set(found) != wanted | others | norms or tied:
        raise OptionError("the modules of a Llama with a head of its own", type(model).__name__, "another candidate")


def _shuffle(size: int, seed: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def permuted(model: Any, *, channels: bool = True, neurons: bool = True) -> Any:
    """Return the same function with its residual channels and, layer by layer, its inner neurons permuted."""
    check_layout(model)
    copied = copy.deepcopy(model)
    hidden, inner = model.config.hidden_size, model.config.intermediate_size
    order = _shuffle(hidden, 1) if channels else torch.arange(hidden)
    turn = _shuffle(inner, 2) if neurons else torch.arange(inner)
    copied.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[:, order])
    copied.lm_head.weight.copy_(model.lm_head.weight[:, order])
    copied.model.norm.weight.copy_(model.model.norm.weight[order])
    for new, old in zip(copied.model.layers, model.model.layers, strict=True):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            getattr(new, norm).weight.copy_(getattr(old, norm).weight[order])
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(new.self_attn, name).weight.copy_(getattr(old.self_attn, name).weight[:, order])
        new.self_attn.o_proj.weight.copy_(old.self_attn.o_proj.weight[order])
        for name in ("gate_proj", "up_proj"):
            getattr(new.mlp, name).weight.copy_(getattr(old.mlp, name).weight[turn][:, order])
        new.mlp.down_proj.weight.copy_(old.mlp.down_proj.weight[order][:, turn])
    return copied


@torch.no_grad()
def rotated(model: Any) -> Any:
    """Return the same function in a rotated residual stream (QuaRot-like): norms folded into the maps behind them."""
    check_layout(model)
    copied = copy.deepcopy(model)
    size = model.config.hidden_size
    turn = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(3)))[0]
    copied.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ turn)
    copied.lm_head.weight.copy_((model.lm_head.weight * model.model.norm.weight) @ turn)
    copied.model.norm.weight.fill_(1)
    for new, old in zip(copied.model.layers, model.model.layers, strict=True):
        first, second = old.input_layernorm.weight, old.post_attention_layernorm.weight
        new.input_layernorm.weight.fill_(1)
        new.post_attention_layernorm.weight.fill_(1)
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(new.self_attn, name).weight.copy_((getattr(old.self_attn, name).weight * first) @ turn)
        new.self_attn.o_proj.weight.copy_(turn.T @ old.self_attn.o_proj.weight)
        for name in ("gate_proj", "up_proj"):
            getattr(new.mlp, name).weight.copy_((getattr(old.mlp, name).weight * second) @ turn)
        new.mlp.down_proj.weight.copy_(turn.T @ old.mlp.down_proj.weight)
    return copied


@torch.no_grad()
def rescaled(model: Any, factor: float = 4.0) -> Any:
    """Return the same function with inner neurons scaled down and the columns that read them up, as AWQ does."""
    copied = copy.deepcopy(model)
    for layer in copied.model.layers:
        layer.mlp.up_proj.weight.div_(factor)
        layer.mlp.down_proj.weight.mul_(factor)
    return copied


@torch.no_grad()
def with_larger_stream(model: Any, factor: float) -> Any:
    """Return the same function with a residual stream that is ``factor`` times as large; each norm divides it again."""
    check_layout(model)
    config = copy.deepcopy(model.config)
    config.rms_norm_eps *= factor**2
    copied = type(model)(config).to(model.dtype).eval()
    copied.load_state_dict(model.state_dict())
    copied.model.embed_tokens.weight.mul_(factor)
    for layer in copied.model.layers:
        layer.self_attn.o_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.mul_(factor)
    return copied
