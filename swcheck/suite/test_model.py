"""The checks of a model alone: it has super weights, it collapses without them, and not without other weights."""

from __future__ import annotations

import pytest

from swcheck import (
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_super_activations_preserved,
    assert_super_weights_located,
    assert_survives_pruning,
)
from swcheck.suite import fail_if_nothing_to_guard, for_any_prompts, skip_if_not_applicable, skip_without_causal_checks


@pytest.mark.swcheck("perplexity")
def test_perplexity(swcheck_model):
    """The model is a sound reference: its losses are finite, and its perplexity is better than guessing."""
    assert_perplexity_within(swcheck_model)


@pytest.mark.swcheck("super weights")
def test_super_weights(swcheck_model, swcheck_session):
    """The model has super weights: single weights of an early down projection write a value that later layers keep."""
    verdict = assert_super_weights_located(swcheck_model)
    fail_if_nothing_to_guard(verdict, swcheck_model, allow_none=swcheck_session.settings.allow_none)


@pytest.mark.swcheck("super activations")
def test_super_activations(swcheck_model):
    """The super activation has at least half of its size on enough of the drawn prompts to compare a candidate."""

    def check(prompts):
        skip_if_not_applicable(assert_super_activations_preserved(swcheck_model, swcheck_model, prompts=prompts))

    for_any_prompts(check, swcheck_model)


@pytest.mark.swcheck("collapse when zeroed")
def test_collapse(swcheck_model, swcheck_limits):
    """The model collapses when all its super weights are zeroed together."""
    skip_without_causal_checks(swcheck_model)
    skip_if_not_applicable(assert_collapses_when_zeroed(swcheck_model, factor=swcheck_limits["collapse"].low))


@pytest.mark.swcheck("null: matched weights")
def test_null_matched(swcheck_model, swcheck_limits):
    """Nothing happens when as many of the next-largest weights of the same matrices are zeroed instead."""
    skip_without_causal_checks(swcheck_model)
    skip_if_not_applicable(assert_survives_pruning(swcheck_model, at_most=swcheck_limits["null"].high))


@pytest.mark.swcheck("null: largest others")
def test_null_largest(swcheck_model, swcheck_limits):
    """The model does not collapse when the largest 0.01 % of every matrix are zeroed, super weights left out."""
    skip_without_causal_checks(swcheck_model)
    skip_if_not_applicable(
        assert_survives_pruning(swcheck_model, null="largest", at_most=swcheck_limits["others"].high)
    )
