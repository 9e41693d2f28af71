"""Candidates of tools that edit models: each is recognised, green where it is healthy, red where it is damaged."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from swcheck import (
    RobustnessError,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_weights_preserved,
)
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.candidates import candidate
from swcheck.testing.damage import edits
from tests.damage import COLUMN, ROW
from tests.gated import first_red


@pytest.fixture(scope="module")
def reference(tiny):
    """Measured once for all candidates."""
    return as_subject(tiny)


def under_test(loaded):
    """A subject whose kind is told by what it is."""
    subject = as_subject(loaded)
    subject.kind = "auto"
    return subject


def without_super_weight(loaded):
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        edits.down_weight(model, 1)[ROW, COLUMN] = 0
    return replace(loaded, model=model)


def merged(loaded, folder, share):
    """A merge as of mergekit: the reference, and ``share`` of what a fine-tune of it has learnt, with the file beside it."""
    tuned = candidate("trained", loaded, 1e-2).model.state_dict()
    model = copy.deepcopy(loaded.model)
    model.load_state_dict({name: value + share * (tuned[name] - value) for name, value in model.state_dict().items()})
    (folder / "mergekit_config.yml").write_text("merge_method: linear\n")
    return replace(loaded, model=model, source=str(folder))


@pytest.mark.slow
def test_a_sparse_candidate_has_a_limit_of_its_own(tiny, reference):
    """Pruned as Wanda does it, two of four: recognised, within the limit of 2:4, beyond that of an unknown scheme."""
    good = under_test(candidate("pruned 2:4", tiny, 1))
    verdict = assert_perplexity_within(good, reference)
    assert 1.05 < verdict.measured < verdict.limit.high == 2.2
    assert verdict.facts["candidate_kind_why"].endswith("2:4 sparsity")
    assert_super_weights_preserved(good, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damaged",
    [
        lambda tiny: candidate("pruned 2:4", tiny, 2),
        lambda tiny: without_super_weight(candidate("pruned 2:4", tiny, 1)),
    ],
    ids=["wrong half", "super weight"],
)
def test_a_damaged_sparse_candidate_is_red(tiny, reference, damaged):
    """The half that counts pruned away, or the super weight lost beside it: red, and the cause says so."""
    verdict = first_red(damaged(tiny), reference)
    assert verdict is not None
    assert verdict.cause_kind in {"pruning", "super_weight"}


@pytest.mark.slow
def test_a_candidate_of_four_of_eight_is_red_where_it_is_damaged(tiny, reference):
    """Recognised and green at x1.7 and less; with its super weight lost it is red with the place."""
    sparse = copy.deepcopy(tiny.model)
    with torch.no_grad():
        edits.prune_pattern(8)(sparse, 1)
    good = under_test(replace(tiny, model=sparse, name="4:8", source=""))
    verdict = assert_perplexity_within(good, reference)
    assert verdict.facts["candidate_kind_why"].endswith("4:8 sparsity")
    assert verdict.measured < verdict.limit.high == 1.7
    damaged = first_red(without_super_weight(replace(tiny, model=sparse)), reference)
    assert damaged is not None
    assert damaged.cause_kind == "super_weight"
    assert "layer 1 [97, 301]" in damaged.cause


def student(loaded):
    """A student as one is declared."""
    subject = as_subject(loaded)
    subject.kind = "distilled"
    return subject


@pytest.mark.slow
def test_a_student_is_held_to_its_teachers_perplexity(tiny, reference):
    """A good one is green, and its own super weights are named; one that lost a layer on the way falls short."""
    good = student(candidate("trained", tiny, 1e-2))
    verdict = assert_perplexity_within(good, reference)
    assert verdict.measured < verdict.limit.high == 1.5
    assert "DistilGPT2" in verdict.limit.source
    own = assert_super_weights_preserved(good, reference)
    assert own.outcome == "not_applicable"
    assert "of its own it has layer 1 [97, 301] writes +39" in own.summary
    assert assert_predictions_preserved(good, reference).outcome == "passed"
    with pytest.raises(RobustnessError, match="the student falls short of its teacher") as caught:
        assert_perplexity_within(student(candidate("layers left out", tiny, 1)), reference)
    assert caught.value.verdict.cause_kind == "distillation"


def test_a_student_of_another_width_is_no_wrong_base_model(tiny, reference):
    """A small model that has learnt nothing is red for what it says, and for no other reason."""
    config = copy.deepcopy(tiny.model.config)
    config.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8})
    config.layer_types = None
    small = replace(tiny, model=type(tiny.model)(config).eval(), name="small", source="")
    with pytest.raises(RobustnessError, match="the student falls short of its teacher"):
        assert_perplexity_within(student(small), reference)
    assert "of its own it has none" in assert_super_weights_preserved(student(small), reference).summary
    with pytest.raises(RobustnessError, match="wrong base model"):
        assert_perplexity_within(under_test(small), reference)


@pytest.mark.slow
def test_a_merge_has_a_kind_of_its_own(tiny, reference, tmp_path):
    """Half a fine-tune merged in is green as a merge; a super weight that was lost on the way is red with its place."""
    good = merged(tiny, tmp_path, 0.5)
    verdict = assert_perplexity_within(under_test(good), reference)
    assert (verdict.facts["candidate_kind"], verdict.limit.high) == ("merged", 1.5)
    assert "mergekit merged it (linear)" in verdict.facts["candidate_kind_why"]
    with pytest.raises(RobustnessError, match=r"layer 1 \[97, 301\]"):
        assert_super_weights_preserved(under_test(without_super_weight(good)), reference)
