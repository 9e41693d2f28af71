"""A vocabulary cut down to the tokenizer is scored on the ids that both have; rows beyond it that take mass are a cause."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from swcheck import (
    Outcome,
    RobustnessError,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
)
from swcheck.gate.baseline.file import baseline_text, read_baseline
from swcheck.gate.baseline.measure import measure_for_candidates
from swcheck.lens.likelihood import token_nats
from swcheck.lens.tokens import token_windows
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing.candidates import candidate

CHECKS = (
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_weights_preserved,
    assert_super_activations_preserved,
    assert_collapses_when_zeroed,
)
NOTE = "vocab_size 1,024 for 1,088: both are scored on the 1,024 ids they share"


@pytest.fixture(scope="module")
def ids(tiny):
    return token_windows(tiny.tokenizer, tiny.text, count=6, length=64)


@pytest.fixture(scope="module")
def padded(tiny):
    """Tiny with 64 rows of padding that are as likely as its own first ones: no reference could be padded worse."""
    model = copy.deepcopy(tiny.model)
    model.resize_token_embeddings(1088, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[1024:] = model.lm_head.weight[:64]
    return replace(tiny, model=model.eval(), name="padded", source="")


@pytest.mark.slow
def test_every_check_is_as_between_equals(padded, ids):
    """Cut down to the tokenizer, nothing is lost: each check is green, and the perplexity is x1 to the last digit."""
    cut, reference = candidate("vocabulary cut", padded), as_subject(padded, token_ids=ids)
    subject = as_subject(cut, token_ids=ids)
    found = {check.__name__: check(subject, reference) for check in CHECKS}

    assert {verdict.outcome for verdict in found.values()} == {Outcome.PASSED}
    assert found["assert_perplexity_within"].measured == pytest.approx(1, abs=1e-6)
    assert found["assert_predictions_preserved"].measured < 2e-3  # padding beyond the 32 tokens kept counts as others
    assert found["assert_predictions_preserved"].facts["top1"] == 1
    assert found["assert_perplexity_within"].facts["configuration"] == [NOTE]


def test_the_ids_that_only_the_reference_has_would_have_counted(tiny, padded, ids):
    """The padding of this reference takes mass: on all of its ids it is worse, so the candidate would look better."""
    plain, among = token_nats(padded.model, ids), token_nats(padded.model, ids, 1024)
    assert float((plain - among).min()) >= 0
    assert float(plain.mean() - among.mean()) > 0.01
    assert torch.equal(among, token_nats(tiny.model, ids))


def test_a_fault_beside_the_cut_is_named(padded, ids):
    """A cut vocabulary hides no other fault."""
    made = as_subject(candidate("head rolled", candidate("vocabulary cut", padded), 7), token_ids=ids)
    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(made, as_subject(padded, token_ids=ids))
    assert caught.value.verdict.cause == "head lm_head has its rows rolled by 7"


@pytest.mark.slow
def test_a_baseline_of_a_padded_reference_serves_as_well(padded):
    """What is needed of the reference among the tokenizer's ids is in its baseline."""
    reference = as_subject(padded)
    measure_for_candidates(reference)
    baseline, _ = read_baseline(baseline_text(reference, {}), "here")

    verdict = assert_perplexity_within(candidate("vocabulary cut", padded), baseline)

    assert verdict.measured == pytest.approx(1, abs=1e-4)
    assert verdict.facts["configuration"] == [NOTE]


def test_rows_beyond_the_reference_s_that_take_mass_are_the_cause(tiny, ids):
    """512 rows of zeros behind the head: each text is less likely by what they take, and leaving them out proves it."""
    made = as_subject(candidate("vocabulary padded", tiny, 512), token_ids=ids)
    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(made, as_subject(tiny, token_ids=ids), ratio=1.02)
    verdict = caught.value.verdict
    assert verdict.cause == "the vocabulary: 512 rows of the head beyond the reference's 1,024 take probability"
    assert verdict.cause_kind == "vocabulary"
    assert "100% of the" in str(verdict.detail)
