"""What each layer costs: a layer that alone was damaged is first, and costs all; a copy costs nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import swcheck
from swcheck.gate.diagnosis import layer_costs as module
from swcheck.gate.diagnosis.layer_costs import layer_costs
from swcheck.lens.kl_divergence import compare_predictions, predict
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.testing import candidates
from swcheck.testing.damage import edits


def edited(loaded, edit):
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        edit(model)
    return replace(loaded, model=model)


def round_layer(number, bits):
    """Round every linear map of one layer."""

    def edit(model):
        for _, _, weight in edits.linear_weights(edits.anatomy(model), range(number, number + 1)):
            weight.copy_(edits.rounded(weight, bits))

    return edit


@pytest.mark.slow
def test_the_damaged_layer_is_first(tiny):
    """Of layers rounded to 3 and to 6 bits the first costs more, both stand before what is left, nothing else is named."""

    def both(model):
        round_layer(3, 3)(model)
        round_layer(0, 6)(model)

    reference, candidate = as_subject(tiny), as_subject(edited(tiny, both))
    costs = layer_costs(candidate, reference)
    assert [layer for layer, _, _ in costs] == [3, 0]
    assert costs[0][2] > 0.5 > costs[1][2] > 0
    verdict = swcheck.assert_perplexity_within(candidate, reference, ratio=100)
    assert "layer_costs" not in verdict.facts
    candidate.rank_layers = True
    again = swcheck.assert_perplexity_within(candidate, reference, ratio=100)
    assert again.facts["layer_costs"] == costs


def test_a_copy_costs_nothing(tiny):
    """No layer of a copy is named."""
    assert layer_costs(as_subject(edited(tiny, lambda model: None)), as_subject(tiny)) == ()


def test_where_layers_are_not_comparable_it_says_why(tiny):
    """Of another depth the reason is in words."""
    candidate = candidates.candidate("layers left out", tiny, 1)
    assert layer_costs(as_subject(candidate), as_subject(tiny)) == "the candidate has another number of layers"


@pytest.mark.parametrize("length", [20, 200])
def test_the_starts_of_windows_have_their_part_of_the_predictions(random_llama, length, monkeypatch):
    """The predictions that are kept are those that scoring the starts alone gives at the same places."""
    monkeypatch.setattr(module, "SHORTEST", 8)
    ids = torch.randint(1, 64, (3, min(length, 60)), generator=torch.Generator().manual_seed(0))
    starts, expected = module._starts(ids, predict(random_llama, ids)[1])
    assert 0 < len(expected.positions) < 3 * (ids.shape[1] - 1)
    assert compare_predictions(random_llama, starts, expected)[1].mean == pytest.approx(0, abs=1e-6)
