"""The causes, in their order: each is found on a model that is really damaged that way, proven, and first in the line."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from swcheck import (
    Loaded,
    Outcome,
    RobustnessError,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    load,
)
from swcheck.gate.checks.pair import Pair
from swcheck.gate.diagnosis.causes.activation import reference_values
from swcheck.gate.diagnosis.evidence.damaged_candidate import DamagedCandidate
from swcheck.gate.diagnosis.explain import STEPS
from swcheck.lens.non_finite import first_non_finite
from swcheck.lens.observe import observe
from swcheck.lens.replace import maps_replaced
from swcheck.lens.tokens import token_windows
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.residual_stream import super_activations
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.damage import bases as relatives
from tests import damage
from tests.damage import COLUMN, ROW
from tests.planted import Packed


@pytest.fixture(scope="module")
def ids(tiny):
    return token_windows(tiny.tokenizer, tiny.text, count=6, length=128)


def edited(tiny, edit, name="edited"):
    """A copy of tiny with ``edit`` done to its model."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        edit(model)
    return Loaded(model, tiny.tokenizer, name, tiny.text)


def red(check, *args, **options):
    """The verdict of a check that has to be red."""
    with pytest.raises(RobustnessError) as caught:
        check(*args, **options)
    return caught.value.verdict


def rows(verdict, name):
    return [text for key, text in verdict.detail if key == name]


# --- not finite, or out of a range ---------------------------------------------------------------------------------------


def test_a_float16_that_ends_is_named_with_its_module(tiny, ids):
    """Finite weights whose answer no float16 holds are no NaN of unknown origin: module, format and end are named."""

    def overflow(model):
        model.model.layers[1].mlp.down_proj.weight[ROW, COLUMN] = 600
        model.half()

    verdict = red(assert_perplexity_within, edited(tiny, overflow), tiny, token_ids=ids)

    assert verdict.cause == "not finite: out of the range of float16 in model.layers.1.mlp.down_proj"
    assert "float16 ends at 65504" in verdict.summary
    assert "bfloat16" in verdict.attempt


def test_a_sum_that_overflows_is_blamed_on_its_layer(tiny, ids):
    """Two finite parts whose sum is too large break in the layer that adds them, no module inside it."""

    def overflow(model):
        model.model.layers[1].mlp.down_proj.weight[ROW, COLUMN] = 320  # writes some 48,000
        model.model.layers[4].mlp.down_proj.weight[ROW, 68] = 2000  # and some 40,000 on top
        model.half()

    candidate = edited(tiny, overflow)
    found = first_non_finite(candidate.model, ids[:1])

    assert found is not None
    assert found.overflow
    assert not found.stored
    assert found.module.startswith("model.layers.")
    assert "down_proj" not in found.module


class Stored(nn.Module):
    """A linear map that stores few bits, without a scale: what is too large for them becomes infinity."""

    def __init__(self, weight, dtype):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("codes", weight.detach().to(dtype))

    def forward(self, x):
        return functional.linear(x, self.codes.to(x.dtype))


@pytest.mark.parametrize(("value", "dtype"), [(1e6, torch.float8_e5m2), (1e6, torch.float16)])
def test_a_weight_that_a_format_cannot_hold_is_out_of_its_range(tiny, ids, value, dtype):
    """A stored infinity is an overflow of the format it is stored in."""

    def store(model):
        mlp = model.model.layers[1].mlp
        mlp.down_proj.weight[ROW, COLUMN] = value
        mlp.down_proj = Stored(mlp.down_proj.weight, dtype)

    verdict = red(assert_super_weights_preserved, edited(tiny, store), tiny, token_ids=ids)

    assert verdict.cause.startswith(f"not finite: out of the range of {str(dtype).removeprefix('torch.')}")
    assert "holds larger numbers in its weights" in verdict.summary


def test_nan_in_a_weight_is_no_overflow(tiny, ids):
    """A poisoned matrix is named, and no range is blamed."""
    verdict = red(assert_perplexity_within, damage.damaged(tiny, damage.poison), tiny, token_ids=ids)

    assert (verdict.cause, verdict.summary) == ("not finite", "NaN in the weights of model.layers.1.mlp.down_proj")


