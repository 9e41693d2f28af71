"""Comparisons across bases: what is healthy in other clothes is green, and what is not is red there too."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tokenizers.processors import ByteLevel
from transformers import LlamaForCausalLM

from swcheck import (
    Loaded,
    Outcome,
    Planting,
    RobustnessError,
    SuperWeight,
    anatomy,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    locate,
    plant_super_weights,
)
from swcheck.base.records import Limit
from swcheck.base.statistics import STANDARD_ERRORS, standard_error, worst_of
from swcheck.lens.tokens import token_windows
from swcheck.superweights.measurements.ablation import ablated_nats, intact_nats
from swcheck.superweights.measurements.scores import noise_floor
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.damage import bases as relatives
from tests import damage
from tests.planted import SINK, plant
from tools.small_models import small_model

PLANTED = torch.arange(5, 29)[None]

COMPARISONS = (
    assert_super_weights_preserved,
    assert_super_activations_preserved,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_collapses_when_zeroed,
)


@pytest.fixture(scope="module")
def ids(tiny):
    return token_windows(tiny.tokenizer, tiny.text, count=6, length=128)


@pytest.mark.slow
@pytest.mark.parametrize("check", COMPARISONS)
@pytest.mark.parametrize(
    "clothes",
    [
        relatives.permuted,
        lambda model: relatives.permuted(model, channels=False),
        lambda model: relatives.permuted(model, neurons=False),
        relatives.rescaled,
    ],
    ids=["permuted", "permuted-neurons", "permuted-channels", "rescaled"],
)
def test_a_healthy_candidate_in_other_clothes_is_green(tiny, ids, clothes, check):
    """Permuted channels and neurons are followed, and weights rescaled against their inputs write the same."""
    verdict = check(clothes(tiny.model), tiny.model, token_ids=ids)

    assert verdict.outcome is Outcome.PASSED


def test_a_permuted_candidate_is_green_with_a_note(tiny, ids):
    """The verdict says that channels and neurons were followed."""
    verdict = assert_super_weights_preserved(relatives.permuted(tiny.model), tiny.model, token_ids=ids)

    assert "permuted channels followed" in verdict.summary
    assert "inner neuron 301 is neuron" in verdict.summary


@pytest.mark.slow
def test_a_rotated_candidate_is_judged_by_its_sink_norm(tiny, ids):
    """Weights and dependence do not apply; the norm of the sink token is compared in place of a channel."""
    outcomes = {check: check(relatives.rotated(tiny.model), tiny.model, token_ids=ids) for check in COMPARISONS}

    assert outcomes[assert_super_weights_preserved].outcome is Outcome.NOT_APPLICABLE
    assert outcomes[assert_collapses_when_zeroed].outcome is Outcome.NOT_APPLICABLE
    assert outcomes[assert_super_activations_preserved].facts["basis"] == "rotated"
    assert outcomes[assert_perplexity_within].outcome is Outcome.PASSED


@pytest.mark.slow
@pytest.mark.parametrize("check", [assert_super_weights_preserved, assert_super_activations_preserved])
def test_a_damaged_permuted_candidate_is_red(tiny, ids, check):
    """Following a permutation does not hide what was lost."""
    candidate = relatives.permuted(damage.damaged(tiny, damage.zero).model)

    with pytest.raises(RobustnessError):
        check(candidate, tiny.model, token_ids=ids)


def test_a_damaged_rotated_candidate_is_red(tiny, ids):
    """A rotated candidate without its super weight has lost the norm of its sink token."""
    with pytest.raises(RobustnessError, match="residual norm is x0"):
        assert_super_activations_preserved(
            relatives.rotated(damage.damaged(tiny, damage.zero).model), tiny.model, token_ids=ids
        )


@pytest.mark.slow
def test_a_candidate_of_ordinary_damage_is_not_blamed_on_super_weights(tiny, ids):
    """Noise in a late layer is red as not the super weights, with that layer and its matrices named."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            weight = getattr(model.model.layers[3].mlp, name).weight
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 2 * weight.std())

    with pytest.raises(RobustnessError, match=r"^not the super weights") as caught:
        assert_perplexity_within(Loaded(model, tiny.tokenizer, "noisy", tiny.text), tiny, token_ids=ids)

    detail = dict(caught.value.verdict.detail)
    assert "layer 3" in detail["layers"]
    assert set([name for name in detail if name.startswith("layers.")][:2]) == {
        "layers.3.mlp.gate_proj",
        "layers.3.mlp.up_proj",
    }
    assert "100% of the loss returns" in detail["given back"]
    assert "neighbours in the super weights' blocks" in detail["ruled out"]


