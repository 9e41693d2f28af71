"""``--swcheck-allow-none``: a model without super weights may pass."""

from __future__ import annotations

import pytest

from tests.plugin import BOTH, SHIPPED


@pytest.mark.slow
def test_a_model_without_super_weights_may_pass(inner, micro):
    """With the option nothing is red, and what does not apply is skipped with its reason."""
    result = inner(f"--model={micro}", "--swcheck-allow-none", "-rs")
    assert result.ret == 0
    result.assert_outcomes(passed=1, skipped=SHIPPED - 1)
    result.stdout.fnmatch_lines(
        [
            "super weights * not applicable",
            "*no super weight: the largest value *",
            "SKIPPED * no super weight: the largest value *",
        ]
    )


@pytest.mark.slow
def test_it_excuses_nothing_else(inner, zeroed):
    """A candidate that lost its super weight is red all the same."""
    words = ("--model=tiny", f"--candidate={zeroed}", "--swcheck-allow-none", "-k", "test_candidate and super_weights")
    inner(*words).assert_outcomes(failed=1, deselected=BOTH - 1)
