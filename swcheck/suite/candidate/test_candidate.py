"""The release gate: a candidate keeps what its reference has."""

from __future__ import annotations

import pytest
from hypothesis import given

from swcheck import (
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
    assert_survives_pruning,
)
from swcheck.strategies import prompt_lists
from swcheck.suite import FEW, applicable

pytestmark = pytest.mark.swcheck


def test_super_weights(swcheck_candidate, swcheck_model, swcheck_limits):
    """The candidate's super weights write what the reference's do."""
    limit = swcheck_limits["contribution"]
    applicable(assert_super_weights_preserved(swcheck_candidate, swcheck_model, low=limit.low, high=limit.high))


@FEW
@given(prompts=prompt_lists(size=16))
def test_super_activations(swcheck_candidate, swcheck_model, swcheck_limits, prompts):
    """Whatever the prompt, the candidate's super activation stands where the reference's does, as large."""
    limit = swcheck_limits["activation"]
    ends = {"low": limit.low, "high": limit.high}
    applicable(assert_super_activations_preserved(swcheck_candidate, swcheck_model, prompts=prompts, **ends))


def test_perplexity(swcheck_candidate, swcheck_model, swcheck_limits):
    """On the same tokens the candidate's perplexity stays within its limit."""
    assert_perplexity_within(swcheck_candidate, swcheck_model, ratio=swcheck_limits["perplexity"].high)


def test_dependence(swcheck_candidate, swcheck_model, swcheck_limits):
    """The candidate stays collapsed when the super weights of its reference are zeroed."""
    applicable(assert_collapses_when_zeroed(swcheck_candidate, swcheck_model, share=swcheck_limits["dependence"].low))


def test_null_matched(swcheck_model, swcheck_limits):
    """Other weights of the same size do nothing, so the checks above speak of super weights."""
    applicable(assert_survives_pruning(swcheck_model, at_most=swcheck_limits["null"].high))