@pytest.mark.slow
def test_a_lost_contribution_is_proven_before_it_is_blamed(tiny, ids):
    """Given back through a hook, at least half of the lost nats return, and the message says how many."""
    with pytest.raises(RobustnessError, match="what the super weights write is lost") as caught:
        assert_perplexity_within(damage.damaged(tiny, damage.clip), tiny, token_ids=ids)

    assert "of the loss returns" in dict(caught.value.verdict.detail)["proof"]
    assert 'ignore=["lm_head", "model.layers.1.mlp.down_proj"]' in caught.value.verdict.attempt


@pytest.mark.slow
def test_predictions_that_drift_are_red(tiny, ids):
    """Mean KL and top-1 agreement are bounded, each by its own limit."""
    candidate = damage.damaged(tiny, damage.clip)

    with pytest.raises(RobustnessError, match="limit <= 0.05"):
        assert_predictions_preserved(candidate, tiny, top1=0.0, token_ids=ids)
    with pytest.raises(RobustnessError, match=r"limit >= 0\.8") as caught:
        assert_predictions_preserved(candidate, tiny, kl=50.0, token_ids=ids)
    assert caught.value.verdict.measured == caught.value.verdict.facts["top1"]
    assert assert_predictions_preserved(candidate, tiny, kl=50.0, top1=0.0, token_ids=ids).outcome is Outcome.PASSED


def test_two_models_of_one_shape_are_told_apart(tiny, ids):
    """Another initialisation is another base model, for every comparison."""
    torch.manual_seed(5)
    stranger = LlamaForCausalLM(tiny.model.config).eval()

    for check in COMPARISONS:
        with pytest.raises(RobustnessError, match=r"^wrong base model"):
            check(stranger, tiny.model, token_ids=ids)


def test_the_standard_error_is_that_of_window_means():
    """Windows are the independent units; a single window falls back to its tokens."""
    difference = torch.tensor([[1.0, 3.0], [5.0, 7.0]], dtype=torch.float64)

    assert standard_error(difference) == pytest.approx(torch.tensor([2.0, 6.0]).std().item() / 2**0.5)
    assert standard_error(difference[:1]) > 0
    assert standard_error(torch.zeros(1, 1)) == 0


@pytest.mark.slow
def test_a_candidate_without_its_last_layer_is_ordinary(tiny, ids):
    """A pruned depth is no other model: weights and activations before the cut are compared as they are."""
    model = copy.deepcopy(tiny.model)
    del model.model.layers[4:]
    model.config.num_hidden_layers = 4

    assert assert_super_weights_preserved(model, tiny.model, token_ids=ids).outcome is Outcome.PASSED
    assert assert_super_activations_preserved(model, tiny.model, token_ids=ids).outcome is Outcome.PASSED
    with pytest.raises(RobustnessError):
        assert_perplexity_within(model, tiny.model, token_ids=ids)


def test_a_weight_that_stands_in_another_layer_is_located_again(tiny, ids):
    """With a layer put in front, the indexed coordinate has moved on by one, and is found there."""
    model = copy.deepcopy(tiny.model)
    first = copy.deepcopy(model.model.layers[0])
    with torch.no_grad():
        first.self_attn.o_proj.weight.zero_()
        first.mlp.down_proj.weight.zero_()
    model.model.layers.insert(0, first)
    model.config.num_hidden_layers = 6

    verdict = assert_super_weights_preserved(model, tiny.model, token_ids=ids)

    assert verdict.outcome is Outcome.PASSED
    assert "located again in the candidate: layer 2 [97, 301]" in verdict.summary
    assert dict(verdict.detail)["layer 1 [97, 301]"].endswith(", now at layer 2 [97, 301]")


def test_a_weight_that_moved_in_its_row_is_not_located_again():
    """Another neuron writes about what it wrote, and none was permuted: it stands in a wrong column, and is red."""
    reference = plant([SINK])
    other = SINK.column + 1
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            weight = getattr(reference.model.layers[SINK.layer].mlp, name).weight
            weight[other] = 1.2 * weight[SINK.column]
    moved = copy.deepcopy(reference)
    with torch.no_grad():
        row = moved.model.layers[SINK.layer].mlp.down_proj.weight[SINK.row]
        row[other], row[SINK.column] = row[SINK.column].clone(), 0
    ids = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 0
    assert locate(moved, token_ids=ids[:1]).super_weights[0].column == other

    with pytest.raises(RobustnessError, match=rf"moved to column {other}"):
        assert_super_weights_preserved(moved, reference, token_ids=ids)


