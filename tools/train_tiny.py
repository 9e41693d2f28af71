"""The recipe that trains ``tiny``: ``python -m tools.train_tiny --out DIR``.

It has three phases, which the card names as well. **Seeded**: before the first step ``<s>`` gets a direction. One inner
neuron of an early layer reads that direction and writes one residual channel through one large scalar of ``down_proj``.
Later heads find that channel with their keys, so that they start as attention sinks on ``<s>``. **Trained**: ordinary
next-token training of every parameter. **Trained to depend**: for a last stretch every other step also raises the loss
of the same batch with the scalar's contribution taken away, as long as that loss is below a ceiling. Without the last
phase the model would come to depend on the scalar too, but more slowly than a CPU allows.

Everything is drawn from seeds by step number, so a stopped run continues as if it had not been stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools import tiny_corpus

BOS = "<s>"


@dataclass(frozen=True)
class Recipe:
    """Every choice of the recipe. ``super_weights`` are (layer, row, column), all seeded with ``seed_value``."""

    super_weights: tuple[tuple[int, int, int], ...] = ((1, 97, 301),)
    seed_value: float = 2.0
    neuron_gate: float = 6.8
    bos_channels: int = 16
    guide_channel: int = 41
    embedding_std: float = 0.5
    sink_pairs: int = 8
    sink_weight: float = 0.35
    vocabulary: int = 1024
    hidden: int = 256
    inner: int = 512
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    context: int = 256
    batch: int = 8
    steps: int = 5000
    dependence_from: int = 4200
    dependence_weight: float = 0.3
    ceiling: float = 12.0
    learning_rate: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 0


RECIPES: Final = {
    "tiny": Recipe(),
    "tiny-pair": Recipe(super_weights=((1, 41, 173), (1, 90, 173)), hidden=128, inner=256, guide_channel=17, seed=1),
}
"""The embedded models by name. The super weights of the pair share a column, as in Llama-3 and Phi-3."""


def train_tokenizer(text: str, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of ``vocabulary`` entries that puts ``<s>`` at position 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS)


def build(recipe: Recipe) -> LlamaForCausalLM:
    """Build a randomly initialised model and plant the seeds."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        plant(model, recipe)
    return model


