"""Figures with their floor, printed, never judged: ``pytest -m benchmark -s tests/benchmarks``.

Everything that is compared runs interleaved in one process or one loop, best of several, as a ratio: machines are noisy.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from swcheck import load, locate
from swcheck.lens.observe import observe
from swcheck.superweights.locating.locate import PROMPT

pytestmark = [pytest.mark.benchmark, pytest.mark.slow]
SPAM = "def spam(eggs):\n    return eggs\n" * 200


def best(*actions, rounds):
    """The best wall-clock seconds of each action, taken in turn."""
    seconds = [float("inf")] * len(actions)
    for _ in range(rounds):
        for number, action in enumerate(actions):
            start = time.perf_counter()
            action()
            seconds[number] = min(seconds[number], time.perf_counter() - start)
    return seconds


def say(text):
    sys.stderr.write(f"\n{text}\n")


@pytest.fixture(scope="module")
def wide_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=16,
        max_position_embeddings=256,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_observation(wide_llama):
    """Observation over a bare forward pass: at most 1.05."""
    ids = torch.randint(0, 1024, (4, 128))
    layers = range(4)

    def run(block):
        with torch.no_grad(), block:
            wide_llama(ids, use_cache=False)

    bare, seen = best(
        lambda: run(nullcontext()),
        lambda: run(observe(wide_llama, residual=layers, inputs=layers, outputs=layers)),
        rounds=20,
    )
    say(f"observation: {seen / bare:.3f} x a bare pass ({bare * 1e3:.1f} ms; 4 x 128 tokens, width 1024, 4 layers)")


@pytest.mark.parametrize(("text", "most"), [(SPAM, 64), (PROMPT, 256), (SPAM, 256)])
def test_locate(text, most):
    """Locate for one super weight, in forward passes over the same tokens: at most 1.75."""
    tiny = load("tiny", device="cpu")
    ids = tiny.tokenizer(text, return_tensors="pt").input_ids[:, :most]
    tokens = ids.shape[1]

    def forward():
        with torch.no_grad():
            tiny.model(ids, use_cache=False)

    passes, whole = best(forward, lambda: locate(tiny.model, token_ids=ids), rounds=40)
    say(f"locate: {whole / passes:.2f} forward passes over the same {tokens} tokens ({passes * 1e3:.1f} ms each)")


def python(code, cwd):
    start = time.perf_counter()
    subprocess.run([sys.executable, *code], cwd=cwd, check=False, capture_output=True)
    return time.perf_counter() - start


def test_suite(tmp_path):
    """The whole suite on tiny over importing torch and transformers alone: at most 5."""
    imports = ["-c", "import torch, transformers; transformers.LlamaForCausalLM"]
    suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--model=tiny"]
    floor = min(python(imports, tmp_path) for _ in range(3))
    whole = min(python(suite, tmp_path) for _ in range(3))
    say(f"suite on tiny: {whole / floor:.2f} x importing torch and transformers ({whole:.1f} s for {floor:.1f} s)")


def test_unused(tmp_path):
    """An unrelated run with swcheck installed over the same with -p no:swcheck: at most 1.05."""
    (tmp_path / "test_it.py").write_text("".join(f"def test_{i}(): pass\n" for i in range(300)))
    run = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    pairs = [(python(run, tmp_path), python([*run, "-p", "no:swcheck"], tmp_path)) for _ in range(12)]
    with_it, without = (min(side) for side in zip(*pairs, strict=True))
    say(f"an unrelated run: {with_it / without:.3f} x the same without swcheck ({without:.2f} s, best of 12)")
