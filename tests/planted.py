"""Small real models for the tests of the lower rooms: one with super weights planted, one module that packs its weight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from swcheck.records import SuperWeight


class Packed(nn.Module):
    """A linear map kept as int8 codes and one float32 scale per row: it has no ``weight``, and is no ``nn.Linear``."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        weight = plain.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("codes", (weight / scale).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, (self.codes * self.scale).to(x.dtype))

    def unpacked(self) -> nn.Linear:
        """The plain layer that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False)
        plain.weight = nn.Parameter(self.codes * self.scale)
        return plain


def plant(super_weights: Sequence[SuperWeight], *, layers: int = 6, hidden: int = 32, inner: int = 24, seed: int = 0):
    """A random Llama whose token 0 makes exactly these weights write about 15 times their value.

    As in the recipe of ``tiny``, without training: token 0 is a direction of the last eight channels, the planted inner
    neurons read it through gate and up, and only the planted scalars let them write. Plant no row in these eight.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    direction = torch.zeros(hidden)
    direction[-8:] = torch.randint(0, 2, (8,)).float() * 2 - 1
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.1)
        model.model.embed_tokens.weight[0] = 10 * direction
        for weight in super_weights:
            mlp = model.model.layers[weight.layer].mlp
            mlp.gate_proj.weight[weight.column] = direction * 4 / (8 * math.sqrt(hidden / 8))
            mlp.up_proj.weight[weight.column] = direction * 4 / (8 * math.sqrt(hidden / 8))
        for weight in super_weights:
            model.model.layers[weight.layer].mlp.down_proj.weight[weight.row, weight.column] = weight.value
    return model


class TupleLayer(nn.Module):
    """A decoder layer of the old form: it takes the residual stream by name, and gives it first in a tuple."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, inner, bias=False)
        self.mlp = nn.ModuleDict({"down_proj": nn.Linear(inner, hidden, bias=False)})

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return hidden_states + self.mlp["down_proj"](functional.silu(self.up(hidden_states))), None


class TupleModel(nn.Module):
    """A model of such layers, and of nothing else."""

    def __init__(self, layers: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, hidden)
        self.layers = nn.ModuleList(TupleLayer(hidden, inner) for _ in range(layers))

    def forward(self, token_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        hidden = self.embed(token_ids)
        for layer in self.layers:
            hidden = layer(hidden_states=hidden)[0]
        return hidden


def tuple_model(layers: int = 2, hidden: int = 8, inner: int = 6) -> TupleModel:
    """A ``TupleModel`` of fixed weights."""
    torch.manual_seed(0)
    return TupleModel(layers, hidden, inner)
