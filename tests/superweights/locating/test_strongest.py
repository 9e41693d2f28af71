"""The strongest scalar is named where the rules find no super weight, and beside those that they find."""

from __future__ import annotations

import math

import pytest
import torch

from swcheck import Planting, SuperWeight, anatomy, locate, perplexity, plant_super_weights, zeroed
from swcheck.superweights.locating.strongest import largest_writers
from tests.planted import plant
from tools.families_table import IDS as PROMPT
from tools.small_models import small_model

IDS = torch.tensor([[0, 4, 5, 6, 9, 9, 1, 3]])


def test_a_massive_value_in_a_model_of_two_layers_is_named():
    """No rule calls it a super activation, since no later layer keeps it; the scalar is the strongest all the same."""
    planted = SuperWeight(0, 5, 7, 30.0)
    model = plant([planted], layers=2)

    located = locate(model, token_ids=IDS, verify=IDS)

    assert located.super_weights == ()
    assert largest_writers(model, anatomy(model), IDS, ())[0] == planted
    strongest = located.effect.strongest
    with zeroed(model, [strongest.weight]):
        ratio = perplexity(model, IDS).perplexity / located.effect.intact.perplexity
    assert math.exp(strongest.nats) == pytest.approx(ratio)
    assert strongest.tried == 2


def test_located_weights_are_left_out():
    """Beside a super weight another scalar is named, at most one of each layer."""
    planted = SuperWeight(1, 5, 7, 30.0)
    model = plant([planted])
    found = largest_writers(model, anatomy(model), IDS, [planted])
    assert planted not in found
    assert len({weight.layer for weight in found}) == len(found) == 6


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "mixtral"])
def test_norms_and_routers_after_the_map_count(name):
    """What the stream gets is compared, behind post-norms and routers: a planted scalar comes first in any family."""
    model = small_model(name)
    expert = 0 if name == "mixtral" else None
    if name == "mixtral":
        from swcheck.testing.planting import visited_experts

        expert = visited_experts(model, 1, PROMPT)[0]
    [planted] = plant_super_weights(model, [Planting(1, 3, expert=expert)], PROMPT)
    assert largest_writers(model, anatomy(model), PROMPT, ())[0] == planted