def test_nan_on_the_text_alone_is_not_finite(tiny, ids):
    """A candidate that answers the prompt and breaks on a token of the text is told so."""
    seen = set(tiny.tokenizer("The quick brown fox jumps over the lazy dog.")["input_ids"])
    token = next(int(t) for t in ids.flatten() if int(t) not in seen and int(t) > 2)

    def poison(model):
        model.model.embed_tokens.weight[token] = float("nan")

    verdict = red(assert_perplexity_within, edited(tiny, poison), tiny, token_ids=ids)

    assert verdict.cause == "not finite"
    assert f"NaN or infinity in the weights of model.embed_tokens, row {token}" in verdict.summary


@pytest.mark.slow
def test_a_saturated_weight_names_the_end_of_its_format(tiny, ids):
    """A super weight that stands at float8's largest number was cut there, and not merely weakened."""
    reference = relatives.rescaled(tiny.model, 1024.0)
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        candidate.model.layers[1].mlp.down_proj.weight.clamp_(-448, 448)

    verdict = red(assert_super_weights_preserved, candidate, reference, token_ids=ids)

    assert "cut at the end of the range of float8_e4m3fn (448)" in verdict.cause


# --- the reference -----------------------------------------------------------------------------------------------------


def test_a_reference_worse_than_guessing_is_sick(tiny, ids):
    """Nothing is blamed on a candidate whose reference has no language left in it."""
    reference = damage.damaged(tiny, damage.zero)

    def noise(model):
        model.model.layers[1].mlp.down_proj.weight[ROW, COLUMN] = 0
        model.lm_head.weight.mul_(3)

    verdict = red(assert_perplexity_within, edited(tiny, noise), reference, token_ids=ids)

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.cause.startswith("the reference is sick")
    assert "guessing has 1,024" in rows(verdict, "reference")[0]


# --- the basis ---------------------------------------------------------------------------------------------------------


def permuted_embedding(model):
    """Channels permuted in the embedding, and nowhere else."""
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[:, order])


def rotated_embedding(model):
    """The embedding turned, and nothing else."""
    turn = torch.linalg.qr(torch.randn(256, 256, generator=torch.Generator().manual_seed(0)))[0]
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ turn)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "kind", "checks"),
    [
        (permuted_embedding, "permuted", (assert_super_weights_preserved, assert_super_activations_preserved)),
        (rotated_embedding, "rotated", ()),
    ],
)
def test_an_embedding_in_another_basis_than_its_layers_is_named(tiny, ids, edit, kind, checks):
    """It is no super weight that was lost: the reference's embedding given back brings the nats back."""
    candidate = edited(tiny, edit)

    for check in (*checks, assert_perplexity_within, assert_predictions_preserved):
        verdict = red(check, candidate, tiny, token_ids=ids)
        assert verdict.cause.startswith(f"basis: the embedding is {kind}, the layers behind it are not")
        assert "100% of the loss returns" in rows(verdict, "proof")[0]


def grow(matrix):
    matrix[ROW, COLUMN] *= 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (damage.flip, "has its sign flipped"),
        (damage.clip, "is lost"),
        (grow, "is too large"),
    ],
    ids=["flipped", "clipped", "grown"],
)
def test_what_became_of_a_contribution_is_said_as_it_is(tiny, ids, edit, words):
    """Written with the other sign, or far too large, it is not lost: the first line says which."""
    candidate = damage.damaged(tiny, edit)
    verdict = red(assert_perplexity_within, candidate, tiny, token_ids=ids)
    assert verdict.cause.startswith(f"what the super weights write {words} (layer 1 [97, 301])")


def test_a_permuted_candidate_that_is_damaged_elsewhere_has_its_basis_ruled_out(tiny, ids):
    """A whole permutation is no cause: what was zeroed in it is."""
    candidate = relatives.permuted(damage.damaged(tiny, damage.zero).model)

    verdict = red(assert_perplexity_within, candidate, tiny, token_ids=ids)

    assert verdict.cause.startswith("what the super weights write is lost")
    assert any("a permuted embedding before other layers" in words for words in rows(verdict, "ruled out"))


