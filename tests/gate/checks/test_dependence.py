"""The checks of dependence: what they compare, and what they refuse to compare."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from swcheck import Outcome, RobustnessError, assert_collapses_when_zeroed
from swcheck.base.formatting import format_perplexity
from swcheck.base.statistics import STANDARD_ERRORS, capped_collapse, perplexity_of, standard_error
from swcheck.lens.tokens import token_windows
from swcheck.superweights.measurements.ablation import ablated_nats, intact_nats
from swcheck.superweights.subject.as_subject import as_subject
from tests import damage

PLACE = [damage.WEIGHT]


@pytest.fixture(scope="module")
def ids(tiny):
    return token_windows(tiny.tokenizer, tiny.text, count=6, length=128)


def louder(tiny, ids, factor):
    """Tiny whose logits are ``factor`` times as large, and which is nearer to guessing for it."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        model.lm_head.weight.mul_(factor)
    return as_subject(replace(tiny, model=model, name="louder"), token_ids=ids)


def test_a_candidate_that_answers_texts_with_nan_is_not_finite(tiny, ids):
    """On the prompt alone it is healthy: the windows are looked at too, before anything is zeroed."""
    model = copy.deepcopy(tiny.model)
    rare = int(ids[3, 77])
    model.model.embed_tokens.register_forward_hook(
        lambda _module, args, out: torch.where((args[0] == rare)[..., None], torch.nan, out)
    )

    with pytest.raises(RobustnessError, match=r"^not finite") as caught:
        assert_collapses_when_zeroed(replace(tiny, model=model, name="sick"), tiny, token_ids=ids)

    assert caught.value.verdict.cause_kind == "not_finite"


def test_a_reference_that_is_barely_better_than_guessing_is_compared(tiny, ids):
    """Less than a nat is left for its collapse, and a candidate can keep that."""
    reference = louder(tiny, ids, 4)
    assert 0 < capped_collapse(intact_nats(reference), ablated_nats(reference, PLACE), 1024) < 1

    verdict = assert_collapses_when_zeroed(louder(tiny, ids, 4), reference)

    assert verdict.measured == pytest.approx(1)


def test_a_reference_that_is_worse_than_guessing_is_named_with_its_own_perplexity(tiny, ids):
    """Not with that of its weights zeroed, and the candidate is not to blame."""
    reference = louder(tiny, ids, 6)

    with pytest.raises(RobustnessError, match="the reference is sick") as caught:
        assert_collapses_when_zeroed(tiny, reference, token_ids=ids)

    own = format_perplexity(perplexity_of(intact_nats(reference)))
    assert caught.value.verdict.summary == f"its own perplexity is {own}, guessing has 1,024"


def test_a_small_collapse_is_near_its_limit_as_far_as_its_own_windows_differ(tiny, ids):
    """The error is that of the candidate's rise over the rise itself, also where that is under one nat."""
    reference, candidate = louder(tiny, ids, 3), damage.damaged(tiny, rising_little)
    with torch.no_grad():
        candidate.model.lm_head.weight.mul_(0.1)
    candidate = as_subject(candidate, token_ids=ids)
    lost = ablated_nats(candidate, PLACE) - intact_nats(candidate)
    assert 0 < float(lost.mean()) < 0.7
    width = STANDARD_ERRORS * standard_error(lost) / float(lost.mean())
    share = assert_collapses_when_zeroed(candidate, reference, share=0.001).measured

    for part, outcome in ((0.8, Outcome.NEAR), (1.2, Outcome.PASSED)):
        limit = share * (1 - part * width)
        assert assert_collapses_when_zeroed(candidate, reference, share=limit).outcome is outcome


def rising_little(matrix):
    matrix[damage.ROW, damage.COLUMN] *= 0.5
