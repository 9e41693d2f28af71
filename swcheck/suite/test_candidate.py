"""The release gate: a candidate keeps what its reference has."""

from __future__ import annotations

import pytest

from swcheck import (
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
)
from swcheck.suite import affordable, applicable, asked, for_any_prompts


@pytest.mark.swcheck("super weights")
def test_super_weights(swcheck_candidate, swcheck_model, swcheck_limits):
    """The candidate's super weights write what the reference's do."""
    limit = swcheck_limits["contribution"]
    applicable(assert_super_weights_preserved(swcheck_candidate, swcheck_model, low=limit.low, high=limit.high))


@pytest.mark.swcheck("super activations")
def test_super_activations(swcheck_candidate, swcheck_model, swcheck_limits):
    """Whatever the prompt, the candidate's super activation stands where the reference's does, as large."""
    limit = asked(swcheck_limits["activation"])
    pair = (swcheck_candidate, swcheck_model)

    def stands(prompts):
        applicable(assert_super_activations_preserved(*pair, prompts=prompts, low=limit.low, high=limit.high))

    for_any_prompts(stands, swcheck_model)


@pytest.mark.swcheck("perplexity")
def test_perplexity(swcheck_candidate, swcheck_model, swcheck_limits):
    """On the same tokens the candidate's perplexity stays within its limit."""
    assert_perplexity_within(swcheck_candidate, swcheck_model, ratio=asked(swcheck_limits["perplexity"]).high)


@pytest.mark.swcheck("predictions")
def test_predictions(swcheck_candidate, swcheck_model, swcheck_limits):
    """It predicts what the reference does: the mean KL divergence and the likeliest token."""
    kl, top1 = asked(swcheck_limits["kl"]).high, asked(swcheck_limits["top1"]).low
    assert_predictions_preserved(swcheck_candidate, swcheck_model, kl=kl, top1=top1)


@pytest.mark.swcheck("dependence")
def test_dependence(swcheck_candidate, swcheck_model, swcheck_limits):
    """The candidate stays collapsed when the super weights of its reference are zeroed."""
    affordable(swcheck_model)
    applicable(assert_collapses_when_zeroed(swcheck_candidate, swcheck_model, share=swcheck_limits["dependence"].low))