# --- the super weights, their activation, their neighbours ------------------------------------------------------------


@pytest.mark.slow
def test_a_lost_contribution_comes_with_what_was_ruled_out(tiny, ids):
    """The proof stands first, then the causes before it in the order, each with its number."""
    verdict = red(assert_perplexity_within, damage.damaged(tiny, damage.zero), tiny, token_ids=ids)

    assert verdict.cause.startswith("what the super weights write is lost (layer 1 [97, 301])")
    assert "100% of the loss returns" in rows(verdict, "proof")[0]
    said = " ".join(rows(verdict, "ruled out"))
    assert "a sick reference (perplexity" in said
    assert "another tokenizer" in said
    assert "Gram matrices correlate at 1.00" in said


def erased_in_layer_2(model):
    """Twenty neurons of layer 2 that read the super activation write its opposite together."""
    mlp, neurons = model.model.layers[2].mlp, slice(17, 37)
    for part in (mlp.gate_proj, mlp.up_proj):
        part.weight[neurons] = 0
        part.weight[neurons, ROW] = 0.5
    with observe(model, residual=[1], inputs=[2], stop=True) as sight:
        model(torch.tensor([[0, 5, 9]]))
    mlp.down_proj.weight[:, neurons] = 0
    mlp.down_proj.weight[ROW, neurons] = -sight.residual[1][0, 0, ROW] / sight.inputs[2][0, 0, 17] / 20


def opposed(model):
    """A twin of the super weight's inner neuron writes nine tenths of the opposite."""
    mlp = model.model.layers[1].mlp
    mlp.gate_proj.weight[17], mlp.up_proj.weight[17] = mlp.gate_proj.weight[COLUMN], mlp.up_proj.weight[COLUMN]
    mlp.down_proj.weight[:, 17] = 0
    mlp.down_proj.weight[ROW, 17] = -0.9 * mlp.down_proj.weight[ROW, COLUMN]


@pytest.mark.slow
def test_an_activation_that_a_later_layer_loses_is_named_with_that_layer(tiny, ids):
    """The super weight writes what it should, layer 2 takes it away: given back there, the loss returns."""
    candidate = edited(tiny, erased_in_layer_2)
    verdict = red(assert_perplexity_within, candidate, tiny, token_ids=ids)

    assert verdict.cause.startswith("layer 2 loses the super activation of channel 97")
    assert "what the super weights write is kept" in verdict.cause
    assert "of the loss returns" in rows(verdict, "proof")[0]
    assert "model.layers.2.mlp.down_proj" in verdict.facts["fix"]["matrices"]
    assert any("what the super weights write (x1.000" in words for words in rows(verdict, "ruled out"))


@pytest.mark.slow
@pytest.mark.parametrize("check", [assert_super_weights_preserved, assert_super_activations_preserved])
def test_a_lost_weight_or_activation_is_given_back_before_it_is_blamed_for_the_loss(tiny, ids, check):
    """Zeroed, all of the loss returns with it: a proof; beside greater damage that is named, and proven."""

    def zeroed(model):
        model.model.layers[1].mlp.down_proj.weight[ROW, COLUMN] = 0

    def noisy(model):
        zeroed(model)
        model.model.layers[1].mlp.down_proj.weight[ROW, COLUMN] = 0.3 * 2.625
        model.model.layers[3].self_attn.q_proj.weight.mul_(-1)

    alone, beside = (red(check, edited(tiny, edit), tiny, token_ids=ids) for edit in (zeroed, noisy))

    assert "restored through a hook: perplexity x1.000, 100% of the loss returns" in rows(alone, "proof")
    assert beside.cause == "linear map model.layers.3.self_attn.q_proj is scaled x-1"
    assert "of the loss returns" in rows(beside, "proof")[0]


