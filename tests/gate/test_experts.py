"""Mixtures of experts, and models without down projections, through the assertions."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch

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
    plant_super_weights,
)
from swcheck.gate.baseline.file import baseline_text, read_baseline
from swcheck.gate.baseline.measure import measure_for_candidates
from swcheck.superweights.measurements.located import located
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.candidates import candidate
from tests.versions import RECENT
from tools.small_models import small_model

IDS = torch.arange(5, 29)[None]
TEXT = torch.randint(3, 64, (8, 40), generator=torch.Generator().manual_seed(1))
TEXT[0, :24] = IDS


@pytest.fixture(scope="module")
def mixture():
    """A mixture of experts with a super weight in an expert, and that weight."""
    model = small_model("mixtral")
    expert = next(one for one in range(4) if one in _visited(model))
    return model, plant_super_weights(model, [Planting(1, 3, expert=expert)], IDS)[0]


def _visited(model):
    from swcheck.testing.planting import visited_experts

    return visited_experts(model, 1, IDS)


def damaged(model, weight, factor):
    """A copy with one scalar multiplied."""
    found = copy.deepcopy(model)
    anatomy(found).down_map(weight).weight[weight.row, weight.column] *= factor
    return found


@pytest.mark.slow
def test_a_copy_is_green(mixture):
    """A copy of a mixture keeps its super weights and activations."""
    model, weight = mixture
    for check in (assert_super_weights_preserved, assert_super_activations_preserved, assert_perplexity_within):
        assert check(copy.deepcopy(model), model, token_ids=TEXT).outcome is Outcome.PASSED
    verdict = assert_super_weights_preserved(copy.deepcopy(model), model, token_ids=TEXT)
    assert verdict.summary == f"{weight.place} writes x1.000 of the reference's"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "words"), [(0.0, "zeroed"), (0.4, "weakened"), (-1.0, "flipped|of the other sign|sign")]
)
def test_a_damaged_expert_is_red_with_its_place(mixture, factor, words):
    """A damaged super weight of an expert is named by layer and expert, and the models are left as they were."""
    model, weight = mixture
    candidate = damaged(model, weight, factor)
    before = copy.deepcopy(candidate.state_dict())
    with pytest.raises(RobustnessError, match=rf"super weight at {re.escape(weight.place)} .*({words})"):
        assert_super_weights_preserved(candidate, model, token_ids=TEXT)
    with pytest.raises(RobustnessError, match="super activation of channel 3"):
        assert_super_activations_preserved(candidate, model, token_ids=TEXT)
    assert all(torch.equal(value, before[name]) for name, value in candidate.state_dict().items())


def test_the_whole_expert_is_shown_beside_the_scalar(mixture):
    """The causal check shows what zeroing the whole expert costs, beside its super weight."""
    model, weight = mixture
    with pytest.raises(RobustnessError) as caught:
        assert_collapses_when_zeroed(model, token_ids=TEXT, super_weights=[weight], factor=1e9)
    assert re.search(rf"whole expert {weight.expert} of layer 1 +x\d", str(caught.value))


def test_packed_experts_are_not_applicable_in_words(mixture):
    """Where the candidate's experts are packed the check says so; perplexity is judged all the same."""
    model, weight = mixture
    candidate = copy.deepcopy(model)
    anatomy(candidate)
    experts = candidate.model.layers[1].mlp.experts
    experts.codes, experts.down_proj = experts.down_proj.data, None
    experts.forward = _unpacking(experts)
    verdict = assert_super_weights_preserved(candidate, model, token_ids=TEXT)
    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert (
        verdict.summary
        == f"{weight.place}: the candidate keeps its experts packed, and computes them in a kernel that no hook reaches"
    )
    assert assert_perplexity_within(candidate, model, token_ids=TEXT).outcome is Outcome.PASSED


def _unpacking(experts):
    """A forward that computes with unpacked weights, as kernels for packed experts do."""

    def forward(*args, **kwargs):
        experts.down_proj = torch.nn.Parameter(experts.codes)
        try:
            return type(experts).forward(experts, *args, **kwargs)
        finally:
            experts.down_proj = None

    return forward


@pytest.fixture(scope="module")
def speaking():
    """A mixture that depends on its experts and predicts well, and a text that it made, int64 ``(16, 40)``."""
    model = small_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.experts.down_proj.data.mul_(60)
        layer.mlp.gate.weight.data.mul_(50)
    model.lm_head.weight.data.mul_(60)
    return model, said_by(model)


