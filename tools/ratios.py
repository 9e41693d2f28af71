"""What swcheck costs over what cannot be saved: ``python -m tools.ratios`` writes the second table of ``docs/performance.md``.

Seconds are those of the processor with one thread, the best of several in turn, so that other work on the machine changes
the ratios little. Forward passes over a text are counted by a hook.
"""

from __future__ import annotations

import copy
import json
import math
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swcheck import SuperWeight, assert_super_activations_preserved, load, locate
from swcheck.base.isolation import captured_output
from swcheck.base.output_files import write_atomically
from swcheck.base.records import Loaded
from swcheck.gate.checks.serving.shapes import Sweep, sweep
from swcheck.lens.likelihood import perplexity
from swcheck.lens.observe import observe
from swcheck.lens.prompts import encode_prompt
from swcheck.lens.tokens import token_windows
from swcheck.loading.tiny import HELDOUT
from swcheck.quantizers import rounding
from swcheck.strategies import drawn_prompts
from swcheck.superweights.locating.locate import PROMPT
from swcheck.superweights.measurements.prompt_readings import read_prompts
from swcheck.superweights.measurements.scores import intact_scores, scores_against
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.subject import Subject
from tests.planted import plant
from tools.performance_table import PAGE, machine

LONGEST: Final = 256
"""At most so many tokens of a prompt are read."""
VALUE: Final = 2.0
"""A planted scalar: larger ones in layer 1 would hide those of layer 2 behind the norm."""
HEADING: Final = "## Over what cannot be saved"
SPAM: Final = "def spam(eggs):\n    return eggs\n" * 200
PASSES: Final = """
import collections, json, pathlib, sys
import pytest
from torch.nn.modules.module import register_module_forward_pre_hook
passed = collections.Counter()

def count(module, args):
    if type(module).__name__ == "LlamaDecoderLayer":
        frame, part = sys._getframe(), ""
        while frame is not None and "superweights" not in part:
            part, frame = frame.f_code.co_filename, frame.f_back
        passed[pathlib.Path(part).stem] += args[0].shape[0] * args[0].shape[1]

register_module_forward_pre_hook(count)
code = pytest.main(["-q", "-p", "no:cacheprovider", "--swcheck-no-cache", *sys.argv[1:]])
sys.stderr.write(f"passed {int(code)} {json.dumps(passed)}")
"""
"""Runs pytest and tells how many tokens passed through a decoder layer of any model, by the module that asked for it."""
PARTS: Final = {
    "scores": "the text", "ablation": "super weights zeroed", "prompt_readings": "prompts", "generation": "greedy text",
}  # fmt: skip
"""What the modules of ``swcheck.superweights.measurements`` run passes for."""
IMPORTS: Final = ["-c", "import torch, transformers; transformers.LlamaForCausalLM"]
TEXT, DEPTH = 32 * 256, 5
"""The tokens that the standard tier scores of tiny, and its layers."""


@dataclass(frozen=True)
class Ratio:
    """A row of the table: what was measured, over which floor, and the goal."""

    name: str
    measured: str
    floor: str
    goal: str


def best(*actions: Callable[[], object], rounds: int) -> list[float]:
    """Return the fewest seconds of the processor that each action took, taken in turn."""
    seconds = [math.inf] * len(actions)
    for _ in range(rounds):
        for number, action in enumerate(actions):
            start = time.process_time()
            action()
            seconds[number] = min(seconds[number], time.process_time() - start)
    return seconds


def planted_llama(count: int, tokens: int, layers: int = 8) -> tuple[LlamaForCausalLM, torch.Tensor]:
    """Return a model of width 256 with ``count`` super weights in its layers 1 and 2, and ids int64 ``(1, tokens)``."""
    weights = [SuperWeight(1 + number % 2, 10 + 30 * number, 20 + 50 * number, VALUE) for number in range(count)]
    model = plant(weights, layers=layers, hidden=256, inner=704, vocabulary=1024)
    ids = torch.randint(1, 1024, (1, tokens), generator=torch.Generator().manual_seed(0))
    ids[0, 0] = 0
    found = locate(model, token_ids=ids).super_weights
    if {weight.place for weight in found} != {weight.place for weight in weights}:
        raise RuntimeError(f"planted {weights}, located {found}")
    return model, ids