@pytest.mark.slow
def test_an_activation_lost_in_its_own_layer_is_told_from_a_lost_weight(tiny, ids):
    """Where another neuron of the same row writes against it, the super weight itself is not blamed."""

    candidate = edited(tiny, opposed)

    verdict = red(assert_super_activations_preserved, candidate, tiny, token_ids=ids)

    assert "lost" in verdict.cause
    assert "in layer 1; what the super weights write is kept" in verdict.cause
    assert "of the loss returns" in rows(verdict, "proof")[0]
    assert verdict.facts["fix"]["matrices"] == ["model.layers.1.mlp.down_proj"]
    assert assert_super_weights_preserved(candidate, tiny, token_ids=ids).measured == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_the_block_neighbours_of_a_kept_super_weight_pay(tiny, ids):
    """One scale for the whole matrix: the outlier is exact, all others round to nothing, and that is the cause."""

    def one_scale(matrix):
        step = matrix[ROW, COLUMN] / 7
        matrix.copy_((matrix / step).round() * step)

    candidate = damage.damaged(tiny, one_scale)

    assert assert_super_weights_preserved(candidate, tiny, token_ids=ids).measured == pytest.approx(1, abs=0.01)
    verdict = red(assert_perplexity_within, candidate, tiny, token_ids=ids)
    assert verdict.cause.startswith("block neighbours of the super weight pay (layer 1, its whole matrix)")
    assert "100% of the loss returns" in rows(verdict, "proof")[0]
    assert verdict.facts["fix"]["matrices"] == ["model.layers.1.mlp.down_proj"]


@pytest.mark.slow
def test_a_row_that_pays_is_found_without_its_matrix(tiny, ids):
    """Where only the super weight's own row lost its neighbours, that row given back is the proof."""

    def one_row(matrix):
        row = matrix[ROW].clone()
        matrix[ROW] = -6 * row
        matrix[ROW, COLUMN] = row[COLUMN]

    verdict = red(assert_perplexity_within, damage.damaged(tiny, one_row), tiny, ratio=1.0001, token_ids=ids)

    assert verdict.cause.startswith("block neighbours of the super weight pay (layer 1, row 97)")


# --- dependence ----------------------------------------------------------------------------------------------------------


def share_its_work(model):
    """A second inner neuron becomes a twin of the super weight's, and each writes half."""
    mlp = model.model.layers[1].mlp
    mlp.gate_proj.weight[17], mlp.up_proj.weight[17] = mlp.gate_proj.weight[COLUMN], mlp.up_proj.weight[COLUMN]
    mlp.down_proj.weight[:, 17] = mlp.down_proj.weight[:, COLUMN] / 2
    mlp.down_proj.weight[:, COLUMN] /= 2


@pytest.mark.slow
def test_a_healthy_candidate_that_lives_on_without_them_lost_its_dependence(tiny, ids):
    """Nothing else is lost: the constant comes from elsewhere, and that is the cause, with the number that proves it."""
    verdict = red(assert_collapses_when_zeroed, edited(tiny, share_its_work), tiny, share=0.99, token_ids=ids)

    assert verdict.cause.startswith("the candidate does not hang on these weights any more")
    assert re.search(r"perplexity intact x(0\.99|1\.0)", rows(verdict, "proof")[0])


@pytest.mark.slow
@pytest.mark.parametrize("check", [assert_collapses_when_zeroed, assert_predictions_preserved])
def test_two_bits_are_not_the_super_weights(tiny, ids, check):
    """A model that two bits ruined everywhere has not lost its dependence first: its bits are named, and the order said."""
    candidate = load("rtn:bits=2,block=128", reference="tiny", device="cpu")

    options = {"kl": 0.1} if check is assert_predictions_preserved else {}
    verdict = red(check, candidate, tiny, token_ids=ids, **options)

    assert verdict.cause == "not the super weights, but coarse rounding: all linear maps answer as with 2.3 bits"
    assert verdict.cause_kind == "rounding"
    price = r"to spare (the 5 worst alone returns \d+% of the loss|these matrices alone does not help)"
    assert re.fullmatch(rf"more bits or smaller groups \({price}\)", verdict.attempt)
    assert len(rows(verdict, "bits by layer")) == 1
    assert len([name for name, _ in verdict.detail if name.startswith("layers.")]) == 5
    said = " ".join(rows(verdict, "ruled out"))
    assert "neighbours in the super weights' blocks (row 97 given back" in said
    if check is assert_collapses_when_zeroed:
        assert "a constant from elsewhere" in said