def said_by(model):
    """A text that a model makes, int64 ``(16, 40)``: it predicts it well."""
    torch.manual_seed(0)
    ids = torch.full((16, 1), 5)
    with torch.no_grad():
        for _ in range(39):
            ids = torch.cat(
                [ids, torch.distributions.Categorical(logits=model(ids).logits[:, -1]).sample()[:, None]], 1
            )
    return ids


def test_a_broken_router_is_a_cause_of_its_own(speaking):
    """A candidate whose routers send tokens elsewhere is red with that cause, proven by giving the routing back."""
    model, ids = speaking
    candidate = copy.deepcopy(model)
    for layer in candidate.model.layers:
        layer.mlp.gate.weight.data.copy_(layer.mlp.gate.weight.data[[1, 2, 3, 0]])
    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(candidate, model, token_ids=ids)
    assert re.match(
        r"the router chooses other experts \(\d+% of the tokens go to other experts in layer \d\)", str(caught.value)
    )
    assert "the reference's routing given back through a hook: perplexity x1.000, 100% of the loss returns" in str(
        caught.value
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mamba", *(pytest.param(name, marks=RECENT) for name in ("prophetnet", "deepseek_v4"))]
)
def test_perplexity_needs_no_down_projection(name):
    """Perplexity and predictions are judged of any causal language model; what needs a down projection says why not."""
    model = small_model(name)
    candidate = copy.deepcopy(model)
    assert assert_perplexity_within(candidate, model, token_ids=TEXT).measured == pytest.approx(1)
    assert assert_predictions_preserved(candidate, model, token_ids=TEXT).measured == pytest.approx(0, abs=1e-6)
    assert assert_super_weights_preserved(candidate, model, token_ids=TEXT).outcome is Outcome.NOT_APPLICABLE
    head = model.get_output_embeddings().weight.data
    candidate.get_output_embeddings().weight = torch.nn.Parameter(-50 * head)
    with pytest.raises(RobustnessError, match="perplexity of"):
        assert_perplexity_within(candidate, model, token_ids=TEXT)


def test_coordinates_of_experts_in_words_and_order():
    """A coordinate says its expert, sorts with others, and travels through its own JSON."""
    weights = [SuperWeight(3, 97, 301, 2.5, 17), SuperWeight(3, 97, 301), SuperWeight(3, 97, 301, None, "shared")]
    assert [str(one) for one in weights] == [
        "layer 3 expert 17 [97, 301] = +2.5", "layer 3 [97, 301]", "layer 3 expert shared [97, 301]",
    ]  # fmt: skip
    assert sorted(weights) == [weights[1], weights[0], weights[2]]
    assert [SuperWeight(**one.as_json()) for one in weights] == weights
    assert len(set(weights)) == 3


def test_baselines_know_experts_and_old_ones_are_read(mixture):
    """A baseline keeps the coordinates of experts; one of the schema before, which has no experts, is still read."""
    model, weight = mixture
    subject = as_subject(model, token_ids=TEXT, role="reference")
    assert located(subject).super_weights == (weight,)
    text = baseline_text(subject, {})
    kept = read_baseline(text, "here")[0]
    assert located(kept).super_weights == (weight,)
    old = without_experts(json.loads(text)) | {"schema": 2}
    [known] = located(read_baseline(json.dumps(old), "here")[0]).super_weights
    assert (known.layer, known.expert) == (1, None)


def without_experts(value):
    """A parsed JSON value without the field that older versions did not write."""
    if isinstance(value, dict):
        return {name: without_experts(part) for name, part in value.items() if name != "expert"}
    return [without_experts(part) for part in value] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("experts lost", r"2 expert tensors alike, first model.layers.3.mlp.experts.gate_up_proj: is all zeros in experts 0, 1, 2"),
        ("experts drawn again", r"2 expert tensors .* is unrelated to the reference's, as if drawn again in experts 0, 1, 2"),
        ("experts exchanged", r"2 expert tensors .* has others in place of experts 0, 1"),
    ],
)  # fmt: skip
def test_experts_that_were_never_filled_are_named(speaking, name, words):
    """Zeroed, drawn again, or exchanged: layer and experts are named, and giving them back proves it."""
    model, ids = speaking
    found = candidate(name, Loaded(model, None, "mixture"))
    with pytest.raises(RobustnessError) as caught:
        assert_predictions_preserved(found, model, token_ids=ids)
    assert re.fullmatch(words, caught.value.verdict.cause)
    assert caught.value.verdict.cause_kind == "tensor"


