"""Sets are judged, not scalars: ``tiny-pair`` hangs on two super weights of which either is enough."""

from __future__ import annotations

import copy

import pytest
import torch

from swcheck import (
    Loaded,
    RobustnessError,
    SuperWeight,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    locate,
    perplexity,
    zeroed,
)
from swcheck.lens.tokens import token_windows
from tests.plugin import MODEL

PAIR = (SuperWeight(1, 41, 173), SuperWeight(1, 90, 173))


@pytest.fixture(scope="module")
def ids(tiny_pair):
    return token_windows(tiny_pair.tokenizer, tiny_pair.text, count=16, length=256)


def without(loaded, weights):
    """A copy whose ``weights`` are zero."""
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        for weight in weights:
            model.model.layers[weight.layer].mlp.down_proj.weight[weight.row, weight.column] = 0
    return Loaded(model, loaded.tokenizer, "candidate", loaded.text)


def weight_at(loaded, weight):
    return float(loaded.model.model.layers[weight.layer].mlp.down_proj.weight[weight.row, weight.column].detach())


def scalar_gate(candidate, reference, ids):
    """A gate that looks at one scalar at a time, as one would write it: each located weight that costs x1.1 or more
    when it is zeroed has to be in the candidate what it was. Returns the weights it guards, and whether it passes.
    """
    intact = perplexity(reference.model, ids).perplexity
    guarded = []
    for weight in locate(reference.model, reference.tokenizer).super_weights:
        with zeroed(reference.model, [weight]):
            if perplexity(reference.model, ids).perplexity >= 1.1 * intact:
                guarded.append(weight)
    return guarded, all(weight_at(candidate, w) == pytest.approx(weight_at(reference, w), rel=0.25) for w in guarded)


def refusal(check, *subjects, **wishes):
    with pytest.raises(RobustnessError) as caught:
        check(*subjects, **wishes)
    return caught.value


def test_both_are_located(tiny_pair):
    """Told nothing, locate finds the two, and where each writes."""
    found = locate(tiny_pair.model, tiny_pair.tokenizer)
    assert set(found.super_weights) == set(PAIR)
    assert {activation.channel for activation in found.activations} == {41, 90}


@pytest.mark.slow
def test_a_gate_of_scalars_passes_a_dead_candidate(tiny, tiny_pair, ids):
    """Such a gate does see the loss of a single super weight, but of a pair it guards nothing and passes its death."""
    single = without(tiny, locate(tiny.model, tiny.tokenizer).super_weights)
    own = token_windows(tiny.tokenizer, tiny.text, count=4, length=256)
    guarded, passes = scalar_gate(single, tiny, own)
    assert (len(guarded), passes) == (1, False)

    dead = without(tiny_pair, PAIR)
    assert scalar_gate(dead, tiny_pair, ids) == ([], True)
    assert perplexity(dead.model, ids).perplexity > 1000 * perplexity(tiny_pair.model, ids).perplexity


@pytest.mark.slow
def test_the_set_is_critical_and_each_scalar_inert(tiny_pair, ids):
    """Asked of the set the model collapses, and each member is reported beside it; asked of either alone it does not."""
    verdict = assert_collapses_when_zeroed(tiny_pair)
    assert verdict.measured >= 1000
    assert verdict.facts["kind"] == "critical"
    assert len(verdict.facts["alone"]) == 2
    assert max(verdict.facts["alone"]) <= 1.1

    for weight in PAIR:
        error = refusal(assert_collapses_when_zeroed, tiny_pair, super_weights=[weight], token_ids=ids)
        assert "inert" in str(error)


@pytest.mark.slow
def test_a_candidate_without_both_is_red(tiny_pair):
    """Weights, activations and perplexity are red, and the loss is proven to be the pair's."""
    dead = without(tiny_pair, PAIR)

    error = refusal(assert_super_weights_preserved, dead, tiny_pair)
    assert error.verdict.facts["ratios"] == pytest.approx([0, 0], abs=1e-6)
    assert "lost (x0.01)" in str(refusal(assert_super_activations_preserved, dead, tiny_pair)).splitlines()[0]
    error = refusal(assert_perplexity_within, dead, tiny_pair)
    assert error.verdict.measured >= 1000
    assert "[41, 173]" in error.verdict.cause
    assert "[90, 173]" in error.verdict.cause
    assert "100% of the loss returns" in str(error)
    assert refusal(assert_collapses_when_zeroed, dead, tiny_pair).verdict.measured < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "kept"), [PAIR, PAIR[::-1]], ids=["first", "second"])
def test_a_candidate_without_one_has_lost_a_weight_but_lives(tiny_pair, lost, kept):
    """Its weight is named as lost and its activation as lost, not moved; the perplexity is fine, and the words say both."""
    candidate = without(tiny_pair, [lost])

    error = refusal(assert_super_weights_preserved, candidate, tiny_pair)
    assert f"[{lost.row}, {lost.column}] zeroed" in error.verdict.cause
    assert "1 of 2 weights still do, and whether that is enough the perplexity says" in str(error)
    assert f"[{kept.row}, {kept.column}]" not in error.verdict.cause
    first = str(refusal(assert_super_activations_preserved, candidate, tiny_pair)).splitlines()[0]
    assert f"channel {lost.row} at token 0 lost" in first
    assert "moved" not in first
    assert assert_perplexity_within(candidate, tiny_pair).measured <= 1.05
    assert assert_collapses_when_zeroed(candidate, tiny_pair).measured >= 0.9


@pytest.mark.slow
def test_on_the_command_line(pytester, monkeypatch):
    """``pytest --model=tiny-pair`` is green, and shows both in its table."""
    monkeypatch.setenv("COLUMNS", "100")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--model=tiny-pair", "--swcheck-offline")
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == MODEL
    result.stdout.fnmatch_lines(["*super weights * 2 * passed*", "*2 weights zeroed: perplexity x*", "*critical*"])
