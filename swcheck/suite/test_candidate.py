"""The release gate: the candidate keeps the super weights, super activations and predictions of its reference."""

from __future__ import annotations

import pytest

from swcheck import (
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_activations_preserved,
    assert_super_weights_preserved,
)
from swcheck.suite import for_any_prompts, given_or_open, skip_if_not_applicable, skip_without_causal_checks


@pytest.mark.swcheck("super weights")
def test_super_weights(swcheck_candidate, swcheck_model, swcheck_limits):
    """Each super weight writes as much in the candidate as in the reference: weight times input at the same token."""
    limit = swcheck_limits["contribution"]
    skip_if_not_applicable(
        assert_super_weights_preserved(swcheck_candidate, swcheck_model, low=limit.low, high=limit.high)
    )


@pytest.mark.swcheck("super activations")
def test_super_activations(swcheck_candidate, swcheck_model, swcheck_limits):
    """On each prompt where the reference has its super activation, the candidate has it at the same place, as large."""
    limit = given_or_open(swcheck_limits["activation"])
    pair = (swcheck_candidate, swcheck_model)

    def check(prompts):
        skip_if_not_applicable(
            assert_super_activations_preserved(*pair, prompts=prompts, low=limit.low, high=limit.high)
        )

    for_any_prompts(check, swcheck_model)


@pytest.mark.swcheck("perplexity")
def test_perplexity(swcheck_candidate, swcheck_model, swcheck_limits):
    """On the same tokens the candidate's perplexity, relative to the reference's, is within its limit."""
    assert_perplexity_within(swcheck_candidate, swcheck_model, ratio=given_or_open(swcheck_limits["perplexity"]).high)


@pytest.mark.swcheck("predictions")
def test_predictions(swcheck_candidate, swcheck_model, swcheck_limits):
    """The candidate predicts what the reference predicts: low mean KL divergence, mostly the same likeliest token."""
    kl, top1 = given_or_open(swcheck_limits["kl"]).high, given_or_open(swcheck_limits["top1"]).low
    assert_predictions_preserved(swcheck_candidate, swcheck_model, kl=kl, top1=top1)


@pytest.mark.swcheck("dependence")
def test_dependence(swcheck_candidate, swcheck_model, swcheck_limits):
    """The candidate collapses like its reference when the super weights of the reference are zeroed in both."""
    skip_without_causal_checks(swcheck_model)
    skip_if_not_applicable(
        assert_collapses_when_zeroed(swcheck_candidate, swcheck_model, share=swcheck_limits["dependence"].low)
    )
