"""The references of the benchmark of causes: small models of several families, with a planted super weight."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.nn import functional
from transformers import AutoTokenizer

from swcheck import Loaded, Planting, plant_super_weights
from swcheck.base.evaluation_text import evaluation_text
from swcheck.lens.architecture.anatomy import checked_anatomy
from swcheck.lens.tokens import token_windows
from swcheck.loading.tiny import CHECKPOINT
from swcheck.superweights.locating.locate import PROMPT
from swcheck.testing.planting import visited_experts
from tools.small_models import small_model

FAMILIES: Final = ("mixtral", "gemma2", "llama", "gpt2", "qwen2", "phi3", "olmo2", "gpt_neox", "falcon", "bloom")

LABELLED: Final = 50_000
"""The first characters of the evaluation text are kept for labels."""

STEPS, TOKENS, RATE = 300, 1024, 1e-2


def planted_family(model_type: str, text: str | None = None) -> Loaded:
    """A small model of a type with a planted super weight, whose head alone is trained, so that it predicts a text.

    Its layers stay random: they are a reservoir that the head reads. So any fault in them costs nats.
    """
    text = evaluation_text()[LABELLED:] if text is None else text
    model, tokens = small_model(model_type, vocabulary=1024), AutoTokenizer.from_pretrained(CHECKPOINT)
    table = model.get_input_embeddings().weight.data
    table[0] = table[1:].std() * torch.randn(table.shape[1])  # the padding row of the type is BOS here
    untie(model)
    enlarge(model)
    prompt = torch.tensor([tokens(PROMPT)["input_ids"]])
    expert = next(iter(visited_experts(model, 1, prompt)), None)
    plant_super_weights(model, [Planting(1, 3, expert=expert)], prompt)
    train_head(model, token_windows(tokens, text, count=768, length=64))
    return Loaded(model, tokens, model_type, text)


def enlarge(model: Any) -> None:
    """Make the matrices of the layers as large as keeps the size of what they read, in place; they start far smaller."""
    with torch.no_grad():
        for layer in checked_anatomy(model).layers:
            for parameter in layer.parameters():
                if parameter.ndim > 1:
                    parameter *= parameter.shape[-1] ** -0.5 / parameter.std().clamp_min(1e-9)


def untie(model: Any) -> None:
    """Give a model a head of its own, in place."""
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False


def train_head(model: Any, ids: torch.Tensor) -> None:
    """Train the head of a model on windows ``(B, T)``, in place, with Adam; what it reads is computed once."""
    head, seen = model.get_output_embeddings(), []
    hook = head.register_forward_pre_hook(lambda _module, args: seen.append(args[0][:, :-1].flatten(0, 1)))
    with torch.no_grad():
        model(ids)
    hook.remove()
    inputs, wanted = torch.cat(seen), ids[:, 1:].flatten()
    weight = (0.01 * torch.randn_like(head.weight)).requires_grad_()
    drawn, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam([weight], RATE)
    for _ in range(STEPS):
        batch = torch.randint(0, len(wanted), (TOKENS,), generator=drawn)
        loss = functional.cross_entropy(functional.linear(inputs[batch], weight), wanted[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        head.weight.copy_(weight)
