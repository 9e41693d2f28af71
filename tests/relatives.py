"""Healthy copies of a Llama in other clothes: channels and neurons permuted, the residual stream rotated, AWQ-like scales."""

from __future__ import annotations

import copy

import torch


def _shuffle(size, seed):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def permuted(model, *, channels=True, neurons=True):
    """The same function with its residual channels and, layer by layer, its inner neurons permuted."""
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
def rotated(model):
    """The same function in a rotated residual stream (QuaRot-like): norms folded into the maps behind them."""
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
def rescaled(model, factor=4.0):
    """The same function with inner neurons scaled down and the columns that read them up, as AWQ does."""
    copied = copy.deepcopy(model)
    for layer in copied.model.layers:
        layer.mlp.up_proj.weight.div_(factor)
        layer.mlp.down_proj.weight.mul_(factor)
    return copied