@RECENT
@pytest.mark.slow
def test_an_expert_lost_in_a_matrix_of_all_is_named():
    """DBRX has the experts of a layer below each other in one matrix: the one that was never filled is named."""
    model = small_model("dbrx")
    for layer in model.transformer.blocks:
        layer.ffn.experts.mlp.w2.data.mul_(60)
        layer.ffn.router.layer.weight.data.mul_(50)
    model.lm_head.weight.data.mul_(60)
    found = copy.deepcopy(model)
    with torch.no_grad():
        found.transformer.blocks[3].ffn.experts.mlp.w2[:80] = 0
    with pytest.raises(RobustnessError) as caught:
        assert_predictions_preserved(found, model, token_ids=said_by(model))
    assert caught.value.verdict.cause == (
        "expert tensor transformer.blocks.3.ffn.experts.mlp.w2 is all zeros in expert 0"
    )


FAULTS = {
    "experts lost": "2 expert tensors alike, first model.layers.3.mlp.experts.gate_up_proj: is all zeros in experts 0, 1, 2",
    "experts drawn again": "2 expert tensors alike, first model.layers.3.mlp.experts.gate_up_proj: is unrelated to the reference's, as if drawn again in experts 0, 1, 2",
    "experts exchanged": "2 expert tensors alike, first model.layers.3.mlp.experts.gate_up_proj: has others in place of experts 0, 1",
}  # fmt: skip


@pytest.fixture(scope="module")
def spoken(speaking, tmp_path_factory):
    """A baseline of that mixture beside its files, where each expert has tensors of its own."""
    model, ids = speaking
    folder = tmp_path_factory.mktemp("mixture")
    model.save_pretrained(folder)
    subject = as_subject(model, token_ids=ids, role="reference")
    measure_for_candidates(subject)
    baseline, _ = read_baseline(baseline_text(subject, {}), "here")
    baseline.source, baseline.token_ids = str(folder), ids
    return baseline


@RECENT
@pytest.mark.parametrize("name", FAULTS)
def test_a_baseline_beside_the_reference_s_files_names_faults_of_experts(speaking, spoken, name):
    """The experts are read from the files as transformers would load them, and given back."""
    model, ids = speaking
    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(
            as_subject(candidate(name, Loaded(model, None, "mixture")), token_ids=ids), spoken, ratio=1.001
        )
    assert caught.value.verdict.cause == FAULTS[name]


def test_a_baseline_beside_the_reference_s_files_names_a_broken_router(speaking, spoken):
    """No pass of the reference is possible: the routers' weights are compared, and given back."""
    model, ids = speaking
    other = copy.deepcopy(model)
    for layer in other.model.layers[:2]:
        layer.mlp.gate.weight.data.copy_(layer.mlp.gate.weight.data[[1, 2, 3, 0]])
    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(as_subject(other, token_ids=ids), spoken)
    assert caught.value.verdict.cause == "the router is another one (model.layers.0.mlp.gate and 1 more)"
    assert caught.value.verdict.cause_kind == "router"


@pytest.mark.slow
def test_routing_is_given_back_on_whole_windows_where_little_was_lost(speaking):
    """A proof by the KL divergence scores whole windows, and routes all of their tokens."""
    model, ids = speaking
    other = copy.deepcopy(model)
    other.model.layers[2].mlp.gate.weight.data[:2] = other.model.layers[2].mlp.gate.weight.data[:2].flip(0)
    long = ids.repeat(1, 5)
    with pytest.raises(RobustnessError) as caught:
        assert_predictions_preserved(other, model, kl=1e-9, top1=1.0, token_ids=long)
    verdict = caught.value.verdict
    assert verdict.cause_kind == "router"
    assert "the reference's routing given back through a hook" in str(verdict.detail)


def test_a_candidate_without_the_expert_is_red_and_says_which_it_has():
    """It was made with fewer experts: none is packed, and the one that is asked for is not there."""
    model = small_model("mixtral")
    [weight] = plant_super_weights(model, [Planting(1, 3, expert=max(_visited(model)))], IDS)
    fewer = copy.deepcopy(model)
    mlp = fewer.model.layers[1].mlp
    with torch.no_grad():
        for name in ("gate_up_proj", "down_proj"):
            setattr(mlp.experts, name, torch.nn.Parameter(getattr(mlp.experts, name)[: weight.expert]))
        mlp.gate.weight = torch.nn.Parameter(mlp.gate.weight[: weight.expert])
    mlp.experts.num_experts = mlp.gate.num_experts = weight.expert

    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(fewer, model, token_ids=TEXT)

    has = f"layer 1 has experts 0 to {weight.expert - 1}"
    assert caught.value.verdict.cause == f"no place for the super weight at {weight.place}: {has}"
