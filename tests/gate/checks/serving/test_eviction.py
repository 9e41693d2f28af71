"""A cache that rolls over costs what a mask of a band does, and the sink's place in it is worth most of that."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from swcheck import assert_perplexity_within, token_windows
from swcheck.gate.checks.serving.eviction import band, eviction, first_tokens, masked_nats
from swcheck.loading.kv_cache import cache_name
from swcheck.superweights.subject.as_subject import as_subject
from tests.in_process_runtime import candidate


@pytest.fixture
def subject(tiny):
    return as_subject(tiny, token_ids=token_windows(tiny.tokenizer, tiny.text, count=2, length=96))


def rolled_nats(model, ids, window, first):
    """Token by token from a real cache, out of which all but the first and the last tokens are taken."""
    cache, nats = DynamicCache(config=model.config), []
    with torch.no_grad():
        for place in range(len(ids) - 1):
            position = torch.tensor([[place]])
            logits = model(
                ids[place][None, None], **{cache_name(model): cache}, position_ids=position, use_cache=True
            ).logits[0, -1]
            nats.append(float(-logits.log_softmax(-1)[ids[place + 1]]))
            for layer in cache.layers:
                held = layer.keys.shape[2]
                if held >= window + first:
                    kept = [*range(first), *range(held - window + 1, held)]
                    layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
    return torch.tensor(nats, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1, 3])
def test_the_mask_is_a_cache_that_rolls_over(tiny, subject, first):
    """The numbers are those of a real cache from which tokens are taken, one after the other."""
    ids = subject.token_ids[0, :40]
    masked = masked_nats(tiny.model, ids[None], band(len(ids), 12, first))[0]
    assert torch.allclose(masked, rolled_nats(tiny.model, ids, 12, first), atol=1e-4)


def test_a_band_is_what_is_seen():
    """The last two with itself, and the first."""
    assert band(4, 2, 1).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    assert torch.equal(band(4), torch.ones(4, 4).tril().bool())


def test_the_token_of_the_super_activation_is_worth_a_place_in_the_cache(subject):
    """In a cache of as many tokens, its loss costs more than that of another one."""
    found = eviction(subject, subject, 32)
    assert (found.first, found.tokens) == (1, 2 * 63)
    assert found.lost > found.kept + 0.05 > 0.05


def test_another_token_in_its_place_is_worth_little(tiny, subject):
    """The sixth token kept in place of the first one: what is told is no property of the mask."""
    sixth = band(96, 31) | (band(96) & (torch.arange(96) == 5))
    whole, kept, lost = (masked_nats(tiny.model, subject.token_ids, one) for one in (band(96), band(96, 31, 1), sixth))
    assert float((lost - kept)[:, 32:].mean()) > 0.05
    assert float((kept - whole)[:, 32:].mean()) > 0


@pytest.mark.slow
def test_it_stands_beside_the_perplexity_of_model_and_candidate_where_it_is_asked_for(tiny, subject):
    """And is not judged."""
    subject.cache_window = None
    ours = as_subject(copy.deepcopy(tiny.model), tokenizer=tiny.tokenizer)
    assert "cache" not in assert_perplexity_within(ours, subject).summary
    ours.cache_window = 32
    verdict = assert_perplexity_within(ours, subject)
    assert "; behind a cache of 32 tokens x1." in verdict.summary
    assert verdict.facts["eviction"] == verdict.facts["reference_eviction"]
    assert verdict.facts["eviction"]["lost"] > verdict.facts["eviction"]["kept"]


@pytest.mark.slow
def test_another_program_is_asked_for_the_same(subject):
    """One that shows a cache that loses tokens gives torch's numbers."""
    assert eviction(as_subject(candidate()), subject, 32) == eviction(subject, subject, 32)


@pytest.mark.slow
def test_where_it_is_not_known_the_reason_is(tiny, subject):
    """Windows that are no longer than the cache, another program, a model that does not take a mask."""
    assert eviction(subject, subject, 95) == "its windows have 96 tokens, the first 1 with a super activation"
    mute = as_subject(candidate(shows=()))
    assert eviction(mute, subject, 32) == "this runtime does not show a cache that loses tokens"
    deaf = copy.deepcopy(tiny.model)
    inner = deaf.forward
    deaf.forward = lambda ids, attention_mask=None, **options: inner(ids, **options)
    assert eviction(as_subject(deaf), subject, 32) == "it does not take the mask that it is given"
    assert first_tokens(subject) == 1
