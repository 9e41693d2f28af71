"""What a gate costs, printed, never judged: ``pytest -m benchmark -s tests/benchmarks/test_gate.py``.

A forward-pass equivalent is every token of the text once through every decoder layer; a pass that ends early, a short
prompt and a prefix count for what they are. Counted by a hook, so the figures are those of any machine.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from swcheck import assert_super_activations_preserved, load
from swcheck.session import Session, Settings
from swcheck.strategies import drawn_prompts
from swcheck.subject import subject_of
from tests import checkpoints, damage

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