@pytest.mark.slow
def test_a_cause_is_sought_once_for_all_checks(tiny, ids, monkeypatch):
    """Two red checks of one candidate share what was found."""
    calls = []
    monkeypatch.setattr("swcheck.gate.diagnosis.explain.STEPS", (lambda case: calls.append(case) or (), *STEPS))
    one, other = (as_subject(thing, token_ids=ids) for thing in (damage.damaged(tiny, damage.clip), tiny))

    first = red(assert_perplexity_within, one, other)
    second = red(assert_predictions_preserved, one, other)

    assert len(calls) == 1
    assert first.cause == second.cause


@pytest.mark.slow
def test_a_share_of_no_loss_proves_nothing(tiny, ids):
    """Where the candidate has lost nothing beyond the noise, what a hook gives back is no cause, however large a share."""
    candidate = edited(tiny, lambda model: model.model.layers[2].mlp.up_proj.weight.mul_(1 + 1e-5))
    for one, other in ((candidate, tiny), (tiny, candidate)):
        pair = Pair("", as_subject(one, token_ids=ids), as_subject(other, token_ids=ids))
        case = DamagedCandidate(pair.candidate, pair.reference, pair.relation, pair.weights, pair.weights)
        weight = other.model.model.layers[2].mlp.up_proj.weight
        share, words = case.recovered(partial(maps_replaced, maps={"model.layers.2.mlp.up_proj": weight}, rows={}))
        assert (share, "no loss beyond the noise" in words) == (0, True)


def test_what_returns_is_told_of_what_it_was_tried_on(tiny, ids):
    """Causes are tried on the beginnings of the windows, where the loss is another one: both are said, and go together."""
    factors = 1 + 5 * torch.rand(256, 512, generator=torch.Generator().manual_seed(0))
    candidate = edited(tiny, lambda model: model.model.layers[3].mlp.down_proj.weight.mul_(factors))
    verdict = red(assert_perplexity_within, candidate, tiny, token_ids=ids)

    (tried,) = rows(verdict, "tried on")
    assert tried.startswith("the first 64 tokens of 6 windows, where the candidate has perplexity x")
    before = tried.rpartition(" ")[2]
    assert f"x{verdict.measured:.3f}" != before
    nothing = next(words for words in rows(verdict, "ruled out") if words.startswith("what the super weights write"))
    restored = re.search(r"restored through a hook: perplexity x([0-9.]+), 0% of the loss returns", nothing)
    assert float(restored.group(1)) == pytest.approx(float(before[1:]), rel=1e-3)


def test_a_sink_behind_bos_is_sought_in_every_window(tiny, ids):
    """Only at BOS an activation is one number for all windows; elsewhere each has its own, and gets no other's."""
    subject = as_subject(tiny, token_ids=ids)
    case = DamagedCandidate(subject, subject, Pair("", subject, subject).relation)
    (place,) = super_activations(subject, located(subject).super_weights)

    assert reference_values(case, place, place.layer).shape == (1, case.ids.shape[1])
    each = reference_values(case, replace(place, position=3), place.layer)
    assert each.shape == case.ids.shape
    assert (~each.isnan()).sum(1).tolist() == [1] * len(ids)


@pytest.mark.slow
def test_a_row_that_cannot_be_read_is_not_said_to_be_rounded(tiny, ids):
    """A packed matrix of an unknown scheme shows no grid: the weight is gone, and nobody says how."""

    def edit(model):
        damage.zero(model.model.layers[1].mlp.down_proj.weight)
        model.model.layers[1].mlp.down_proj = Packed(model.model.layers[1].mlp.down_proj)

    verdict = red(assert_super_weights_preserved, edited(tiny, edit), tiny, token_ids=ids)

    assert "super weight at layer 1 [97, 301] gone (x0.00)" in verdict.cause
