"""All verdicts of a candidate at once, red ones as any other."""

from __future__ import annotations

import copy

import pytest
import torch

from swcheck import Outcome, RobustnessError, all_verdicts, assert_super_weights_preserved
from tests.planted import SINK, plant

IDS = torch.randint(1, 64, (4, 24), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = 0


@pytest.mark.slow
def test_a_red_verdict_is_returned():
    """It is the one that the assertion raises, the other checks are judged too, and a copy is red in none."""
    reference = plant([SINK])
    damaged = copy.deepcopy(reference)
    with torch.no_grad():
        damaged.model.layers[SINK.layer].mlp.down_proj.weight[SINK.row, SINK.column] = 0

    verdicts = all_verdicts(damaged, reference, token_ids=IDS)
    assert verdicts.keys() == {"super weights", "super activations", "perplexity", "predictions", "dependence"}
    with pytest.raises(RobustnessError) as raised:
        assert_super_weights_preserved(damaged, reference, token_ids=IDS)
    assert verdicts["super weights"].outcome is Outcome.FAILED
    assert verdicts["super weights"].cause == raised.value.verdict.cause
    same = all_verdicts(copy.deepcopy(reference), reference, token_ids=IDS).values()
    assert Outcome.FAILED not in {one.outcome for one in same}
