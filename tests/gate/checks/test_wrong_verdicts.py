"""Verdicts that were once wrong: harmful candidates that passed, and healthy ones that could not."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from swcheck import (
    Loaded,
    Outcome,
    RobustnessError,
    SuperWeight,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    assert_survives_pruning,
    load,
)
from swcheck.base.limits import chosen_limit
from swcheck.gate.relation.candidate_kind import kind_of
from swcheck.lens.kl_divergence import compare_predictions, predict
from swcheck.lens.tokens import token_windows
from swcheck.loading.tiny import CHECKPOINTS
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.candidates import candidate
from tests.damage import COLUMN, ROW

CUT = "num_hidden_layers 4 for 5"


@pytest.fixture(scope="module")
def ids(tiny):
    return token_windows(tiny.tokenizer, tiny.text, count=6, length=128)


def red(check, *args, **options):
    with pytest.raises(RobustnessError) as caught:
        check(*args, **options)
    return caught.value.verdict


def edited(loaded, edit):
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        edit(model)
    return replace(loaded, model=model, name="edited")


@pytest.fixture
def cut(tmp_path):
    """A directory of tiny whose configuration has a layer less than its file."""
    directory = shutil.copytree(CHECKPOINTS["tiny"], tmp_path / "cut")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    return directory


def test_a_layer_that_the_configuration_leaves_out_is_no_pruning(tiny, ids, cut):
    """Its tensors lie in the file: the kind stays quantized, the gate is red, and the field is named and proven."""
    subject = as_subject(load(cut, device="cpu"), token_ids=ids)
    subject.kind = "auto"

    kind = kind_of(subject, as_subject(tiny))
    verdict = red(assert_perplexity_within, subject, tiny, token_ids=ids)

    assert (kind.name, kind.why.partition(",")[0]) == ("quantized", "its files hold layer 4")
    assert verdict.limit.high == 1.05
    assert verdict.cause.startswith(f"configuration: {CUT}, though its files hold 9 tensors more")
    assert verdict.cause_kind == "configuration"


@pytest.mark.slow
def test_a_layer_that_is_gone_is_named(tiny, ids, cut):
    """Where the tensors are gone as well, the reference's layer that is missing is named."""
    file = cut / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if ".layers.4." not in name}
    save_file(kept, file, metadata={"format": "pt"})

    verdict = red(assert_perplexity_within, load(cut, device="cpu"), tiny, token_ids=ids)

    assert verdict.cause == "not the super weights, but without the reference's layer 4"
    assert verdict.cause_kind == "depth"


@pytest.mark.slow
def test_a_training_that_diverged_is_red(tiny, ids):
    """A kind that was only guessed excuses a perplexity of x1.5, and no more."""
    subject = as_subject(candidate("trained", tiny), token_ids=ids)
    subject.kind = "auto"

    verdict = red(assert_perplexity_within, subject, tiny, token_ids=ids)

    assert verdict.limit.high == 1.5
    assert "--swcheck-kind=finetuned lifts it" in verdict.limit.source


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0, 0.25, 0.5, 4])
def test_a_destroyed_super_weight_is_not_matched_to_its_row_mate(tiny, ids, factor):
    """Two super weights in one row that write the same: the untouched one does not stand in for the other."""

    def twice(model):  # a second neuron that does what the first does
        mlp = model.model.layers[1].mlp
        for name in ("gate_proj", "up_proj"):
            getattr(mlp, name).weight[17] = getattr(mlp, name).weight[COLUMN]
        mlp.down_proj.weight[ROW, 17] = mlp.down_proj.weight[ROW, COLUMN]

    reference, pair = edited(tiny, twice), [SuperWeight(1, ROW, 17), SuperWeight(1, ROW, COLUMN)]
    broken = edited(reference, lambda model: model.model.layers[1].mlp.down_proj.weight[ROW, 17].mul_(factor))

    verdict = red(assert_super_weights_preserved, broken, reference, super_weights=pair, token_ids=ids)

    assert verdict.facts["ratios"] == pytest.approx([factor, 1], abs=0.01)


