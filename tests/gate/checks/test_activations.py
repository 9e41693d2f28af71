"""The check of the super activations: its verdicts in words; the prompts are in ``test_prompted_activations``."""

from __future__ import annotations

import pytest
import torch

from swcheck import Outcome, RobustnessError, SuperWeight, assert_super_activations_preserved
from swcheck.testing.damage import bases
from tests.planted import SINK, plant

BOTH = (SINK, SuperWeight(2, 6, 9, 20.0))
IDS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = 0


def of_two(factor=1.0):
    """A model with two super weights, the second times ``factor``."""
    model = plant(BOTH)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[6, 9] *= factor
    return model


def verdict_of(candidate, reference, **limits):
    return assert_super_activations_preserved(candidate, reference, super_weights=BOTH, token_ids=IDS, **limits)


def test_one_of_two_that_is_near_its_limit_makes_the_verdict_near():
    """Though the other one stands as it did."""
    measured = verdict_of(of_two(0.8), of_two(), low=0.5).measured
    assert measured == pytest.approx(0.8, abs=0.05)
    assert verdict_of(of_two(0.8), of_two(), low=measured).outcome is Outcome.NEAR
    assert verdict_of(of_two(0.8), of_two(), low=measured * 0.99).outcome is Outcome.PASSED


def test_only_the_matrices_of_changed_weights_are_to_be_kept():
    """Of two super weights the one that writes what it wrote is left out of the fix."""
    with pytest.raises(RobustnessError) as caught:
        verdict_of(of_two(0.5), of_two())
    verdict = caught.value.verdict
    assert verdict.facts["fix"]["matrices"] == ["model.layers.2.mlp.down_proj"]
    assert dict(verdict.detail)["written"] == "what the super weights write is x1.000, x0.500"
    assert verdict.cause_kind == "super_weight"


def test_a_rotated_candidate_is_held_to_the_norm_of_its_sink():
    """At the layer after which the reference has its first super activation, in words with both norms."""
    reference = plant([SINK])
    verdict = assert_super_activations_preserved(bases.rotated(reference), reference, token_ids=IDS)
    assert verdict.summary.startswith(f"rotated: norm of token 0 after layer {SINK.layer} ")
    assert verdict.measured == pytest.approx(1, abs=1e-3)
