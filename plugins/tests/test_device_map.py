"""``device_map`` for real, with accelerate: a model part of which waits on disk is looked into, edited and gated alike.

It stands here because only the engines' environment has accelerate; nothing in it is about an engine.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from swcheck import (
    Outcome,
    RobustnessError,
    SuperWeight,
    anatomy,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_located,
    assert_super_weights_preserved,
    assert_survives_pruning,
    effective_weight,
    load,
    plain_weight,
    scaled,
    zeroed,
)
from swcheck.lens.architecture.storage import device_of
from swcheck.loading.huggingface import HuggingFace

WEIGHT = SuperWeight(1, 97, 301)
IDS = torch.tensor([[0, 5, 9, 33, 2, 77, 130]])
WAITING = {1, 3}


@pytest.fixture(scope="module")
def reference():
    return load("tiny", device="cpu")


@pytest.fixture
def spread():
    """tiny with two layers and the head on disk, among them the layer of the super weight."""
    places = {f"model.layers.{number}": "disk" if number in WAITING else "cpu" for number in range(5)}
    ends = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    return HuggingFace(device_map={**places, **ends}).load("tiny")


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def test_a_waiting_weight_is_read_through_its_module(reference, spread):
    """The tensor holds no numbers, the module answers all the same."""
    down = anatomy(spread.model).down_projections[1]
    assert down.weight.is_meta
    assert plain_weight(down) is None
    assert device_of(down).type == device_of(spread.model).type == "cpu"
    assert effective_weight(down, WEIGHT.row, WEIGHT.column) == pytest.approx(2.625)
    assert torch.equal(logits(spread.model), logits(reference.model))


def test_an_edit_of_a_waiting_weight_works_and_leaves_no_trace(reference, spread):
    """Zeroed and tripled it does what it does in memory, and afterwards nothing."""
    before = logits(spread.model)
    for edit in (lambda model: zeroed(model, [WEIGHT]), lambda model: scaled(model, [WEIGHT], 3.0)):
        with edit(spread.model), edit(reference.model):
            assert torch.allclose(logits(spread.model), logits(reference.model), atol=1e-3)
            assert (logits(spread.model) - before).abs().max() > 1
    assert torch.equal(logits(spread.model), before)


def test_it_passes_the_gate_and_fails_it(reference, spread):
    """As a candidate it is green; without its super weight it is red, with the cause."""
    for check in (
        assert_super_weights_preserved,
        assert_super_activations_preserved,
        assert_perplexity_within,
        assert_predictions_preserved,
        assert_collapses_when_zeroed,
    ):
        assert check(spread, reference).outcome is Outcome.PASSED
    assert assert_super_weights_located(spread).facts["super_weights"][0]["row"] == WEIGHT.row
    with zeroed(spread.model, [WEIGHT]), pytest.raises(RobustnessError, match=r"super weight at layer 1 \[97, 301\]"):
        assert_super_weights_preserved(spread, reference)


def test_as_a_reference_it_explains_a_red_candidate(reference, spread):
    """Every map is asked where its weight waits; what needs the numbers themselves is left out in words."""
    other = load("tiny", device="cpu")
    with torch.no_grad():
        other.model.model.layers[3].mlp.gate_proj.weight.mul_(-1)
    with pytest.raises(RobustnessError, match=r"not the super weights[\s\S]*layers\.3\.mlp\.gate_proj"):
        assert_perplexity_within(other, spread)
    for null in ("matched", "largest"):
        assert assert_survives_pruning(spread, null=null).outcome is Outcome.NOT_APPLICABLE


def test_the_option(tmp_path):
    """``--swcheck-device-map=auto`` runs the whole gate."""
    words = ["-p", "no:cacheprovider", "--model=tiny", "--candidate=tiny", "--swcheck-device-map=auto"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "device map auto (command line)" in done.stdout