def forward(model: torch.nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    """Return an action that runs one plain pass."""

    def run() -> None:
        with torch.no_grad():
            model(ids, use_cache=False)

    return run


def observation() -> list[Ratio]:
    """Measure a pass with everything observed over a bare one."""
    config = LlamaConfig(
        vocab_size=1024, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=16
    )
    model, layers = LlamaForCausalLM(config).eval(), range(4)
    ids = torch.randint(0, 1024, (4, 128))

    def run(block: Any) -> None:
        with torch.no_grad(), block:
            model(ids, use_cache=False)

    bare, seen = best(
        lambda: run(nullcontext()),
        lambda: run(observe(model, residual=layers, inputs=layers, outputs=layers)),
        rounds=20,
    )
    return [Ratio("observation", f"x{seen / bare:.3f}", f"a bare pass, width 1,024 ({bare * 1e3:.0f} ms)", "x1.03")]


def locating() -> list[Ratio]:
    """Measure the search over plain passes: of tiny with one super weight, of random models with one to six."""
    tiny = load("tiny", device="cpu")
    rows, found = [], {}
    for text, most in ((PROMPT, 256), (SPAM, 256), (SPAM, 512)):
        ids = tiny.tokenizer(text, return_tensors="pt").input_ids[:, :most]
        one, whole = best(forward(tiny.model, ids), lambda ids=ids: locate(tiny.model, token_ids=ids), rounds=20)  # type: ignore[misc]
        found[ids.shape[1]] = whole / one
    words = "; ".join(f"x{ratio:.2f} at {tokens} tokens" for tokens, ratio in found.items())
    rows.append(Ratio("`locate`, tiny, one super weight", words, "one pass over the same tokens", "x1.3"))
    ratios = []
    for count in (1, 2, 4, 6):
        model, ids = planted_llama(count, 256)
        one, whole = best(forward(model, ids), lambda model=model, ids=ids: locate(model, token_ids=ids), rounds=8)  # type: ignore[misc]
        ratios.append(f"{count}: x{whole / one:.2f}")
    floor = "one pass over the same 256 tokens, width 256, 8 layers"
    rows.append(Ratio("`locate`, one to six super weights", "; ".join(ratios), floor, "x1.3"))
    return rows


def processor_seconds(words: Sequence[str]) -> float:
    """Run Python in an empty folder; return the seconds of the processor that it took."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], cwd=folder, check=False, capture_output=True)  # noqa: S603 - this Python
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def suite() -> list[Ratio]:
    """Measure the whole suite on tiny over the imports that nobody can do without."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--model=tiny", "--swcheck-no-cache"]
    floor, whole = (min(processor_seconds(each) for _ in range(3)) for each in (IMPORTS, words))
    words_of_floor = f"importing torch and transformers ({floor:.1f} s)"
    return [Ratio("the whole suite on tiny", f"x{whole / floor:.2f} ({whole:.1f} s)", words_of_floor, "x1.5")]


