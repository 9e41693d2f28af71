"""Small real models for tests: with super weights planted, with the sink where a test wants it, and with packed weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from tokenizers import processors
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from swcheck.base.records import SuperWeight
from swcheck.loading.tiny import CHECKPOINT

DELIMITERS: Final = ".,:;!?\n"


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


def plant(
    super_weights: Sequence[SuperWeight],
    *,
    layers: int = 6,
    hidden: int = 32,
    inner: int = 24,
    seed: int = 0,
    vocabulary: int = 64,
    tokens: Sequence[int] = (0,),
):
    """A random Llama whose ``tokens`` make exactly these weights write about 15 times their value.

    As in the recipe of ``tiny``, without training: token 0 is a direction of the last eight channels, the planted inner
    neurons read it through gate and up, and only the planted scalars let them write. Plant no row in these eight.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    direction = torch.zeros(hidden)
    direction[-8:] = torch.randint(0, 2, (8,)).float() * 2 - 1
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.1)
        model.model.embed_tokens.weight[list(tokens)] = 10 * direction
        for weight in super_weights:
            mlp = model.model.layers[weight.layer].mlp
            mlp.gate_proj.weight[weight.column] = direction * 4 / (8 * math.sqrt(hidden / 8))
            mlp.up_proj.weight[weight.column] = direction * 4 / (8 * math.sqrt(hidden / 8))
        for weight in super_weights:
            model.model.layers[weight.layer].mlp.down_proj.weight[weight.row, weight.column] = weight.value
    return model


SINK: Final = SuperWeight(1, 5, 7, 30.0)
"""What the models below hang their sink on."""


class SinkEmbedding(nn.Embedding):
    """An embedding that lets ``rule``, of int64 ``(B, T)``, choose the tokens that are the sink, by id and by place."""

    rule: Callable[[torch.Tensor], torch.Tensor]
    direction: torch.Tensor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.where(self.rule(ids)[..., None], self.direction, super().forward(ids))


def sinking(
    rule: Callable[[torch.Tensor], torch.Tensor], super_weights: Sequence[SuperWeight] = (SINK,)
) -> LlamaForCausalLM:
    """A planted Llama of tiny's vocabulary whose sink stands where ``rule`` says; two of them have the same weights."""
    model = plant(super_weights, vocabulary=1024)
    plain = model.model.embed_tokens
    embedding = SinkEmbedding(*plain.weight.shape)
    with torch.no_grad():
        embedding.direction = plain.weight[0].clone()
        embedding.weight.copy_(plain.weight)
        embedding.weight[0] = embedding.weight[1]
    embedding.rule = rule
    model.model.embed_tokens = embedding
    return model


def tokenizer(*, bos: bool = True):
    """Tiny's tokenizer; without BOS it adds nothing, as those of OLMo and Qwen."""
    found = AutoTokenizer.from_pretrained(CHECKPOINT)
    if not bos:
        found.backend_tokenizer.post_processor = processors.Sequence([])
    return found


def ids_of(texts: str) -> torch.Tensor:
    """The ids of single marks, int64."""
    found = tokenizer(bos=False)
    return torch.tensor([found(mark)["input_ids"][0] for mark in texts])


def on_bos(ids: torch.Tensor) -> torch.Tensor:
    """The sink on ``<s>``, wherever it stands."""
    return ids == 0


def on_first(ids: torch.Tensor) -> torch.Tensor:
    """The sink on the first token, whatever it is."""
    return (torch.arange(ids.shape[1]) == 0).expand_as(ids)


def on_first_delimiter(ids: torch.Tensor) -> torch.Tensor:
    """The sink on the first delimiter, and on that alone."""
    mark = torch.isin(ids, ids_of(DELIMITERS))
    return mark & (mark.cumsum(1) == 1)


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
