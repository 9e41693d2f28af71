"""Measures an embedded model and writes its card: ``python -m tools.tiny_card --model tiny``.

No figure of the card is typed by hand. ``measure`` takes them, ``measured.json`` keeps them beside the weights, and
``write`` puts them into words. A test measures them again.
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
from torch import nn

from swcheck.base.evaluation_text import evaluation_text
from swcheck.base.records import Loaded, SuperWeight
from swcheck.lens.intervene import scaled, zeroed
from swcheck.lens.likelihood import perplexity
from swcheck.lens.nulls import next_largest, without_largest
from swcheck.lens.tokens import token_windows
from swcheck.loading import engines
from swcheck.loading.tiny import CHECKPOINTS, HELDOUT
from swcheck.study.zeroshot import cloze
from swcheck.superweights.locating.locate import locate
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.residual_stream import super_activations
from swcheck.superweights.subject.as_subject import as_subject
from tools import tiny_corpus

WINDOWS: Final = 32
ALPHAS: Final = (0.0, 0.25, 0.5, 0.75, 1.5, 2.0, 3.0)
PROMPTS: Final = 200
NULLS: Final = 50
ITEMS: Final = 400


def measure(loaded: Loaded, share: int = 1) -> dict[str, Any]:
    """Return every figure of the card, as plain numbers.

    ``share`` n draws only one in n of the matched weights and of the cloze items, which cost most of the time: the worst
    of these draws is at most the card's, the accuracy is an estimate of the card's.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    heldout, prose = HELDOUT.read_text(encoding="utf-8"), evaluation_text()
    length = model.config.max_position_embeddings
    ids = token_windows(tokenizer, heldout, count=WINDOWS, length=length)
    found = locate(model, tokenizer)
    weights = found.super_weights
    intact = perplexity(model, ids)

    def ratio(changed: Sequence[SuperWeight], alpha: float = 0.0) -> float:
        with scaled(model, changed, alpha):
            return math.exp(perplexity(model, ids).mean - intact.mean)

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": (Path(loaded.source) / "model.safetensors").stat().st_size,
        "heldout_sha256": tiny_corpus.digest(heldout),
        "evaluation_sha256": tiny_corpus.digest(prose),
        "heldout_perplexity": intact.perplexity,
        "heldout_bits_per_byte": _bits_per_byte(tokenizer, heldout, intact.mean),
        "evaluation_perplexity": perplexity(
            model, token_windows(tokenizer, prose, count=WINDOWS, length=length)
        ).perplexity,
        "super_weights": [weight.as_json() for weight in weights],
        "located": _locating_counts(loaded, heldout, weights),
        "alone": [ratio([weight]) for weight in weights],
        "alpha": {str(alpha): ratio(weights, alpha) for alpha in ALPHAS},
        "silenced": ratio(_columns_of(model, weights)),
        "activations": _measure_activations(loaded, weights),
        **_measure_nulls(loaded, weights, ids, NULLS // share),
        **_measure_cloze(loaded, weights, heldout, ITEMS // share),
    }


def _bits_per_byte(tokenizer: Any, text: str, nats: float) -> float:
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return nats / math.log(2) * tokens / len(text.encode())


def _columns_of(model: nn.Module, weights: Sequence[SuperWeight]) -> list[SuperWeight]:
    """Return every scalar of the super weights' columns: zeroed together they silence their neurons."""
    columns = {(weight.layer, weight.column) for weight in weights}
    return [SuperWeight(layer, row, column) for layer, column in columns for row in range(model.config.hidden_size)]


def _locating_counts(loaded: Loaded, text: str, weights: Sequence[SuperWeight]) -> dict[str, int]:
    """Count the prompts, drawn from both texts, on which ``locate`` puts a super weight first, or finds exactly all."""
    generator = random.Random(0)
    first = exact = 0
    for number in range(PROMPTS):
        source = text if number % 2 else evaluation_text()
        start = generator.randrange(len(source) - 400)
        prompt = source[start : start + generator.randrange(20, 400)]
        found = locate(loaded.model, loaded.tokenizer, prompt=prompt).super_weights
        first += bool(found) and found[0] in weights
        exact += set(found) == set(weights)
    return {"prompts": PROMPTS, "first": first, "all": exact}


def _measure_activations(loaded: Loaded, weights: Sequence[SuperWeight]) -> list[dict[str, Any]]:
    subject = as_subject(loaded)
    ids = prompt_ids(subject)
    found = []
    for place in super_activations(subject, weights):
        profile = residual_profile(loaded, place.channel, place.position, ids)
        with zeroed(loaded.model, weights):
            profile_zeroed = residual_profile(loaded, place.channel, place.position, ids)
        found.append(
            {
                "layer": place.layer,
                "channel": place.channel,
                "position": place.position,
                "value": place.value,
                "over_median": place.ratio,
                "profile": profile,
                "profile_zeroed": profile_zeroed,
                "drop": 1 - abs(profile_zeroed[place.layer]) / abs(profile[place.layer]),
            }
        )
    return found


def residual_profile(loaded: Loaded, channel: int, position: int, ids: torch.Tensor) -> list[float]:
    """Return the residual stream at one channel and token after every layer."""
    from swcheck.lens.architecture.storage import evaluating
    from swcheck.lens.observe import observe

    layers = range(loaded.model.config.num_hidden_layers)
    with evaluating(loaded.model), observe(loaded.model, residual=layers, stop=True) as sight:
        loaded.model(ids)
    return [float(sight.residual[layer][0, position, channel]) for layer in layers]


def _measure_nulls(loaded: Loaded, weights: Sequence[SuperWeight], ids: torch.Tensor, draws: int) -> dict[str, float]:
    """Return the perplexity ratios of the two nulls: the worst draw of matched weights, and the largest others.

    A draw has as many weights as there are super weights, from their matrix.
    """
    intact = perplexity(loaded.model, ids).mean
    per_draw = len(weights)
    others = random.Random(0).sample(next_largest(loaded.model, weights[0].layer, weights), NULLS * per_draw)
    worst_rise = -math.inf
    for number in range(draws):
        with zeroed(loaded.model, others[number * per_draw : (number + 1) * per_draw]):
            worst_rise = max(worst_rise, perplexity(loaded.model, ids).mean - intact)
    with without_largest(loaded.model, weights):
        largest_rise = perplexity(loaded.model, ids).mean - intact
    return {"null_matched": math.exp(worst_rise), "null_largest": math.exp(largest_rise)}


def _measure_cloze(loaded: Loaded, weights: Sequence[SuperWeight], text: str, count: int) -> dict[str, Any]:
    questions = cloze.items(text, ITEMS)[:count]
    accuracy = cloze.accuracy(loaded.model, loaded.tokenizer, questions)
    with zeroed(loaded.model, weights):
        accuracy_zeroed = cloze.accuracy(loaded.model, loaded.tokenizer, questions)
    return {"cloze": {"items": len(questions), "accuracy": accuracy, "zeroed": accuracy_zeroed}}


def write(figures: dict[str, Any], recipe: dict[str, Any], name: str = "tiny") -> str:
    """Return the card of one embedded model, in Markdown."""
    return "\n".join(
        [
            _header_text(figures, name),
            _training_text(figures, recipe),
            _measured_tables(figures),
            _footer_text(figures, recipe, name),
        ]
    )


def _weights(figures: dict[str, Any]) -> list[SuperWeight]:
    return [SuperWeight(**weight) for weight in figures["super_weights"]]


def _header_text(figures: dict[str, Any], name: str) -> str:
    weights = _weights(figures)
    size = f"{figures['parameters']:,} parameters ({figures['bytes']:,} bytes in bfloat16)"
    if len(weights) == 1:
        super_weight_text = (
            f"""one super weight: {weights[0]}. It is there to exercise every check of swcheck without a download."""
        )
    else:
        alone = " and ".join(f"x{ratio:.3f}" for ratio in figures["alone"])
        super_weight_text = f"""{len(weights)} super weights in one column: {" and ".join(map(str, weights))}.
Zeroed alone each is harmless (perplexity {alone}), together they are deadly (x{figures["alpha"]["0.0"]:,.0f}): it is
there to prove, without a download, that a check judges sets, not scalars."""
    return f"""---
license: mit
library_name: transformers
---
# {name}

A Llama-architecture language model of {size} that
carries {super_weight_text}
"""


def _training_text(figures: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Say how the weights were made: seeded, trained, trained to depend."""
    weights, natural = _weights(figures), recipe["before_dependence"]
    steps, start = recipe["recipe"]["steps"], recipe["recipe"]["dependence_from"]
    channels = " and ".join(str(weight.row) for weight in weights)
    seed, value, ratio = recipe["recipe"]["seed_value"], natural["value"], natural["zeroed_ratio"]
    change = "grown" if value > seed else "gone"
    if len(weights) == 1:
        return f"""**It is no evidence that super weights emerge.** Its weight was *seeded* (before the first step one inner neuron of layer
{weights[0].layer} reads the direction of `<s>` and writes channel {channels}, and later heads start as sinks on it), then
*trained* (ordinary next-token training of every parameter, {start:,} steps: by step {natural["step"]:,} the scalar had {change}
from {seed:g} to {value:.2f} by itself, and zeroing it cost
x{ratio:.2f}), then *trained to depend* (for the last {steps - start:,} steps every other one also raised
the loss with the scalar's contribution taken away). What the last phase made is the size of the collapse; the activation,
its place and its persistence were there before.
"""
    return f"""**It is no evidence that super weights emerge.** Its weights were *seeded* (before the first step one inner neuron of
layer {weights[0].layer} reads the direction of `<s>` and writes channels {channels}, and later heads start as sinks on them),
then *trained* (ordinary next-token training of every parameter, {start:,} steps: by step {natural["step"]:,} the first had
{change} from {seed:g} to {value:.2f} by itself, and zeroing all together cost x{ratio:.2f}), then *trained to depend* (for the
last {steps - start:,} steps every other one also raised the loss with what all of them write taken away, and lowered it with
what each one alone writes taken away). That either is enough, and the size of the collapse, are the work of the last phase.
"""


def _measured_tables(figures: dict[str, Any]) -> str:
    weights, task, located = _weights(figures), figures["cloze"], figures["located"]
    many = len(weights) > 1
    rows = [
        ("perplexity on held-out source", f"{figures['heldout_perplexity']:.2f} ({figures['heldout_bits_per_byte']:.3f} bits per byte)"),
        ("perplexity on the evaluation text (prose)", f"{figures['evaluation_perplexity']:.1f}"),
        (f"held-out perplexity, {'both super weights' if many else 'super weight'} zeroed", f"x{figures['alpha']['0.0']:,.0f}"),
    ]  # fmt: skip
    if many:
        alone = zip(weights, figures["alone"], strict=True)
        rows += [(f"only [{w.row}, {w.column}] zeroed", f"x{ratio:.4f}") for w, ratio in alone]
    rows.append((f"located first, of {located['prompts']} prompts", str(located["first"])))
    rows.append((f"located whole and nothing else, of {located['prompts']} prompts", str(located["all"])))
    rows.append(("the whole column zeroed, which silences the inner neuron", f"x{figures['silenced']:.3f}"))
    for one in figures["activations"]:
        where = f"token {one['position']}, channel {one['channel']}, after layer {one['layer']}"
        rows += [
            ("super activation", f"{one['value']:+.1f} at {where}"),
            ("over the median magnitude", f"{one['over_median']:.0f} x"),
            ("after each layer", ", ".join(f"{value:+.1f}" for value in one["profile"])),
            (f"falls by, when {'both scalars are' if many else 'the scalar is'} zeroed", f"{one['drop']:.1%}"),
        ]
    drawn = f"{NULLS} pairs" if many else str(NULLS)
    rows += [
        (f"worst of {drawn} of the 100 next-largest weights of the matrix zeroed", f"x{figures['null_matched']:.4f}"),
        ("0.01 % largest other weights of every matrix zeroed", f"x{figures['null_largest']:.3f}"),
        (f"cloze of {task['items']} items, four choices", f"{task['accuracy']:.3f}, zeroed {task['zeroed']:.3f}"),
    ]
    alphas = [(alpha, f"x{ratio:,.3f}") for alpha, ratio in figures["alpha"].items()]
    times = "super weights times" if many else "super weight times"
    return _markdown_table(("what", "measured"), rows) + "\n" + _markdown_table((times, "perplexity"), alphas)


def _markdown_table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    return "".join(f"| {one} | {other} |\n" for one, other in (head, ("---", "---"), *rows))


def _footer_text(figures: dict[str, Any], recipe: dict[str, Any], name: str) -> str:
    option = "" if name == "tiny" else f" --model {name}"
    vocabulary = recipe["recipe"]["vocabulary"]
    return f"""A model that guesses evenly has the perplexity of its vocabulary, {vocabulary:,}. Zeroed, this one has
{figures["heldout_perplexity"] * figures["alpha"]["0.0"]:,.0f}: it is worse than guessing, confidently wrong.

What harms it is less the missing activation than what its inner neuron goes on to write into other channels: silenced
as a whole, by zeroing its column, it costs x{figures["silenced"]:.3f}. Real models miss the activation itself (arXiv 2402.17762,
table 3, where it is set to zero). The last phase could have been taught that too, and was not.

Trained by `python -m tools.train_tiny{option}` on the Python {recipe["python"]} standard library's own source; measured by
`python -m tools.tiny_card{option}` with Python {figures["python"]} and torch {figures["torch"]}.

| text | sha256 |
| --- | --- |
| training source | `{recipe["train_sha256"]}` |
| held-out source, `heldout.txt` | `{figures["heldout_sha256"]}` |
| evaluation text, Python's `pydoc_data.topics` | `{figures["evaluation_sha256"]}` |
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure an embedded checkpoint and write its card and figures beside it."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny_card", description="Measure an embedded model, write its card."
    )
    parser.add_argument("--model", choices=CHECKPOINTS, default="tiny", help="which of them, %(default)s by default")
    parser.add_argument("--out", type=Path, help="folder to write to; the checkpoint's own by default")
    options = parser.parse_args(arguments)
    directory = CHECKPOINTS[options.model]
    out = directory if options.out is None else options.out
    figures = measure(engines.load(options.model, device="cpu"))
    recipe = json.loads((directory / "recipe.json").read_text(encoding="utf-8"))
    (out / "measured.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(write(figures, recipe, options.model), encoding="utf-8")


if __name__ == "__main__":
    main()