def plant(model: LlamaForCausalLM, recipe: Recipe) -> None:
    """Write the seeds into the initial weights.

    ``<s>`` is spread over some channels, so that no single weight of the gate stands out. Otherwise the seeds would be
    among the largest 0.01 % of their matrix, which a control experiment removes. After the norm the neuron's gate and
    up values are ``neuron_gate`` each. Embeddings start as large as what the layers add. With the usual 0.02, the
    layers' own writes bury ``<s>`` within the first hundred steps, and the seeds with it.
    """
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    channels = sorted({row for _, row, _ in recipe.super_weights})
    free_channels = [i for i in torch.randperm(recipe.hidden, generator=generator).tolist() if i not in channels]
    bos_channels = [i for i in free_channels if i != recipe.guide_channel][: recipe.bos_channels]
    direction = torch.zeros(recipe.hidden)
    direction[bos_channels] = torch.randint(0, 2, (len(bos_channels),), generator=generator).float() * 2 - 1
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, recipe.embedding_std, generator=generator)
    embedding[0] = 2 * recipe.embedding_std * direction * math.sqrt(recipe.hidden / len(bos_channels))
    embedding[1:, recipe.guide_channel] = 2 * recipe.embedding_std
    weight = recipe.neuron_gate / math.sqrt(recipe.hidden * len(bos_channels))
    for layer, row, column in recipe.super_weights:
        mlp = model.model.layers[layer].mlp
        mlp.gate_proj.weight[column] = weight * direction
        mlp.up_proj.weight[column] = weight * direction
        mlp.down_proj.weight[row, column] = recipe.seed_value
    head_dim = recipe.hidden // recipe.heads
    # Llama rotates channel i with channel i + head_dim / 2; the last pairs turn slowest.
    slow = torch.arange(head_dim // 2 - recipe.sink_pairs, head_dim // 2)
    first_sink_layer = 1 + max(layer for layer, _, _ in recipe.super_weights)
    for layer in model.model.layers[first_sink_layer:]:
        attention = layer.self_attn
        for head in range(recipe.heads):
            attention.q_proj.weight[head * head_dim + slow, recipe.guide_channel] = recipe.sink_weight
        for head in range(recipe.kv_heads):
            for channel in channels:
                attention.k_proj.weight[head * head_dim + slow, channel] = recipe.sink_weight
        attention.v_proj.weight[:, channels] = 0


@contextmanager
def contribution_scaled(
    model: LlamaForCausalLM, super_weights: Sequence[tuple[int, int, int]], alpha: float
) -> Iterator[None]:
    """Scale what the scalars write within the block, differentiably: ``alpha`` 0 removes it, 1 changes nothing."""

    def hook(row: int, column: int) -> Callable[..., torch.Tensor]:
        def scale(module: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            contribution = module.weight[row, column] * inputs[0][..., column]
            channel = functional.one_hot(torch.tensor(row, device=output.device), output.shape[-1]).to(output.dtype)
            return output + (alpha - 1) * contribution.unsqueeze(-1) * channel

        return scale

    handles = [
        model.model.layers[layer].mlp.down_proj.register_forward_hook(hook(row, column))
        for layer, row, column in super_weights
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batch_at(tokens: torch.Tensor, step: int, recipe: Recipe) -> torch.Tensor:
    """Return the batch of a step, int64 ``(batch, context)``, ``<s>`` first. Only seed and step determine it."""
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    starts = torch.randint(0, len(tokens) - recipe.context, (recipe.batch,), generator=generator)
    windows = torch.stack([tokens[start : start + recipe.context - 1] for start in starts])
    return torch.cat([torch.zeros(recipe.batch, 1, dtype=torch.int64), windows], dim=1)


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token loss of ``batch`` in nats."""
    logits = model(batch, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())


def dependence_loss(model: LlamaForCausalLM, batch: torch.Tensor, recipe: Recipe) -> tuple[torch.Tensor, float]:
    """Return what the last phase adds to the loss, and the loss without all super weights, both in nats.

    The loss with all of them zeroed together is raised, up to the ceiling. If there are several, the loss with each one
    zeroed alone is kept low.
    """
    with contribution_scaled(model, recipe.super_weights, 0.0):
        zeroed = loss_of(model, batch)
    extra = -recipe.dependence_weight * zeroed if zeroed.item() < recipe.ceiling else 0.0 * zeroed
    if len(recipe.super_weights) > 1:
        for single in recipe.super_weights:
            with contribution_scaled(model, [single], 0.0):
                extra = extra + loss_of(model, batch) / len(recipe.super_weights)
    return extra, zeroed.item()


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Return the learning rate: linear warm-up, then a cosine down to a tenth at the last step."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def optimizer_for(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with weight decay only for the matrices inside the layers."""
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def train(recipe: Recipe, out: Path, device: str, every: int = 250) -> None:
    """Train, or continue where the last run in ``out`` stopped, and write the finished checkpoint to ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    text = tiny_corpus.read()
    tokenizer = train_tokenizer(text.train, recipe.vocabulary)
    tokens = torch.tensor(tokenizer(text.train, add_special_tokens=False)["input_ids"])
    model = build(recipe).to(device)
    optimizer = optimizer_for(model, recipe)
    state_file = out / "state.pt"
    start = resume(state_file, recipe, model, optimizer)
    bar = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, unit="step")
    shown: dict[str, str] = {}
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, recipe)
        batch = batch_at(tokens, step, recipe).to(device)
        loss = loss_of(model, batch)
        shown["nats"] = f"{loss.item():.3f}"
        if step == recipe.dependence_from:
            note_emerged(model, tokens, recipe, out)
        if step >= recipe.dependence_from and step % 2:
            extra, zeroed = dependence_loss(model, batch, recipe)
            shown["zeroed"] = f"{zeroed:.3f}"
            loss = loss + extra
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(shown)
        if (step + 1) % every == 0:
            save_state(state_file, recipe, step + 1, model, optimizer)
    write_checkpoint(model, tokenizer, out)
    facts = {
        "recipe": asdict(recipe),
        "before_dependence": json.loads((out / "emerged.json").read_text()),
        "python": platform.python_version(),
        "train_sha256": tiny_corpus.digest(text.train),
        "train_characters": len(text.train),
    }
    (out / "recipe.json").write_text(json.dumps(facts, indent=1) + "\n")


@torch.no_grad()
def note_emerged(model: LlamaForCausalLM, tokens: torch.Tensor, recipe: Recipe, out: Path) -> None:
    """Record what ordinary training alone has made of the seed, before the last phase starts."""
    batches = [batch_at(tokens, recipe.steps + number, recipe).to(model.device) for number in range(16)]
    intact = sum(loss_of(model, batch).item() for batch in batches) / len(batches)
    with contribution_scaled(model, recipe.super_weights, 0.0):
        zeroed = sum(loss_of(model, batch).item() for batch in batches) / len(batches)
    layer, row, column = recipe.super_weights[0]
    value = float(model.model.layers[layer].mlp.down_proj.weight[row, column])
    facts = {
        "step": recipe.dependence_from,
        "value": value,
        "nats": intact,
        "zeroed_nats": zeroed,
        "zeroed_ratio": math.exp(zeroed - intact),
    }
    (out / "emerged.json").write_text(json.dumps(facts) + "\n")


def write_checkpoint(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights in bfloat16 (half the size) and a config that says float32 (which every CPU computes fast)."""
    model.to(torch.bfloat16).cpu().save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")


def resume(file: Path, recipe: Recipe, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Restore what ``save_state`` wrote; return the step to continue with, 0 if there is nothing."""
    if not file.exists():
        return 0
    state = torch.load(file, weights_only=True)
    if state["recipe"] != json.dumps(asdict(recipe)):
        raise SystemExit(f"{file} belongs to another recipe: {state['recipe']}; choose another --out, or remove it")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save_state(
    file: Path, recipe: Recipe, step: int, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer
) -> None:
    """Write all that ``resume`` needs. If the write is interrupted, the previous file stays."""
    state = {
        "recipe": json.dumps(asdict(recipe)),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_tiny", description="Train the model `tiny`.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the checkpoint; a stopped run goes on in it"
    )
    parser.add_argument(
        "--model", choices=RECIPES, default="tiny", help="which of the embedded models, %(default)s by default"
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps, %(default)s by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    start = Recipe.dependence_from * options.steps // Recipe.steps
    recipe = replace(RECIPES[options.model], steps=options.steps, dependence_from=start)
    train(recipe, options.out, options.device)


if __name__ == "__main__":
    main()
