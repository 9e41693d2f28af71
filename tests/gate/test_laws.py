"""Laws that every gate keeps: nothing is lost between equals, and the order of questions does not matter."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from swcheck import (
    Outcome,
    SuperWeight,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    load,
)
from swcheck.base.errors import RobustnessError
from swcheck.superweights.subject.as_subject import as_subject
from tests import checkpoints, damage
from tests.planted import plant

CHECKS = {
    "contribution": assert_super_weights_preserved,
    "activation": assert_super_activations_preserved,
    "perplexity": assert_perplexity_within,
    "predictions": assert_predictions_preserved,
    "dependence": assert_collapses_when_zeroed,
}
SAME = {"contribution": 1, "activation": 1, "perplexity": 1, "predictions": 0, "dependence": 1}
"""What each check measures of a candidate that is its reference."""


def measured(candidate, reference, names):
    """Outcome and number of each check, asked in the order of ``names``."""
    found = {}
    for name in names:
        try:
            verdict = CHECKS[name](candidate, reference)
        except RobustnessError as error:
            verdict = error.verdict
        found[name] = (verdict.outcome, verdict.measured)
    return found


@pytest.mark.slow
def test_a_candidate_that_is_its_reference_has_a_ratio_of_exactly_one(tiny, tmp_path):
    """The same weights, copied in memory or loaded from a copy of the files, are the same to the last bit everywhere."""
    copied = damage.Loaded(copy.deepcopy(tiny.model), tiny.tokenizer, "copied", tiny.text)
    loaded = load(str(checkpoints.copy_of_tiny(tmp_path / "loaded")), device="cpu")
    for candidate in (copied, loaded):
        assert measured(candidate, tiny, CHECKS) == {name: (Outcome.PASSED, number) for name, number in SAME.items()}


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_order_of_the_checks(tiny):
    """Asked in another order, of a damaged candidate, each check has the same outcome and number."""
    candidate = damage.damaged(tiny, damage.halve)
    names = ("contribution", "perplexity", "dependence")
    assert measured(candidate, tiny, names) == measured(damage.damaged(tiny, damage.halve), tiny, names[::-1])


PLANTED = st.builds(SuperWeight, st.integers(1, 3), st.integers(0, 23), st.integers(0, 23), st.floats(20, 50, width=32))
IDS = torch.cat([torch.zeros(4, 1, dtype=torch.int64), torch.arange(4 * 15).reshape(4, 15) % 63 + 1], 1)
"""Four windows of 16 tokens, each with the planted token first."""

OF_IDS = ("contribution", "perplexity", "predictions")
"""The checks that need no tokenizer, and no model that was trained: what is random does not collapse."""


def verdict_of(name, candidate, reference, weight):
    """Outcome and number of one check on ``IDS``; that of contributions is asked of ``weight``."""
    words = {"super_weights": [weight]} if name == "contribution" else {}
    try:
        found = CHECKS[name](candidate, reference, **words)
    except RobustnessError as error:
        found = error.verdict
    return found.outcome, found.measured


@pytest.mark.slow
@settings(max_examples=3, phases=[Phase.generate])
@given(weight=PLANTED, seed=st.integers(0, 99))
def test_any_model_against_its_copy_has_a_ratio_of_exactly_one(weight, seed):
    """Wherever its super weight stands and whatever the other weights are."""
    model = plant([weight], layers=4, seed=seed)
    candidate, reference = as_subject(copy.deepcopy(model), token_ids=IDS), as_subject(model, token_ids=IDS)
    for name in OF_IDS:
        assert verdict_of(name, candidate, reference, weight)[1] == SAME[name]


@pytest.mark.slow
@settings(max_examples=2, phases=[Phase.generate])
@given(
    weight=PLANTED,
    factors=st.lists(st.floats(0, 2, width=16), min_size=2, max_size=2),
    order=st.permutations([(number, name) for number in range(2) for name in OF_IDS]),
)
def test_no_question_changes_the_answer_to_another(weight, factors, order):
    """Two candidates, whose super weight is scaled, and three checks: in any order each verdict is the one asked alone."""
    scaled = [SuperWeight(weight.layer, weight.row, weight.column, weight.value * one) for one in (1, *factors)]
    models = [plant([one], layers=4) for one in scaled]

    def subjects():
        return [as_subject(model, token_ids=IDS) for model in models]

    reference, *candidates = subjects()
    found = {(number, name): verdict_of(name, candidates[number], reference, weight) for number, name in order}
    for number, name in order:
        alone, *others = subjects()
        assert found[number, name] == verdict_of(name, others[number], alone, weight)