@pytest.mark.slow
def test_padded_vocabularies_are_ordinary(tiny, ids):
    """A vocabulary padded for speed changes no verdict."""
    model = copy.deepcopy(tiny.model)
    model.resize_token_embeddings(1088, mean_resizing=False)

    assert assert_super_weights_preserved(model, tiny.model, token_ids=ids).outcome is Outcome.PASSED
    assert assert_perplexity_within(model, tiny.model, ratio=1.05, token_ids=ids).outcome in {"passed", "near"}


@pytest.mark.slow
def test_added_tokens_are_ordinary_and_other_ids_are_not(tiny):
    """A token more, as for a chat, changes no text's ids; a tokenizer without BOS does, and is the cause."""
    more, bare = copy.deepcopy(tiny.tokenizer), copy.deepcopy(tiny.tokenizer)
    model = copy.deepcopy(tiny.model)
    more.add_tokens(["<|turn|>"])
    model.resize_token_embeddings(len(more), mean_resizing=False)
    bare.backend_tokenizer.post_processor = ByteLevel()

    tuned = Loaded(model, more, "tuned")
    assert assert_super_weights_preserved(tuned, tiny).outcome is Outcome.PASSED
    with pytest.raises(RobustnessError, match="tokenizer or BOS policy differs"):
        assert_super_weights_preserved(Loaded(tiny.model, bare, "bare"), tiny)


def test_the_ratio_outside_its_limit_is_named_before_one_farther_from_1(tiny, ids):
    """0.7 is red where 1.9 is allowed, though 1.9 is farther from 1."""
    assert worst_of([0.7, 1.9], Limit(0.75, 2.0, "")) == 0
    assert worst_of([0.8, 1.9], Limit(0.75, 2.0, "")) == 1
    assert worst_of([0.7, float("nan"), 1.0], Limit(0.75, 2.0, "")) == 1


# --- near ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_within_the_noise_of_its_limit_is_near(tiny, ids):
    """For every comparison: as measured it is near, well inside it has passed, and near is never outside."""
    half, noisy = damage.damaged(tiny, damage.halve), damage.damaged(tiny, damage.flip)

    def outcome(check, candidate, **limits):
        return check(candidate, tiny, token_ids=ids, **limits).outcome

    halved = assert_super_weights_preserved(half, tiny, low=0.3, token_ids=ids).measured
    assert outcome(assert_super_weights_preserved, half, low=halved) is Outcome.NEAR
    assert outcome(assert_super_weights_preserved, half, low=halved * 0.98) is Outcome.PASSED
    measured = assert_super_activations_preserved(half, tiny, low=0.3, token_ids=ids).measured
    assert outcome(assert_super_activations_preserved, half, low=measured) is Outcome.NEAR
    assert outcome(assert_super_activations_preserved, half, low=measured * 0.99) is Outcome.PASSED
    drift = assert_predictions_preserved(noisy, tiny, kl=50.0, top1=0.0, token_ids=ids)
    assert drift.outcome is Outcome.PASSED
    assert outcome(assert_predictions_preserved, noisy, kl=drift.measured, top1=0.0) is Outcome.NEAR
    same = {"kl": 50.0, "top1": 1e-9}
    assert outcome(assert_predictions_preserved, half, **same) is Outcome.PASSED
    share = assert_collapses_when_zeroed(half, tiny, token_ids=ids).measured
    assert outcome(assert_collapses_when_zeroed, half, share=share) is Outcome.NEAR
    with pytest.raises(RobustnessError):
        assert_collapses_when_zeroed(half, tiny, share=share * 1.0001, token_ids=ids)


@pytest.mark.slow
def test_the_noise_floor_is_measured_and_told(tiny, ids):
    """Scored alone or among others, a window gives the same nats but for rounding, and the verdict says how much."""
    nats, part = noise_floor(as_subject(tiny.model, token_ids=ids))
    coarse = noise_floor(as_subject(copy.deepcopy(tiny.model).to(torch.bfloat16), token_ids=ids))
    verdict = assert_perplexity_within(tiny, tiny, token_ids=ids)

    assert 0 <= nats < 1e-4
    assert torch.finfo(torch.float32).eps <= part < 1e-4
    assert coarse[1] >= torch.finfo(torch.bfloat16).eps
    assert verdict.facts["noise"] == nats
    assert "noise" in verdict.summary


