"""What a gate costs, printed, never judged: ``pytest -m benchmark -s tests/benchmarks/test_gate.py``.

A forward-pass equivalent is every token of the text once through every decoder layer; a pass that ends early, a short
prompt and a prefix count for what they are. Counted by a hook, so the figures are those of any machine.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM

from swcheck import SuperWeight, assert_super_activations_preserved, load
from swcheck.prompts import encoded
from swcheck.records import Loaded
from swcheck.strategies import drawn_prompts
from swcheck.subject import subject_of
from tests import checkpoints, damage
from tests.planted import plant

pytestmark = pytest.mark.benchmark
TEXT, DEPTH = 32 * 256, 5
"""The tokens that tiny is measured on, and its layers."""


def say(text):
    sys.stderr.write(f"\n{text}\n")


@contextmanager
def counted():
    """How many tokens pass through decoder layers, whatever model they belong to, in equivalents of the text."""
    passed, keys = [0], []

    def count(module, args):
        if type(module).__name__ == "LlamaDecoderLayer":
            passed[0] += args[0].shape[0] * args[0].shape[1]
            keys.append((tuple(args[0].shape), round(float(args[0].double().abs().sum()), 6), id(module)))

    handle = register_module_forward_pre_hook(count)
    found = {}
    try:
        yield found
    finally:
        handle.remove()
        found["passes"] = passed[0] / (TEXT * DEPTH)
        found["repeated"] = len(keys) - len(set(keys))


@pytest.fixture(scope="module")
def candidate(tmp_path_factory):
    return checkpoints.damaged(tmp_path_factory.mktemp("models") / "rounded", damage.round_next_largest)


@pytest.fixture
def run(pytester):
    def gate(*words):
        with counted() as found:
            result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--model=tiny", *map(str, words))
        assert result.ret == 0, result.stdout.str()
        return found

    return gate


def test_passes(run, candidate, tiny):
    """The gate of a candidate: at most 3.2 passes over the text, 2.2 with a baseline."""
    gate = f"--candidate={candidate}", "-k", "test_candidate"
    plain = run(*gate)
    both = run(f"--candidate={candidate}")
    alone = run("-k", "test_model")
    run("--swcheck-baseline=kept", "--swcheck-update", "--swcheck-accept")
    kept = run(*gate, "--swcheck-baseline=kept")
    say(
        f"gate of reference and candidate: {plain['passes']:.2f} passes over the text (at most 3.2), "
        f"with a baseline {kept['passes']:.2f} (at most 2.2)\n"
        f"the checks of the model alone: {alone['passes']:.2f}, with those of a candidate: {both['passes']:.2f}\n"
        f"layers run twice on the same numbers: {plain['repeated']} in the gate, {kept['repeated']} with a baseline"
    )


MEASURED = """
import resource, sys, pytest
code = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]])
sys.stderr.write(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024} {int(code)}")
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two random models of 154 MB, the second a copy of the first, and a short text."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 4, "num_attention_heads": 12}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1024, max_position_embeddings=64, bos_token_id=0, **sizes))
    for name in ("reference", "candidate"):
        model.save_pretrained(folder / name)
        load("tiny", device="cpu").tokenizer.save_pretrained(folder / name)
    (folder / "text.txt").write_text(checkpoints.tiny.HELDOUT.read_text(encoding="utf-8")[:2000], encoding="utf-8")
    size = (folder / "reference" / "model.safetensors").stat().st_size / 2**20
    return folder, size


def peak(folder, *words):
    """The peak of resident memory of a run, in MiB."""
    text = f"--swcheck-text={folder / 'text.txt'}"
    command = [sys.executable, "-c", MEASURED, text, "--swcheck-allow-none", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return float(done.stderr.rpartition("peak ")[2].split()[0])


def test_memory(wide):
    """Reference and candidate are never in memory together; with a baseline only the candidate is."""
    folder, size = wide
    model, gate = f"--model={folder / 'reference'}", f"--candidate={folder / 'candidate'}"
    alone = peak(folder, f"--model={folder / 'candidate'}", "-k", "test_model and perplexity")
    peak(folder, model, "--swcheck-baseline=kept", "--swcheck-update", "--swcheck-accept")
    both, kept = peak(folder, model, gate), peak(folder, model, gate, "--swcheck-baseline=kept")
    words = f"{(both - alone) / size:+.1%} of a model's {size:.0f} MiB over one model scored ({alone:.0f} MiB)"
    say(f"peak memory of a gate: {words}; with a baseline {(kept - alone) / size:+.1%} (at most 10 %)")


@pytest.fixture
def deep(tiny):
    """A random model of sixteen layers with a planted super weight in layer 1, where most real ones have theirs."""
    weight = SuperWeight(1, 97, 301, 30.0)
    size = {"layers": 16, "hidden": 256, "inner": 512, "vocabulary": len(tiny.tokenizer)}
    model = plant([weight], **size, tokens=[tiny.tokenizer.bos_token_id])
    model.config.max_position_embeddings = 256
    return Loaded(model, tiny.tokenizer, "deep")


@pytest.mark.parametrize("name", ["tiny", "deep"])
def test_prompts(name, request):
    """The check of many prompts over a plain pass of each prompt through both models: at least 10 x."""
    model = request.getfixturevalue(name)
    reference, other = subject_of(model), subject_of(replace(model, model=copy.deepcopy(model.model)))
    prompts = drawn_prompts()
    assert_super_activations_preserved(other, reference, prompts=prompts)

    def check(*subjects):
        for subject in subjects:
            for key in [key for key in subject.memo if key[0] in {"readings", "readings at", "padded"}]:
                del subject.memo[key]
        assert_super_activations_preserved(other, reference, prompts=prompts)

    def alone():
        with torch.no_grad():
            for prompt in prompts:
                ids = torch.tensor([encoded(model.tokenizer, prompt)[:256] or (0,)])
                for subject in (reference, other):
                    subject.live(ids, use_cache=False)

    actions = (lambda: check(reference, other), lambda: check(other), alone)
    seconds = [float("inf")] * len(actions)
    for _ in range(5):
        for number, action in enumerate(actions):
            start = time.perf_counter()
            action()
            seconds[number] = min(seconds[number], time.perf_counter() - start)
    first, further, single = (len(prompts) / taken for taken in seconds)
    say(
        f"prompts a second on {name}, onset after layer {reference.places(reference.located().super_weights)[0].layer} of "
        f"{len(reference.body.layers)}: {single:.0f} one a pass; {first:.0f} in the check of a new reference, "
        f"{first / single:.1f} x; {further:.0f} of one that was measured, {further / single:.1f} x"
    )
