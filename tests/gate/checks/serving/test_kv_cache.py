"""Scores through a key-value cache: the same as a plain pass through a plain one, and red through one that loses."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from transformers.cache_utils import DynamicCache

from swcheck import Loaded, Outcome, RobustnessError, assert_perplexity_within
from swcheck.base.records import Limit
from swcheck.gate.checks.pair import Pair
from swcheck.gate.checks.predictions import compare_perplexity
from swcheck.gate.checks.serving.kv_cache import CachePass, cache_pass, cache_scheme, is_applied
from swcheck.lens.likelihood import through_cache, token_nats
from swcheck.lens.tokens import token_windows
from swcheck.run.reports.summary import NOT_COVERED, not_covered, summary
from swcheck.superweights.subject.as_subject import as_subject

EIGHT = {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}


class Rounding(DynamicCache):
    """A cache whose keys and values stand on a grid of so many bits, one for each tensor."""

    def __init__(self, config, bits):
        super().__init__(config=config)
        self.top = 2 ** (bits - 1) - 1

    def update(self, keys, values, layer, *args, **options):
        rounded = []
        for states in (keys, values):
            step = 8 / self.top
            rounded.append((states / step).round().clamp(-self.top, self.top) * step)
        return super().update(*rounded, layer, *args, **options)


@pytest.fixture(scope="module")
def ids(tiny):
    return token_windows(tiny.tokenizer, tiny.text, count=5, length=64)


def wanting(tiny, *, quantization=None, **generation):
    """Tiny, saying how its cache is to be quantized."""
    model = copy.copy(tiny.model)
    model.config, model.generation_config = (
        copy.deepcopy(tiny.model.config),
        copy.deepcopy(tiny.model.generation_config),
    )
    if quantization is not None:
        model.config.quantization_config = quantization
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    return Loaded(model, tiny.tokenizer, "cached", tiny.text)


def rounding(monkeypatch, bits):
    """Let the checkpoint's cache round to so many bits."""
    monkeypatch.setattr(
        "swcheck.gate.checks.serving.kv_cache.kv_cache", lambda model: partial(Rounding, model.config, bits)
    )


@pytest.mark.parametrize("cuts", [range(1, 64, 16), (16, 32, 48), (63,), ()])
def test_a_plain_cache_changes_nothing(tiny, ids, cuts):
    """However a window is cut, what is read back from a plain cache gives the nats of the plain pass."""
    nats, keys = through_cache(tiny.model, ids, DynamicCache(config=tiny.model.config), cuts)

    assert torch.allclose(nats, token_nats(tiny.model, ids), atol=1e-4)
    assert keys.shape == (5, 2, 64, 64)


def test_a_checkpoint_says_how_its_cache_is_quantized(tiny):
    """In the quantization of its weights, or for generation; most say nothing, and are not asked."""
    assert cache_scheme(tiny.model) == ("", None)
    assert cache_pass(tiny.model, torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 7)) is None
    assert cache_scheme(wanting(tiny, quantization=EIGHT).model) == ("8-bit float", 8)
    asked = {"cache_implementation": "quantized", "cache_config": {"backend": "hqq", "nbits": 2}}
    assert cache_scheme(wanting(tiny, **asked).model) == ("2-bit hqq", None)


def test_a_good_cache_is_scored_and_told(tiny, ids, monkeypatch):
    """Eight bits pass, the verdict says so, and the report no longer leaves the cache open."""
    rounding(monkeypatch, 8)

    verdict = assert_perplexity_within(wanting(tiny, quantization=EIGHT), tiny, token_ids=ids)

    assert verdict.outcome in {Outcome.PASSED, Outcome.NEAR}
    assert verdict.facts["kv_cache"]["scored"]
    assert verdict.facts["kv_cache"]["nats"] != 0
    assert "through its 8-bit float KV cache x1.00" in verdict.summary
    assert "on 188 tokens" in verdict.summary
    assert not_covered([("", verdict)]) == "text generation, the kernels of other runtimes"
    assert "a quantized KV cache" not in summary([("", verdict)])[-1]


def test_a_cache_that_loses_is_red_by_its_own_name(tiny, ids, monkeypatch):
    """Weights and plain pass are the reference's own: two bits of cache are the cause, with both numbers."""
    rounding(monkeypatch, 2)

    with pytest.raises(RobustnessError, match=r"^the quantized KV cache loses it") as caught:
        assert_perplexity_within(wanting(tiny, quantization=EIGHT), tiny, token_ids=ids)

    assert caught.value.verdict.measured > 1.05
    assert "x1 without" in caught.value.verdict.cause


def test_a_cache_that_answers_nan_is_red(tiny, ids, monkeypatch):
    """A comparison with NaN fails here as everywhere."""

    class Broken(DynamicCache):
        def update(self, keys, values, *args, **options):
            return super().update(keys, values * float("nan"), *args, **options)

    monkeypatch.setattr(
        "swcheck.gate.checks.serving.kv_cache.kv_cache", lambda model: partial(Broken, config=model.config)
    )
    asked = {"cache_implementation": "quantized", "cache_config": {"backend": "hqq"}}
    with pytest.raises(RobustnessError, match=r"^the quantized KV cache loses it"):
        assert_perplexity_within(wanting(tiny, **asked), tiny, token_ids=ids)


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        ({"quantization": EIGHT}, "nothing here applies it"),
        ({"cache_implementation": "quantized", "cache_config": {"backend": "abacus"}}, "abacus"),
    ],
    ids=["not-applied", "no-backend"],
)
def test_a_cache_that_was_not_scored_stays_open(tiny, ids, candidate, words):
    """A scheme that this runtime ignores, or that a missing package would apply, is no green: it is not covered."""
    verdict = assert_perplexity_within(wanting(tiny, **candidate), tiny, token_ids=ids)

    assert verdict.facts["kv_cache"]["scored"] is False
    assert "KV cache was not scored" in verdict.summary
    assert words in verdict.summary
    assert not_covered([("", verdict)]) == NOT_COVERED


def test_a_grid_is_told_from_free_numbers():
    """Eight bits have 256 numbers for each head; what a plain cache holds has more."""
    free = torch.randn(2, 2, 64, 16, generator=torch.Generator().manual_seed(0))

    assert is_applied((free * 10).round(), 8)
    assert not is_applied(free, 8)
    assert is_applied(None, 8)


def test_nan_through_a_cache_is_red_where_nothing_is_judged(tiny, ids, monkeypatch):
    """A candidate whose perplexity is only reported does not pass with NaN in what its cache gives back."""
    lost = CachePass("4-bit hqq", float("nan"), 188)
    monkeypatch.setattr("swcheck.gate.checks.predictions.cache_pass", lambda *_: lost)
    pair = Pair("perplexity", as_subject(wanting(tiny), token_ids=ids), as_subject(tiny, token_ids=ids))

    verdict = compare_perplexity(pair, Limit(None, None, "reported"), None)

    assert verdict.cause.startswith("the quantized KV cache loses it")
