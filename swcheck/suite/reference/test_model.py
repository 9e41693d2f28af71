"""What can be said of a model on its own: it has super weights, it hangs on them, and on them alone."""

from __future__ import annotations

import pytest
from hypothesis import given

from swcheck import (
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_super_activations_preserved,
    assert_super_weights_located,
    assert_survives_pruning,
)
from swcheck.strategies import prompt_lists
from swcheck.suite import FEW, applicable

pytestmark = pytest.mark.swcheck


def test_perplexity(swcheck_model):
    """The model is fit to be measured against: its answers are finite, and better than guessing."""
    assert_perplexity_within(swcheck_model)


def test_super_weights(swcheck_model):
    """A value of the residual stream persists, and single weights of an early down projection write it."""
    applicable(assert_super_weights_located(swcheck_model))


@FEW
@given(prompts=prompt_lists(size=16))
def test_super_activations(swcheck_model, prompts):
    """Whatever the prompt, the super activation keeps its channel, its token and its size."""
    applicable(assert_super_activations_preserved(swcheck_model, swcheck_model, prompts=prompts))


def test_collapse(swcheck_model, swcheck_limits):
    """All super weights zeroed together, the model collapses."""
    applicable(assert_collapses_when_zeroed(swcheck_model, factor=swcheck_limits["collapse"].low))


def test_null_matched(swcheck_model, swcheck_limits):
    """As many of the next-largest weights of the same matrices zeroed, nothing happens."""
    applicable(assert_survives_pruning(swcheck_model, at_most=swcheck_limits["null"].high))


def test_null_largest(swcheck_model, swcheck_limits):
    """The largest 0.01 % of every matrix zeroed, super weights spared, the model lives."""
    applicable(assert_survives_pruning(swcheck_model, null="largest", at_most=swcheck_limits["others"].high))
