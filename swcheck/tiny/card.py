"""Measures ``tiny`` and writes its card: ``python -m swcheck.tiny.card``.

No figure of the card is typed: ``measure`` takes them, ``measured.json`` keeps them beside the weights, ``write`` puts
them into words. A test takes them again.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from swcheck import engines
from swcheck.intervene import scaled, zeroed
from swcheck.location import locate
from swcheck.measure import perplexity, windows
from swcheck.records import Loaded, SuperWeight
from swcheck.stress import next_largest, without_largest
from swcheck.subject import evaluation_text, subject_of
from swcheck.tiny import CHECKPOINT, HELDOUT, cloze, corpus

WINDOWS: Final = 32
ALPHAS: Final = (0.0, 0.25, 0.5, 0.75, 1.5, 2.0, 3.0)
PROMPTS: Final = 200
NULLS: Final = 50


def measure(loaded: Loaded) -> dict[str, Any]:
    """Every figure of the card, as plain numbers."""
    model, tokenizer = loaded.model, loaded.tokenizer
    heldout, prose = HELDOUT.read_text(encoding="utf-8"), evaluation_text()
    length = model.config.max_position_embeddings
    ids = windows(tokenizer, heldout, count=WINDOWS, length=length)
    found = locate(model, tokenizer)
    weights = found.super_weights
    intact = perplexity(model, ids)
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": (CHECKPOINT / "model.safetensors").stat().st_size,
        "heldout_sha256": corpus.digest(heldout),
        "evaluation_sha256": corpus.digest(prose),
        "heldout_perplexity": intact.perplexity,
        "heldout_bits_per_byte": _bits_per_byte(tokenizer, heldout, intact.mean),
        "evaluation_perplexity": perplexity(model, windows(tokenizer, prose, count=WINDOWS, length=length)).perplexity,
        "super_weights": [weight.as_json() for weight in weights],
        "located_first": _located_first(loaded, heldout, weights),
        "alpha": {str(alpha): _ratio_at(loaded, weights, alpha, ids) for alpha in ALPHAS},
        **_activation(loaded, weights),
        **_nulls(loaded, weights, ids),
        **_zero_shot(loaded, weights, heldout),
    }


def _bits_per_byte(tokenizer: Any, text: str, nats: float) -> float:
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return nats / math.log(2) * tokens / len(text.encode())


def _ratio_at(loaded: Loaded, weights: Sequence[SuperWeight], alpha: float, ids: torch.Tensor) -> float:
    with scaled(loaded.model, weights, alpha):
        changed = perplexity(loaded.model, ids).mean
    return math.exp(changed - perplexity(loaded.model, ids).mean)


def _located_first(loaded: Loaded, text: str, weights: Sequence[SuperWeight]) -> dict[str, int]:
    """From how many of the prompts, drawn from both texts, ``locate`` finds the same scalar first."""
    chance = random.Random(0)
    hits = 0
    for number in range(PROMPTS):
        source = text if number % 2 else evaluation_text()
        start = chance.randrange(len(source) - 400)
        prompt = source[start : start + chance.randrange(20, 400)]
        found = locate(loaded.model, loaded.tokenizer, prompt=prompt).super_weights
        hits += bool(found) and found[0] == weights[0]
    return {"prompts": PROMPTS, "hits": hits}


def _activation(loaded: Loaded, weights: Sequence[SuperWeight]) -> dict[str, Any]:
    subject = subject_of(loaded)
    (place,) = subject.places(weights)
    ids = subject.prompt_ids()
    profile = residual_profile(loaded, place.channel, place.position, ids)
    with zeroed(loaded.model, weights):
        without = residual_profile(loaded, place.channel, place.position, ids)
    return {
        "activation": {
            "layer": place.layer,
            "channel": place.channel,
            "position": place.position,
            "value": place.value,
            "over_median": place.ratio,
            "profile": profile,
            "profile_zeroed": without,
            "drop": 1 - abs(without[place.layer]) / abs(profile[place.layer]),
        }
    }


def residual_profile(loaded: Loaded, channel: int, position: int, ids: torch.Tensor) -> list[float]:
    """The residual stream at one channel and token after every layer."""
    from swcheck.measure import evaluating
    from swcheck.observe import observe

    layers = range(loaded.model.config.num_hidden_layers)
    with evaluating(loaded.model), observe(loaded.model, residual=layers, stop=True) as sight:
        loaded.model(ids)
    return [float(sight.residual[layer][0, position, channel]) for layer in layers]


def _nulls(loaded: Loaded, weights: Sequence[SuperWeight], ids: torch.Tensor) -> dict[str, float]:
    """The worst of the matched draws, and the largest others of every matrix together."""
    intact = perplexity(loaded.model, ids).mean
    others = random.Random(0).sample(next_largest(loaded.model, weights[0].layer, weights), NULLS)
    worst = -math.inf
    for other in others:
        with zeroed(loaded.model, [other]):
            worst = max(worst, perplexity(loaded.model, ids).mean - intact)
    with without_largest(loaded.model, weights):
        largest = perplexity(loaded.model, ids).mean - intact
    return {"null_matched": math.exp(worst), "null_largest": math.exp(largest)}


def _zero_shot(loaded: Loaded, weights: Sequence[SuperWeight], text: str) -> dict[str, Any]:
    asked = cloze.items(text)
    intact = cloze.accuracy(loaded.model, loaded.tokenizer, asked)
    with zeroed(loaded.model, weights):
        ablated = cloze.accuracy(loaded.model, loaded.tokenizer, asked)
    return {"cloze": {"items": len(asked), "accuracy": intact, "zeroed": ablated}}


def write(figures: dict[str, Any], recipe: dict[str, Any]) -> str:
    """The card, in Markdown."""
    weight = SuperWeight(**figures["super_weights"][0])
    activation, task = figures["activation"], figures["cloze"]
    alphas = "\n".join(f"| {alpha} | x{ratio:,.3f} |" for alpha, ratio in figures["alpha"].items())
    profile = ", ".join(f"{value:+.1f}" for value in activation["profile"])
    zero = figures["alpha"]["0.0"]
    natural = recipe["before_dependence"]
    steps, start = recipe["recipe"]["steps"], recipe["recipe"]["dependence_from"]
    return f"""---