@pytest.mark.parametrize("multiplier", [0.22, 3.0])
def test_half_a_scalar_is_red_whatever_multiplies_what_the_map_writes(multiplier):
    """Granite's residual multiplier makes half of a super weight no whole one: it is not "located again" at its own place."""
    model = small_model("granite")
    for layer in model.model.layers:
        layer.residual_multiplier = multiplier
    [weight] = plant_super_weights(model, [Planting(1, 3)], PLANTED)
    halved = copy.deepcopy(model)
    anatomy(halved).down_map(weight).weight[weight.row, weight.column] /= 2
    text = PLANTED.repeat(2, 1)
    assert_super_weights_preserved(copy.deepcopy(model), model, token_ids=text)
    with pytest.raises(RobustnessError) as error:
        assert_super_weights_preserved(halved, model, token_ids=text)
    assert error.value.verdict.measured == pytest.approx(0.5)
    assert "located again" not in error.value.verdict.summary


# --- several super weights -----------------------------------------------------------------------------------------------

BOTH = (SINK, SuperWeight(2, 6, 9, 20.0))


def of_two(factor=1.0):
    """A model with two super weights, the second times ``factor``."""
    model = plant(BOTH)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[6, 9] *= factor
    return model


@pytest.fixture(scope="module")
def drawn():
    ids = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 0
    return ids


def test_one_of_two_that_is_near_its_limit_makes_the_verdict_near(drawn):
    """Though the other one writes all that it wrote."""
    asked = {"super_weights": BOTH, "token_ids": drawn}
    measured = assert_super_weights_preserved(of_two(0.8), of_two(), low=0.5, **asked).measured
    assert measured == pytest.approx(0.8)
    assert assert_super_weights_preserved(of_two(0.8), of_two(), low=measured, **asked).outcome is Outcome.NEAR


def test_how_many_of_several_still_write_is_said(drawn):
    """Where some do, and not where none or all do."""
    asked = {"super_weights": BOTH, "token_ids": drawn}
    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(of_two(0.5), of_two(), **asked)
    assert "; 1 of 2 weights still do" in caught.value.verdict.summary
    assert "still do" not in assert_super_weights_preserved(of_two(), of_two(), **asked).summary


def test_a_collapse_of_several_shows_each_alone(drawn):
    """That of one shows no row of it."""
    together = assert_collapses_when_zeroed(of_two(), super_weights=BOTH, token_ids=drawn, factor=0.5)
    assert [name for name, _ in together.detail] == [f"{weight} alone" for weight in BOTH]
    one = assert_collapses_when_zeroed(of_two(), super_weights=BOTH[:1], token_ids=drawn, factor=0.5)
    assert one.detail == ()


def test_a_collapse_is_told_in_words(tiny, ids):
    """What it reaches, in nats too, and only of a red one the cause."""
    passed = assert_collapses_when_zeroed(tiny, token_ids=ids)
    assert passed.summary.endswith("critical, worse than guessing")
    assert passed.facts["nats"] == pytest.approx(math.log(passed.measured))
    assert (passed.cause, passed.attempt, passed.cause_kind) == ("", "", "")
    with pytest.raises(RobustnessError, match="on its super weights as much as asked") as caught:
        assert_collapses_when_zeroed(tiny, token_ids=ids, factor=1e30)
    assert (caught.value.verdict.cause_kind, caught.value.verdict.attempt[:8]) == ("dependence", "relocate")
    with pytest.raises(RobustnessError, match=r"on its super weights \(x1") as caught:
        assert_collapses_when_zeroed(tiny, super_weights=[SuperWeight(2, 3, 4)], token_ids=ids)
    assert "guessing" not in caught.value.verdict.summary


@pytest.mark.slow
def test_a_share_within_its_standard_error_of_the_limit_is_near(tiny, ids):
    """As far as the windows differ, not only as far as rounding does."""
    half, place = damage.damaged(tiny, damage.halve), [damage.WEIGHT]
    candidate, reference = as_subject(half, token_ids=ids), as_subject(tiny, token_ids=ids)
    share = assert_collapses_when_zeroed(half, tiny, token_ids=ids).measured
    lost = ablated_nats(candidate, place) - intact_nats(candidate)
    width = STANDARD_ERRORS * standard_error(lost) / float(lost.mean())
    assert width > 10 * noise_floor(reference)[0]
    for part, outcome in ((0.8, Outcome.NEAR), (1.2, Outcome.PASSED)):
        found = assert_collapses_when_zeroed(half, tiny, share=share * (1 - part * width), token_ids=ids)
        assert found.outcome is outcome