def test_nan_in_a_row_that_no_text_uses_is_red(tiny, ids):
    """Weights are looked at, beside what the texts happen to use."""
    unused = next(row for row in range(1023, 0, -1) if row not in set(ids.flatten().tolist()))

    def poison(model):
        model.lm_head.weight[3] = 0  # zeros are no fault
        model.model.embed_tokens.weight[unused, 5] = float("nan")

    verdict = red(assert_perplexity_within, edited(tiny, poison), tiny, token_ids=ids)

    assert verdict.summary == f"NaN or infinity in the weights of model.embed_tokens, row {unused}"
    assert verdict.cause_kind == "not_finite"


def test_an_inert_set_sets_no_limit_for_the_largest_others(tiny, ids):
    """The square root of a collapse of x1.00 would be a limit that nothing keeps; a given one is never lowered."""
    inert = [SuperWeight(2, 3, 4)]
    try:
        verdict = assert_survives_pruning(tiny, super_weights=inert, null="largest", token_ids=ids)
    except RobustnessError as error:  # with the true super weight among the others
        verdict = error.verdict
    assert verdict.limit.high == 1.30

    subject = as_subject(tiny, token_ids=ids)
    subject.limits = {"others": chosen_limit("others", None, 1e9)}
    for weights in (inert, [SuperWeight(1, 97, 301)]):
        given = assert_survives_pruning(subject, super_weights=weights, null="largest")
        assert (given.limit.high, given.outcome) == (1e9, Outcome.PASSED)


@pytest.mark.slow
def test_the_row_of_predictions_shows_the_number_that_failed(tiny, ids):
    """Where the KL divergence is kept and the agreement is not, that is measured and limited."""
    verdict = red(assert_predictions_preserved, candidate("norm epsilon", tiny, 0.3), tiny, kl=9.0, token_ids=ids)

    assert verdict.measured == verdict.facts["top1"]
    assert not verdict.limit.holds(verdict.measured)


class Foreign:
    """The tokenizer of tiny, but every third token is unknown to it."""

    unk_token_id, bos_token_id = 5, 0

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, text, **options):
        ids = self._tokenizer(text, **options)["input_ids"]
        return {"input_ids": [5 if number and number % 5 < 3 else one for number, one in enumerate(ids)]}

    def get_vocab(self):
        return self._tokenizer.get_vocab()


@pytest.mark.slow
def test_a_text_of_unknown_tokens_measures_nothing(tiny):
    """Mostly unknown tokens: the same model against itself, copied, is inconclusive, and the text is blamed."""
    tokenizer = Foreign(tiny.tokenizer)
    reference = Loaded(tiny.model, tokenizer, "tiny", tiny.text)
    verdict = red(assert_perplexity_within, replace(reference, model=copy.deepcopy(tiny.model)), reference)

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.cause.startswith("the text does not fit the model: 60% of its tokens are unknown")
    assert "--swcheck-text" in verdict.attempt


@pytest.mark.slow
def test_a_quantization_that_improves_says_something_of_the_text(tiny, ids):
    """No quantization makes a model better by a tenth: then the verdict is no pass."""
    worse = candidate("noise", tiny, 0.3)

    verdict = red(assert_perplexity_within, tiny, worse, token_ids=ids)

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "which no quantization does" in verdict.cause
    assert assert_perplexity_within(tiny, worse, ratio=1.5, token_ids=ids).outcome is Outcome.PASSED


@pytest.mark.slow
def test_a_fault_that_improves_is_named_all_the_same(tiny, ids):
    """A norm that another factor suits better on this text is a change, and no matter of the text."""
    worse = edited(tiny, lambda model: model.model.norm.weight.mul_(0.5))

    verdict = red(assert_perplexity_within, tiny, worse, token_ids=ids)

    assert (verdict.outcome, verdict.cause_kind) == (Outcome.FAILED, "tensor")
    assert verdict.cause == "norm model.norm is scaled x2"
    assert verdict.limit.low == 0.9
    assert not verdict.limit.holds(verdict.measured)


