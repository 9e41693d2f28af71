"""What memory a gate takes and how fast prompts are read, printed, never judged: ``pytest -m benchmark -s tests/benchmarks``."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from swcheck import SuperWeight, assert_super_activations_preserved, load
from swcheck.base.records import Loaded
from swcheck.lens.prompts import encode_prompt
from swcheck.strategies import drawn_prompts
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.residual_stream import super_activations
from swcheck.superweights.subject.as_subject import as_subject
from tests import checkpoints
from tests.planted import plant

pytestmark = [pytest.mark.benchmark, pytest.mark.slow]


def say(text):
    sys.stderr.write(f"\n{text}\n")


MEASURED = """
import re, sys, pytest
code = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]])
peak = re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())
sys.stderr.write(f"peak {int(peak[1]) / 1024} {int(code)}")
"""
"""Linux's own high-water mark: ``ru_maxrss`` would begin with that of the process that started this one."""
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Freed memory is given back at once, not kept for later: without it a peak differs by 5 % from run to run."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Models of some 0.7 GiB that predict a short text: the reference, a copy of it, and one with five matrices spoilt."""
    folder, tokenizer = tmp_path_factory.mktemp("wide"), load("tiny", device="cpu").tokenizer
    text = checkpoints.tiny.HELDOUT.read_text(encoding="utf-8")[:2000]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    size = {"layers": 12, "hidden": 1024, "inner": 4096, "vocabulary": len(tokenizer)}
    model = plant([SuperWeight(1, 97, 301, 30.0)], **size, tokens=[tokenizer.bos_token_id])
    learn(model, torch.tensor(tokenizer(text)["input_ids"]))
    model.config.max_position_embeddings = 32  # 1,024 tokens in a pass, as many as of a model with 32,000 of vocabulary

    def save(name):
        for part in (model, tokenizer):
            part.save_pretrained(folder / name)

    save("reference")
    save("copy")
    for layer in (3, 5, 7, 9, 10):
        weight = model.model.layers[layer].mlp.down_proj.weight.data
        weight += 2 * weight.std() * torch.randn_like(weight)
    save("spoilt")
    return folder, (folder / "reference" / "model.safetensors").stat().st_size / 2**20


def learn(model, ids):
    """Let the head of a random model predict a text from what its layers, made louder, give."""
    rows = torch.stack([torch.cat([ids[:1], ids[start : start + 63]]) for start in range(1, len(ids) - 63, 32)])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 4
            layer.mlp.down_proj.weight[torch.arange(model.config.hidden_size) != 97] *= 4
        seen = model.model(rows)[0][:, :-1].flatten(0, 1)
    optimizer = torch.optim.Adam([model.lm_head.weight], lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.lm_head(seen), rows[:, 1:].flatten()).backward()
        optimizer.step()


def peak(folder, *words):
    """The peak of resident memory of a run, in MiB, and whether a check was red."""
    command = [sys.executable, "-c", MEASURED, f"--swcheck-text={folder / 'text.txt'}", *words]
    env = {**os.environ, **AT_ONCE}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)
    size, code = done.stderr.rpartition("peak ")[2].split()
    return float(size), int(code) == 1


@pytest.mark.parametrize("name", ["copy", "spoilt", "rtn:bits=3"])
def test_memory(wide, name):
    """Reference and candidate are never in memory together; with a baseline only the candidate is, green or red."""
    folder, size = wide
    model, gate = f"--model={folder / 'reference'}", f"--candidate={name if ':' in name else folder / name}"
    if not (folder / "kept").exists():
        peak(folder, model, "--swcheck-baseline=kept", "--swcheck-update", "--swcheck-accept")
    alone, _ = peak(folder, model, "-k", "test_model and (perplexity or collapse)")
    both, red = peak(folder, model, gate, "-k", "test_candidate")
    kept, _ = peak(folder, model, gate, "-k", "test_candidate", "--swcheck-baseline=kept")
    words = f"{(both - alone) / size:+.1%} of a model's {size:.0f} MiB over one model scored ({alone:.0f} MiB)"
    colour = "red" if red else "green"
    say(
        f"peak memory of a {colour} gate ({name}): {words}; with a baseline {(kept - alone) / size:+.1%} (at most 10 %)"
    )


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
    reference, other = as_subject(model), as_subject(replace(model, model=copy.deepcopy(model.model)))
    prompts = drawn_prompts()
    assert_super_activations_preserved(other, reference, prompts=prompts)

    def check(*subjects):
        for subject in subjects:
            for key in [key for key in subject.memory.values if key[0] in {"readings", "readings at", "padded"}]:
                del subject.memory.values[key]
        assert_super_activations_preserved(other, reference, prompts=prompts)

    def alone():
        with torch.no_grad():
            for prompt in prompts:
                ids = torch.tensor([encode_prompt(model.tokenizer, prompt)[:256] or (0,)])
                for subject in (reference, other):
                    subject.module(ids, use_cache=False)

    actions = (lambda: check(reference, other), lambda: check(other), alone)
    seconds = [float("inf")] * len(actions)
    for _ in range(5):
        for number, action in enumerate(actions):
            start = time.perf_counter()
            action()
            seconds[number] = min(seconds[number], time.perf_counter() - start)
    first, further, single = (len(prompts) / taken for taken in seconds)
    say(
        f"prompts a second on {name}, onset after layer {super_activations(reference, located(reference).super_weights)[0].layer} of "
        f"{len(reference.anatomy.layers)}: {single:.0f} one a pass; {first:.0f} in the check of a new reference, "
        f"{first / single:.1f} x; {further:.0f} of one that was measured, {further / single:.1f} x"
    )
