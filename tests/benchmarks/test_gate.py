"""What memory a gate takes, printed, never judged: ``pytest -m benchmark -s tests/benchmarks``."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from swcheck import SuperWeight, load
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
