"""Scores without some weights: on which windows, and against what."""

from __future__ import annotations

import pytest
import torch

from swcheck import Outcome, assert_collapses_when_zeroed
from swcheck.base.tiers import CAUSAL_WINDOWS, SMOKE, STANDARD
from swcheck.superweights.measurements import ablation
from swcheck.superweights.measurements.inputs import windows
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory
from swcheck.superweights.subject.subject import Subject
from tests import planted

TEXT = " ".join(str(number) for number in range(40_000))


def reference(tier, context=1024):
    """A planted model that takes ``context`` tokens at once."""
    model = planted.plant([planted.SINK], vocabulary=1024)
    model.config.max_position_embeddings = context
    return Subject("m", HeldModel(model), planted.tokenizer(), text=TEXT, tier=tier, memory=Memory())


@pytest.mark.slow
@pytest.mark.whole_text
def test_a_causal_check_has_windows_enough():
    """Fewer windows than 32 are made up from between them; the smoke tier needs none; more are left as they are."""
    standard, smoke, short = reference(STANDARD), reference(SMOKE), reference(STANDARD, 64)

    ids = ablation.window_starts(standard)
    assert windows(standard).shape == (16, 512)
    assert ids.shape == (CAUSAL_WINDOWS, 128)
    assert torch.equal(ids[:16], windows(standard)[:, :128])
    assert len({tuple(row.tolist()) for row in ids}) == CAUSAL_WINDOWS
    assert ablation.window_starts(smoke).shape == (8, 128)
    assert ablation.window_starts(short).shape == (128, 64)


@pytest.mark.slow
def test_the_intact_nats_of_a_causal_check_are_those_of_a_pass():
    """Known from the windows or scored anew, for the model itself and for a candidate, they are what a pass gives."""
    one, other = reference(STANDARD), reference(STANDARD)
    with torch.no_grad():
        other.module.lm_head.weight.mul_(0.9)
    other.memory = Memory()

    for nats, subject in ((ablation.intact_nats(one), one), (ablation.intact_nats_against(other, one), other)):
        expected = ablation.ablated_nats(subject, [], ablation.window_starts(one))
        assert nats.shape == (CAUSAL_WINDOWS, 127)
        assert torch.allclose(nats, expected, atol=1e-3)
    assert ablation.intact_nats_against(one, one) is not None


@pytest.mark.slow
def test_a_planted_collapse_is_measured_on_both_kinds_of_windows():
    """With windows from between, the verdict on one model is finite and has a kind."""
    verdict = assert_collapses_when_zeroed(reference(STANDARD), factor=0.01)
    assert verdict.outcome is Outcome.PASSED
    assert verdict.facts["tier"] == "standard"
