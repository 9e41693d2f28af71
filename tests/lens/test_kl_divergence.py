"""Drift of predictions: the estimator against the full divergence, and its laws."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck.lens import kl_divergence, likelihood
from swcheck.lens.likelihood import token_nats


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 64, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def other(random_llama):
    """A copy with noise in every matrix."""
    model = copy.deepcopy(random_llama)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def test_a_model_does_not_drift_from_itself(random_llama, ids):
    """Against its own predictions KL is 0 and every likeliest token is the same."""
    _, expected = kl_divergence.predict(random_llama, ids)
    _, found = kl_divergence.compare_predictions(random_llama, ids, expected)

    assert found.mean == pytest.approx(0, abs=1e-6)
    assert found.top1 == 1


def test_with_every_token_kept_it_is_the_full_divergence(random_llama, other, ids, monkeypatch):
    """Keeping the whole vocabulary gives the KL divergence that a full softmax gives."""
    monkeypatch.setattr(kl_divergence, "TOKENS_KEPT", 64)
    _, expected = kl_divergence.predict(random_llama, ids)
    _, found = kl_divergence.compare_predictions(other, ids, expected)

    with torch.no_grad():
        ours, theirs = (model(ids).logits[:, :-1].double().log_softmax(-1) for model in (random_llama, other))
    full = (ours.exp() * (ours - theirs)).sum(-1).flatten()

    assert torch.allclose(found.kl, full, atol=1e-5)
    assert expected.covered == pytest.approx(1)


@pytest.mark.parametrize("kept", [1, 4, 16])
def test_merging_the_tail_never_raises_it(random_llama, other, ids, kept, monkeypatch):
    """With fewer tokens kept the estimate is a lower bound, up to rounding."""
    values = []
    for count in (kept, 64):
        monkeypatch.setattr(kl_divergence, "TOKENS_KEPT", count)
        _, expected = kl_divergence.predict(random_llama, ids)
        values.append(kl_divergence.compare_predictions(other, ids, expected)[1].kl)

    assert (values[0] <= values[1] + 1e-6).all()


def test_it_scores_in_the_same_pass(random_llama, other, ids):
    """The nats it returns are those of token_nats, for both models."""
    nats, expected = kl_divergence.predict(random_llama, ids)
    again, _ = kl_divergence.compare_predictions(other, ids, expected)

    assert torch.allclose(nats, token_nats(random_llama, ids), atol=1e-5)
    assert torch.allclose(again, token_nats(other, ids), atol=1e-5)


def test_batches_do_not_change_it(random_llama, other, ids, monkeypatch):
    """One window at a time gives what all at once give."""
    _, expected = kl_divergence.predict(random_llama, ids)
    whole = kl_divergence.compare_predictions(other, ids, expected)[1]
    monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", 1)
    _, single = kl_divergence.predict(random_llama, ids)
    parts = kl_divergence.compare_predictions(other, ids, single)[1]

    assert torch.equal(single.tokens[:, 0], expected.tokens[:, 0])
    assert torch.allclose(parts.kl, whole.kl, atol=1e-5)


@given(st.integers(1, 100_000))
def test_sampled_positions_are_inside_ordered_and_few(count):
    """At most 1,024 positions, ascending, all inside."""
    positions = kl_divergence.sampled_positions(count)

    assert len(positions) == min(count, 1024)
    assert int(positions[0]) == 0
    assert int(positions[-1]) == max(0, count - 1) or len(positions) == 1
    assert (positions.diff() > 0).all()


def test_the_other_direction_is_the_divergence_with_the_models_exchanged(random_llama, other, ids, monkeypatch):
    """With the whole vocabulary kept, the reverse of a drift is the forward one of the exchanged models."""
    monkeypatch.setattr(kl_divergence, "TOKENS_KEPT", 64)
    one, two = (kl_divergence.predict(model, ids)[1] for model in (random_llama, other))
    forward = kl_divergence.compare_predictions(other, ids, one)[1]
    exchanged = kl_divergence.compare_predictions(random_llama, ids, two)[1]

    assert torch.allclose(forward.reverse, exchanged.kl, atol=1e-6)
    assert not torch.allclose(forward.reverse, forward.kl, atol=1e-6)