def passes(folder: Path, *words: str) -> dict[str, float]:
    """Return how many passes over the text a run of pytest makes, by what for. Raises ``RuntimeError`` if it was not green."""
    done = subprocess.run(  # noqa: S603 - this Python
        [sys.executable, "-c", PASSES, "--model=tiny", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    counted = re.search(r"passed 0 (\{.*\})$", done.stderr)
    if counted is None:
        raise RuntimeError(done.stdout + done.stderr)
    found: dict[str, float] = {}
    for module, tokens in json.loads(counted[1]).items():
        part = PARTS.get(module, "the rest")
        found[part] = found.get(part, 0.0) + tokens / (TEXT * DEPTH)
    return found


def gate() -> list[Ratio]:
    """Count the passes of a gate of tiny, without and with a baseline."""
    with tempfile.TemporaryDirectory() as name:
        folder, tiny = Path(name), load("tiny", device="cpu")
        for module in tiny.model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = rounding.absmax(module.weight.data, 8, block=128)
        for part in (tiny.model, tiny.tokenizer):
            part.save_pretrained(folder / "rounded")
        words = ["--candidate=rounded", "-k", "test_candidate"]
        plain = passes(folder, *words)
        passes(folder, "--swcheck-baseline=kept", "--swcheck-update", "--swcheck-accept")
        kept = passes(folder, *words, "--swcheck-baseline=kept")
    floor = "passes over its text"
    return [
        Ratio("a gate of tiny, reference and candidate", in_parts(plain), floor, "2.5"),
        Ratio("the same with a baseline", in_parts(kept), floor, "1.2"),
    ]


def in_parts(found: dict[str, float]) -> str:
    """Return the sum and its parts, the largest first."""
    parts = ", ".join(f"{name} {value:.2f}" for name, value in sorted(found.items(), key=lambda one: -one[1]))
    return f"{sum(found.values()):.2f} ({parts})"


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return b of the least-squares fit seconds = a x size^b."""
    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((one - mean_x) * (other - mean_y) for one, other in zip(x, y, strict=True))
    return above / sum((one - mean_x) ** 2 for one in x)


def growth() -> list[Ratio]:
    """Fit how the search grows with tokens, layers and super weights, and reading prompts with their number."""
    found = {}
    for name, sizes in (("tokens", (256, 512, 1024)), ("layers", (4, 8, 16, 32)), ("super weights", (1, 2, 4, 6))):
        seconds = []
        for size in sizes:
            count, tokens, layers = {"tokens": (1, size, 8), "layers": (1, 256, size), "super weights": (size, 256, 8)}[
                name
            ]
            model, ids = planted_llama(count, tokens, layers)
            seconds += best(lambda model=model, ids=ids: locate(model, token_ids=ids), rounds=5)  # type: ignore[misc]
        found[name] = exponent(sizes, seconds)
    found["prompts"] = prompts_exponent()
    words = "; ".join(f"{name} {value:.2f}" for name, value in found.items())
    return [Ratio("growth of `locate`, and of reading prompts", words, "fitted exponents", "1.05")]


def prompts_exponent() -> float:
    """Fit how reading the super activation grows with the number of prompts of tiny."""
    tiny = as_subject(load("tiny", device="cpu"))
    place = locate(tiny.module, token_ids=torch.tensor([[0, 5, 9]])).activations[0]
    ids = torch.randint(0, 1024, (1024, 32), generator=torch.Generator().manual_seed(0))
    sizes = (128, 256, 512, 1024)
    seconds = [
        best(lambda size=size: read_prompts(tiny, place, ids[:size], [32] * size), rounds=5)[0]  # type: ignore[misc]
        for size in sizes
    ]
    return exponent(sizes, seconds)


def shapes() -> list[Ratio]:
    """Measure what scoring in other shapes takes over scoring the text of tiny once."""
    reference = as_subject(load("tiny", device="cpu"))
    found: list[Sweep] = []

    def score() -> None:
        scores_against(as_subject(reference.module, tokenizer=reference.tokenizer), reference)

    def score_and_sweep() -> None:
        found.append(sweep(as_subject(reference.module, tokenizer=reference.tokenizer), reference))

    intact_scores(reference)
    once, both = best(score, score_and_sweep, rounds=8)
    name = f"{len(found[0].found)} other shapes of a candidate of tiny"
    return [Ratio(name, f"x{both / once - 1:.2f}", f"its text scored once ({once * 1e3:.0f} ms)", "none")]


def prompts() -> list[Ratio]:
    """Measure the check of many prompts, of tiny and of a model of sixteen layers, over a pass of each through both models."""
    tiny = load("tiny", device="cpu")
    weight, tokens = SuperWeight(1, 97, 301, 30.0), tiny.tokenizer
    deep = plant([weight], layers=16, hidden=256, inner=512, vocabulary=len(tokens), tokens=[tokens.bos_token_id])
    deep.config.max_position_embeddings = LONGEST
    return [_prompts_of(model) for model in (tiny, Loaded(deep, tokens, "16 layers"))]


def _prompts_of(model: Loaded) -> Ratio:
    reference, other = as_subject(model), as_subject(replace(model, model=copy.deepcopy(model.model)))
    drawn = drawn_prompts()

    def check(*anew: Subject) -> None:
        for subject in anew:
            values = subject.memory.values if subject.memory is not None else {}
            for key in [key for key in values if key[0] in {"readings", "readings at", "padded"}]:
                del values[key]
        assert_super_activations_preserved(other, reference, prompts=drawn)

    def alone() -> None:
        with torch.no_grad():
            for prompt in drawn:
                ids = torch.tensor([encode_prompt(model.tokenizer, prompt)[:LONGEST] or (0,)])
                for subject in (reference, other):
                    subject.module(ids, use_cache=False)

    check()
    first, further, single = best(lambda: check(reference, other), lambda: check(other), alone, rounds=5)
    words = f"x{single / first:.1f} as fast; x{single / further:.1f} with a reference that was measured"
    floor = f"one prompt a pass, through both models ({len(drawn) / single:.0f} prompts a second)"
    return Ratio(f"the check of {len(drawn)} prompts, {model.name}", words, floor, "x10 as fast")


def harness() -> list[Ratio]:
    """Measure perplexity over that of lm-evaluation-harness, of tiny and of a model with 32,000 tokens."""
    from lm_eval.models.huggingface import HFLM

    tiny, rows = load("tiny", device="cpu"), []
    sizes = {"vocab_size": 32000, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4}
    wide = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4)).eval()
    text = token_windows(tiny.tokenizer, HELDOUT.read_text(encoding="utf-8"), count=32, length=256)
    asked = [(("", ""), row[:1].tolist(), row[1:].tolist()) for row in text]
    for name, model in (("tiny", tiny.model), ("a vocabulary of 32,000", wide)):
        with captured_output():
            theirs = HFLM(pretrained=model, tokenizer=tiny.tokenizer, batch_size=8, max_length=256)
            bare, ours, other = best(
                lambda model=model: [forward(model, ids)() for ids in text.split(8)],  # type: ignore[misc]
                lambda model=model: perplexity(model, text),  # type: ignore[misc]
                lambda theirs=theirs: theirs._loglikelihood_tokens(asked, disable_tqdm=True),  # type: ignore[misc] # noqa: SLF001
                rounds=4,
            )
            scored = theirs._loglikelihood_tokens(asked, disable_tqdm=True)  # noqa: SLF001 - what its tasks call
        found = perplexity(model, text)
        apart = abs(sum(one[0] for one in scored) + found.nats) / found.tokens
        words = f"x{other / ours:.2f} as fast, {apart:.0e} nats a token apart; x{ours / bare:.2f} of plain passes"
        rows.append(Ratio(f"perplexity, {name}", words, "lm-evaluation-harness on the same windows", "x3 as fast"))
    return rows


MEASURES: Final = (observation, locating, harness, prompts, suite, gate, shapes, growth)


def section(rows: Sequence[Ratio]) -> str:
    """Return the section of the page."""
    return "\n".join(
        [
            HEADING,
            "",
            "Written by `python -m tools.ratios`. Seconds of the processor with one thread, the best of several in turn.",
            f"{machine()}",
            "",
            "| what | measured | over | goal |",
            "| --- | --- | --- | --- |",
            *(f"| {row.name} | {row.measured} | {row.floor} | {row.goal} |" for row in rows),
            "",
            "What is missed: the floor of a gate is its text once through each model, and a quarter of it with the super weights zeroed",
            "in each; prompts, the greedy text and the noise come on top. A search runs once more for each round that zeroes what was",
            "found, from the layer that writes it on; on few tokens what is around a pass counts more. A run of the suite is pytest,",
            "hypothesis and the passes, over imports alone. Perplexity is plain passes and little more, and so is that of the harness:",
            "on a processor there is no time left of which two thirds could be saved.",
            "",
        ]
    )


def main() -> None:
    """Measure, and replace the section."""
    torch.set_num_threads(1)
    rows = []
    for measure in MEASURES:
        new = measure()
        rows += new
        sys.stdout.write("".join(f"{row}\n" for row in new))
        sys.stdout.flush()
    before = PAGE.read_text(encoding="utf-8").partition(HEADING)[0].rstrip("\n")
    write_atomically(PAGE, f"{before}\n\n{section(rows)}")


if __name__ == "__main__":
    main()
