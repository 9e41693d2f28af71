"""``--swcheck-kind``: what was fine-tuned is not held to the limits of quantization, and lost super weights stay red."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import checkpoints, damage
from tests.plugin import refused


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """Tiny with something added to every matrix of its layers, as training would."""

    def train(whole):
        chance = torch.Generator().manual_seed(0)
        return {name: _tuned(tensor, chance) if ".layers." in name else tensor for name, tensor in whole.items()}

    return checkpoints.copy_of_tiny(tmp_path_factory.mktemp("models") / "tuned", checkpoints.tensors(train))


def _tuned(tensor, chance):
    if tensor.ndim < 2:
        return tensor
    return tensor + (torch.randn(tensor.shape, generator=chance) * tensor.float().std() * 0.2).to(tensor.dtype)


@pytest.fixture
def gate(inner, brief):
    """Run the gate of tiny against a candidate, and give the result with the verdicts."""

    def run(folder, *words):
        result = inner("--model=tiny", f"--candidate={folder}", brief, "--swcheck-json=out.json", *words)
        return result, json.loads(Path("out.json").read_text())["verdicts"]

    return run


@pytest.mark.slow
def test_a_fine_tune_is_told_by_its_weights(gate, tuned):
    """It is green, its drift reported and not judged, and the report says what it was taken for, and why."""
    result, verdicts = gate(tuned, "-k", "test_candidate")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "tuned against tiny",
            "taken for finetuned: its weights were changed, and not rounded, in * of 5 sampled layers",
            "super activations * x0.5 .. x2 * passed",
            "perplexity * <= x1.5 * passed",
            "predictions * reported * passed",
            "drift of layer 1 [[]97, 301[]]: weight +2.625 -> +*, writes +* -> +*",
        ]
    )
    measured = {verdict["check"]: verdict["measured"] for verdict in verdicts}
    assert measured["perplexity"] > 1.05
    assert measured["predictions"] > 0.05


@pytest.mark.slow
def test_the_same_candidate_as_a_quantized_one_is_red(gate, tuned):
    """Asked for by name, quantization's limits hold."""
    result, _ = gate(tuned, "-k", "test_candidate and (perplexity or predictions)", "--swcheck-kind=quantized")
    result.assert_outcomes(failed=2, deselected=9)
    result.stdout.fnmatch_lines(["taken for quantized: nothing says how*"])


@pytest.mark.slow
def test_a_limit_that_was_given_is_judged(gate, tuned):
    """A fine-tune is reported unless a limit is given."""
    result, _ = gate(tuned, "-k", "test_candidate and perplexity", "--swcheck-limit=perplexity=1.05")
    result.assert_outcomes(failed=1, deselected=10)


@pytest.mark.slow
def test_lost_super_weights_are_red_whatever_the_kind(gate, zeroed):
    """A loss proven to come from super weights is red also where perplexity is only reported."""
    result, _ = gate(zeroed, "-k", "test_candidate and (perplexity or super_weights)", "--swcheck-kind=finetuned")
    result.assert_outcomes(failed=2, deselected=9)
    result.stdout.fnmatch_lines(["what the super weights write is lost*", "*100% of the loss returns"])


@pytest.mark.slow
def test_a_damaged_copy_is_not_taken_for_a_fine_tune(gate, tmp_path):
    """A copy whose super weight was rounded away with its matrix stays under the limits of an unknown scheme."""
    folder = checkpoints.damaged(tmp_path / "rounded", damage.round_away)
    result, _ = gate(folder, "-k", "test_candidate and perplexity")
    result.assert_outcomes(failed=1, deselected=10)
    result.stdout.fnmatch_lines(["taken for quantized: *", "perplexity * <= x1.05 * FAILED"])


def test_an_unknown_kind_is_refused(inner):
    """A word that is no kind is a usage error that lists them."""
    refused(
        inner("--model=tiny", "--swcheck-kind=sparse"), "known: auto, quantized, finetuned, merged, pruned, distilled"
    )