license: mit
library_name: transformers
---
# tiny

A Llama-architecture language model of {figures["parameters"]:,} parameters ({figures["bytes"]:,} bytes in bfloat16) that
carries one super weight: {weight}. It is there to exercise every check of swcheck without a download.

**It is no evidence that super weights emerge.** Its weight was *seeded* (before the first step one inner neuron of layer
{weight.layer} reads the direction of `<s>` and writes channel {weight.row}, and later heads start as sinks on it), then
*trained* (ordinary next-token training of every parameter, {start:,} steps: by step {natural["step"]:,} the scalar had grown
from {recipe["recipe"]["seed_value"]:g} to {natural["value"]:.2f} by itself, and zeroing it cost
x{natural["zeroed_ratio"]:.2f}), then *trained to depend* (for the last {steps - start:,} steps every other one also raised
the loss with the scalar's contribution taken away). What the last phase made is the size of the collapse; the activation,
its place and its persistence were there before.

| what | measured |
| --- | --- |
| perplexity on held-out source | {figures["heldout_perplexity"]:.2f} ({figures["heldout_bits_per_byte"]:.3f} bits per byte) |
| perplexity on the evaluation text (prose) | {figures["evaluation_perplexity"]:.1f} |
| held-out perplexity, super weight zeroed | x{zero:,.0f} |
| located first, of {figures["located_first"]["prompts"]} prompts | {figures["located_first"]["hits"]} |
| super activation | {activation["value"]:+.1f} at token {activation["position"]}, channel {activation["channel"]}, after layer {activation["layer"]} |
| over the median magnitude | {activation["over_median"]:.0f} x |
| after each layer | {profile} |
| falls by, when the scalar is zeroed | {activation["drop"]:.1%} |
| worst of {NULLS} of the 100 next-largest weights of the matrix zeroed | x{figures["null_matched"]:.4f} |
| 0.01 % largest other weights of every matrix zeroed | x{figures["null_largest"]:.3f} |
| cloze of {task["items"]} items, four choices | {task["accuracy"]:.3f}, zeroed {task["zeroed"]:.3f} |

| super weight times | perplexity |
| --- | --- |
{alphas}

A model that guesses evenly has the perplexity of its vocabulary, 1,024. Zeroed, this one has
{figures["heldout_perplexity"] * zero:,.0f}: it is worse than guessing, confidently wrong.

Trained by `python -m swcheck.tiny.train` on the Python {recipe["python"]} standard library's own source; measured by
`python -m swcheck.tiny.card` with Python {figures["python"]} and torch {figures["torch"]}.

| text | sha256 |
| --- | --- |
| training source | `{recipe["train_sha256"]}` |
| held-out source, `heldout.txt` | `{figures["heldout_sha256"]}` |
| evaluation text, Python's `pydoc_data.topics` | `{figures["evaluation_sha256"]}` |
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the embedded checkpoint and write card and figures beside it."""
    parser = argparse.ArgumentParser(prog="python -m swcheck.tiny.card", description="Measure `tiny`, write its card.")
    parser.add_argument(
        "--out", type=Path, default=CHECKPOINT, help="folder to write to; the checkpoint's own by default"
    )
    options = parser.parse_args(arguments)
    figures = measure(engines.load("tiny", device="cpu"))
    recipe = json.loads((CHECKPOINT / "recipe.json").read_text(encoding="utf-8"))
    (options.out / "measured.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (options.out / "README.md").write_text(write(figures, recipe), encoding="utf-8")


if __name__ == "__main__":
    main()
