"""Layers that a quantizer silently skipped: named where nobody excluded them, and only there."""

from __future__ import annotations

import copy

import pytest
import torch

from swcheck import assert_perplexity_within, load
from swcheck.base.records import Loaded, Scheme
from swcheck.gate.relation.linear_maps import _matches_pattern, not_quantized
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.map_responses import responses_of
from swcheck.lens.tokens import token_windows
from swcheck.superweights.subject.as_subject import as_subject
from tests.versions import NOT_NEWER
from tools.small_models import small_model

DOWN, QUERY = "model.layers.1.mlp.down_proj", "model.layers.3.self_attn.q_proj"


@pytest.fixture(scope="module")
def ids(tiny):
    return token_windows(tiny.tokenizer, tiny.text, count=2, length=64)


def rounded(spec="rtn:bits=4"):
    return load(spec, reference="tiny", device="cpu")


def named(candidate, tiny, **config):
    if config:
        candidate.model.config.quantization_config = config
    return not_quantized(as_subject(candidate), as_subject(tiny))


def spared(candidate, tiny, *names):
    """The candidate with some matrices silently left as the reference has them."""
    for name in names:
        with torch.no_grad():
            candidate.model.get_submodule(name).weight.copy_(tiny.model.get_submodule(name).weight)
    return candidate


def test_a_silently_skipped_layer_is_named_in_the_verdict(tiny, ids):
    """It is a note: the verdict is what it would be, its words and facts hold the names."""
    candidate = spared(rounded(), tiny, QUERY, DOWN)

    verdict = assert_perplexity_within(candidate, tiny, ratio=2.0, token_ids=ids)

    assert verdict.facts["not_quantized"] == [DOWN, QUERY]
    assert f"not quantized, though no one excluded it: {DOWN}, {QUERY}" in verdict.summary


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_whole_quantization_has_no_such_note(tiny, ids, bits):
    """Not even eight bits are taken for none."""
    verdict = assert_perplexity_within(rounded(f"rtn:bits={bits}"), tiny, ratio=9.0, token_ids=ids)

    assert verdict.facts["not_quantized"] == []
    assert "not quantized" not in verdict.summary


def test_many_names_are_counted(tiny, ids):
    """A candidate that is the reference under another scheme's name skipped everything, in few words."""
    candidate = Loaded(copy.deepcopy(tiny.model), tiny.tokenizer, "nothing", tiny.text, scheme=Scheme("rtn", 4))

    assert "and 32 more" in assert_perplexity_within(candidate, tiny, token_ids=ids).summary


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_skipped_layer_in_another_dtype_is_known_all_the_same(tiny, dtype):
    """A candidate that computes in two bytes differs by their rounding, and no quantization is as fine as that."""
    candidate = spared(rounded("rtn:bits=8"), tiny, DOWN)
    candidate.model.to(dtype)

    assert named(candidate, tiny) == ((DOWN,) if dtype is torch.float16 else ())


def test_what_was_excluded_by_name_is_no_news(tiny):
    """By the engine's own option, or in whatever way a quantizer's config says it."""
    assert named(rounded(f"rtn:bits=4,skip={DOWN}"), tiny) == ()
    candidate = spared(rounded(), tiny, DOWN)
    assert named(candidate, tiny) == (DOWN,)
    for config in (
        {"modules_to_not_convert": ["lm_head", DOWN]},
        {"llm_int8_skip_modules": ["down_proj"]},
        {"ignore": ["re:.*layers.1.mlp.*"]},
        {"exclude": "*.1.mlp.down_proj"},
        {"dynamic": {r"-:^model\.layers\.1\.mlp\.down_proj$": {}}},
        {"extra_config": {DOWN: {"bits": 16}}},
        {"config_groups": {"group_0": {"targets": ["re:.*self_attn.*"]}}},
    ):
        assert named(candidate, tiny, **config) == ()
    for config in (
        {"modules_to_not_convert": ["lm_head", "up_proj"]},
        {"ignore": ["re:.*layers.11.*"], "extra_config": {DOWN: {"bits": 4}}},
        {"config_groups": {"group_0": {"targets": ["Linear"]}}},
    ):
        assert named(candidate, tiny, **config) == (DOWN,)


def test_a_model_that_is_not_quantized_skips_nothing(tiny):
    """Without a scheme, and with one of sixteen bits, there is nothing to name."""
    for scheme in (None, Scheme("float", 16), Scheme("lora", 4)):
        assert named(Loaded(tiny.model, tiny.tokenizer, "x", tiny.text, scheme=scheme), tiny) == ()


def test_patterns_mean_whole_parts_of_a_name():
    """A layer's number is no prefix of another's."""
    assert _matches_pattern(DOWN, "model.layers.1")
    assert _matches_pattern(DOWN, "mlp")
    assert not _matches_pattern(DOWN.replace(".1.", ".11."), "layers.1")
    assert not _matches_pattern(DOWN, "down")


@NOT_NEWER
def test_experts_in_one_parameter_are_no_linear_map():
    """Aria's experts declare widths as a linear map does, but also want to know which token is whose: they are left out."""
    body = anatomy(small_model("aria_text"))
    assert type(body.layers[0].mlp.experts.fc2).__name__ == "AriaGroupedExpertsGemm"
    names = responses_of(body).names
    assert "0.mlp.shared_experts.down_proj" in names
    assert not any(".experts." in name for name in names)