@pytest.mark.slow
def test_the_same_weights_are_held_to_the_same_limits_however_they_are_named(tiny):
    """A quantization made here and the floats that it leaves, as a directory would hold them, are one scheme."""
    made = load("rtn:bits=3,block=128", reference="tiny", device="cpu")
    stored = as_subject(Loaded(made.model, tiny.tokenizer, "stored", tiny.text))
    stored.kind = "auto"

    assert kind_of(stored, as_subject(tiny)).scheme.weight_bits == made.scheme.weight_bits == 3
    limits = [assert_predictions_preserved(one, tiny, kl=None).limit for one in (made, stored)]
    assert limits[0] == limits[1]


@pytest.mark.slow
def test_one_matrix_on_a_grid_is_no_scheme(tiny, ids):
    """A constant matrix knows one level: that is a fault, and gets no limits of a quantization to few bits."""
    subject = as_subject(candidate("up projection constant", tiny), token_ids=ids)
    subject.kind = "auto"

    assert kind_of(subject, as_subject(tiny)).scheme is None
    assert red(assert_perplexity_within, subject, tiny).limit.high == 1.05


def test_a_token_that_the_embedding_lacks_is_red(tiny, ids):
    """A tokenizer with an added token and an embedding without its row would fail at the first batch with it."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.add_tokens(["<pad-here>"])
    grown = Loaded(copy.deepcopy(tiny.model), tokenizer, "grown", tiny.text)

    verdict = red(assert_super_activations_preserved, grown, tiny)

    assert verdict.cause == "the embedding lacks ids of the tokenizer"
    assert "ids up to 1024 ('<pad-here>'), its embedding has 1,024 rows" in verdict.summary
    assert verdict.cause_kind == "vocabulary"


def test_a_vocabulary_without_its_padding_is_scored_on_the_ids_they_share(tiny, ids):
    """Rows beyond the tokenizer, cut from the candidate, take part in no divergence."""
    padded, cut = copy.deepcopy(tiny.model), tiny.model
    padded.resize_token_embeddings(1088)
    with torch.no_grad():
        padded.lm_head.weight[1024:] = cut.lm_head.weight[:64]  # likely ones, so that they are among the kept
    expected = predict(padded, ids)[1]
    assert int(expected.tokens.max()) >= 1024

    drift = compare_predictions(cut, ids, expected)[1]

    assert torch.isfinite(drift.kl).all()


@pytest.mark.slow
def test_a_tokenizer_without_bos_is_told_so(tiny):
    """What differs between the ids is said, and what the perplexity is with the reference's ids."""

    class NoBos(Foreign):
        def __call__(self, text, **options):
            return {"input_ids": self._tokenizer(text, add_special_tokens=False)["input_ids"]}

    other = Loaded(copy.deepcopy(tiny.model), NoBos(tiny.tokenizer), "other", tiny.text)
    verdict = red(assert_perplexity_within, other, tiny)

    assert verdict.cause == "tokenizer or BOS policy differs"
    assert verdict.summary.startswith("it does not begin with BOS, as the reference's does; with the reference's ids")
    assert verdict.summary.endswith("its perplexity is x1 of the reference's")
    assert verdict.cause_kind == "tokenizer"


def test_what_generation_alone_reads_is_a_note(tiny, ids):
    """Another end of text or chat template changes no number here: the gate is green, and says so."""
    other = replace(tiny, model=copy.deepcopy(tiny.model), tokenizer=copy.deepcopy(tiny.tokenizer))
    other.model.generation_config.eos_token_id = 7
    other.tokenizer.chat_template = "{{ messages }}"

    verdict = assert_perplexity_within(other, tiny, token_ids=ids)

    assert verdict.facts["configuration"] == [
        "eos_token_id 7 for 0, which generation alone reads", "another chat template"
    ]  # fmt: skip


def test_a_harmless_difference_of_the_configuration_stands_in_a_green_gate(tiny, ids):
    """It changes little here, and may change more elsewhere: both values are said."""
    verdict = assert_perplexity_within(candidate("norm epsilon", tiny, 1e-5), tiny, token_ids=ids)

    assert "its configuration differs: rms_norm_eps 1e-05 for 1e-06" in verdict.summary
    assert verdict.facts["configuration"] == ["rms_norm_eps 1e-05 for 1e-06"]
