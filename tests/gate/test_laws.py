"""Laws that every gate keeps: nothing is lost between equals, and the order of questions does not matter."""

from __future__ import annotations

import copy

import pytest

from swcheck import (
    Outcome,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    load,
)
from swcheck.base.errors import RobustnessError
from tests import checkpoints, damage

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
