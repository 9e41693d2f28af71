"""Modules that exporters can trace compute what the model computes, with a cache and without."""

from __future__ import annotations

import pytest
import torch

import swcheck
from swcheck import exportable, exportable_with_cache
from tools.small_models import small_model

IDS = torch.arange(24).remainder(7).view(2, 12)


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def in_chunks(export, ids, cuts):
    """The logits of each chunk, with the keys and values of the last one handed back."""
    past = [one[:, :, :0] for one in export.example[3]]
    logits = []
    for start, end in zip((0, *cuts), (*cuts, ids.shape[1]), strict=True):
        positions = torch.arange(start, end).expand(2, -1)
        with torch.no_grad():
            found, *past = export.module(ids[:, start:end], torch.ones_like(ids[:, :end]), positions, past)
        logits.append(found)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_both_modules_give_the_logits_of_the_model(name):
    """At once, and in chunks behind the cache; its names are those of optimum."""
    model = small_model(name).eval()
    whole, export = logits_of(model, IDS), exportable_with_cache(model)
    assert torch.allclose(exportable(model)(IDS), whole, atol=1e-5)
    for cuts in ((), (5,), (1, 2, 7)):
        assert torch.allclose(in_chunks(export, IDS, cuts), whole, atol=1e-5)
    assert [*export.inputs][2:5] == ["position_ids", "past_key_values.0.key", "past_key_values.0.value"]
    assert export.outputs[:2] == ("logits", "present.0.key")
    assert len(export.inputs) - 3 == len(export.outputs) - 1 == 2 * model.config.num_hidden_layers


def test_a_padded_place_is_not_seen():
    """The mask counts for the places of both: a row that is padded gives what it gives alone."""
    export = exportable_with_cache(small_model("llama").eval())
    past = [one[:, :, :0] for one in export.example[3]]
    mask, positions = torch.ones_like(IDS), torch.arange(12).expand(2, -1)
    mask[:, 8:] = 0
    with torch.no_grad():
        padded, *kept = export.module(IDS, mask, positions, past)
        more = torch.cat([mask, torch.ones_like(IDS[:, :1])], 1)
        behind, *_ = export.module(IDS[:, :1], more, positions[:, 8:9], kept)
        alone, *_ = export.module(IDS[:, [*range(8), 0]], more[:, -9:].fill_(1), positions[:, :9], past)
    assert torch.allclose(padded[:, :8], alone[:, :8], atol=1e-5)
    assert torch.allclose(behind[:, 0], alone[:, 8], atol=1e-5)


@pytest.mark.parametrize("name", ["mamba", "bloom"])
def test_a_model_with_another_cache_has_none_to_export(name):
    """A state that is no keys and values; positions that the mask alone tells."""
    assert exportable_with_cache(small_model(name).eval()) is None


def test_a_model_that_is_wrong_behind_its_cache_has_none_to_export():
    """Where positions do not count behind a cache, the module would not be the model."""
    model = swcheck.load("tiny", device="cpu").model
    assert exportable_with_cache(model) is not None
    rotary, plain = model.model.rotary_emb, model.model.rotary_emb.forward
    rotary.forward = lambda x, position_ids, *more, **kwargs: plain(x, position_ids % 3, *more, **kwargs)
    assert exportable_with_cache(model) is not None  # as wrong without one
    rotary.forward = lambda x, position_ids, *more, **kwargs: plain(
        x, position_ids - position_ids.min(), *more, **kwargs
    )
    assert exportable_with_cache(model) is None
