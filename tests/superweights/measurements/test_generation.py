"""Greedy text: what a plain loop generates, and the first token at which a candidate leaves it."""

from __future__ import annotations

import copy

import pytest
import torch

from swcheck.base.tiers import SMOKE
from swcheck.lens.likelihood import generated
from swcheck.loading.kv_cache import cache_name
from swcheck.superweights.measurements.generation import first_other_tokens, greedy_text
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory
from swcheck.superweights.subject.subject import Subject

IDS = torch.randint(1, 64, (6, 20), generator=torch.Generator().manual_seed(0))


def subject(model, **fields):
    return Subject("m", HeldModel(model), token_ids=IDS, memory=Memory(), **fields)


def plain_loop(model, ids, count):
    """The likeliest token, one after the other, each from a pass over all before it."""
    for _ in range(count):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


class WithoutCache(torch.nn.Module):
    """A model that never returns a cache."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, ids, past_key_values=None, use_cache=False):
        assert past_key_values is None
        return type("Output", (), {"logits": self.inner(ids, use_cache=False).logits})


class Newer(torch.nn.Module):
    """A model of a transformers that calls the cache ``cache``, and warns of its older name."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.widths = model, []

    def forward(self, ids, cache=None, use_cache=False):
        self.widths.append(ids.shape[1])
        output = self.inner(ids, **{cache_name(self.inner): cache}, use_cache=use_cache)
        return type("Output", (), {"logits": output.logits, "cache": getattr(output, cache_name(self.inner))})


def test_the_cache_is_given_by_the_name_that_the_model_has(random_llama):
    """Each pass but the first is over one token."""
    model = Newer(random_llama)
    assert torch.equal(generated(model, IDS[:2, :5], 7), plain_loop(random_llama, IDS[:2, :5], 7))
    assert model.widths == [5, 1, 1, 1, 1, 1, 1]


def test_generation_is_the_plain_loop(random_llama):
    """With a cache and without one, the tokens are those of whole passes."""
    expected = plain_loop(random_llama, IDS[:2, :5], 7)
    assert torch.equal(generated(random_llama, IDS[:2, :5], 7), expected)
    assert torch.equal(generated(WithoutCache(random_llama), IDS[:2, :5], 7), expected)


def test_a_copy_generates_the_same(random_llama):
    """A copy never goes on otherwise; the prompts are halves of windows, as many tokens follow."""
    reference = subject(random_llama)
    text, expected = greedy_text(reference)
    assert text.shape == expected.shape == (4, 20)
    assert torch.equal(text[0, :10], IDS[0, :10])
    assert torch.equal(text, plain_loop(random_llama, text[:, :10], 10))
    assert first_other_tokens(subject(copy.deepcopy(random_llama)), reference) == (10, 10, 10, 10)


@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_the_first_other_token_is_that_of_its_own_generation(random_llama, noise):
    """What one pass over the reference's text says is what the candidate's own generation shows."""
    other = copy.deepcopy(random_llama)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    reference = subject(random_llama)
    text = greedy_text(reference)[0]
    own = plain_loop(other, text[:, :10], 10)
    differ = (own != text)[:, 10:]
    expected = tuple(int(row.nonzero()[0]) if row.any() else 10 for row in differ)
    assert first_other_tokens(subject(other), reference) == expected
    assert min(expected) < 10


def test_nothing_is_generated_in_the_smoke_tier(random_llama):
    """There every token would cost a pass of a large model: no prompts, and no answer."""
    reference = subject(random_llama, tier=SMOKE)
    assert greedy_text(reference).shape == (2, 0, 0)
    assert first_other_tokens(subject(random_llama), reference) == ()
