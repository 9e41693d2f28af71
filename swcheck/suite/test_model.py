"""What can be said of a model on its own: it has super weights, it hangs on them, and on them alone."""

from __future__ import annotations

import pytest

from swcheck import (
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_super_activations_preserved,
    assert_super_weights_located,
    assert_survives_pruning,
)
from swcheck.suite import affordable, applicable, for_any_prompts, guarding


@pytest.mark.swcheck("perplexity")
def test_perplexity(swcheck_model):
    """The model is fit to be measured against: its answers are finite, and better than guessing."""
    assert_perplexity_within(swcheck_model)


@pytest.mark.swcheck("super weights")
def test_super_weights(swcheck_model, swcheck_session):
    """A value of the residual stream persists, and single weights of an early down projection write it."""
    verdict = assert_super_weights_located(swcheck_model)
    guarding(verdict, swcheck_model, allow_none=swcheck_session.settings.allow_none)


@pytest.mark.swcheck("super activations")
def test_super_activations(swcheck_model):
    """Whatever the prompt, the super activation keeps its channel, its token and its size."""

    def keeps(prompts):
        applicable(assert_super_activations_preserved(swcheck_model, swcheck_model, prompts=prompts))

    for_any_prompts(keeps, swcheck_model)


@pytest.mark.swcheck("collapse when zeroed")
def test_collapse(swcheck_model, swcheck_limits):
    """All super weights zeroed together, the model collapses."""
    affordable(swcheck_model)
    applicable(assert_collapses_when_zeroed(swcheck_model, factor=swcheck_limits["collapse"].low))


@pytest.mark.swcheck("null: matched weights")
def test_null_matched(swcheck_model, swcheck_limits):
    """As many of the next-largest weights of the same matrices zeroed, nothing happens."""
    affordable(swcheck_model)
    applicable(assert_survives_pruning(swcheck_model, at_most=swcheck_limits["null"].high))


@pytest.mark.swcheck("null: largest others")
def test_null_largest(swcheck_model, swcheck_limits):
    """The largest 0.01 % of every matrix zeroed, super weights spared, the model lives."""
    affordable(swcheck_model)
    applicable(assert_survives_pruning(swcheck_model, null="largest", at_most=swcheck_limits["others"].high))
