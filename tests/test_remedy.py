"""Fixes: the line of the tool that wrote the candidate, its price, and the proof that the reference quantized so is better."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from swcheck import RobustnessError, assert_perplexity_within, assert_super_weights_preserved, engines, load
from swcheck.coverage import quantization_of
from swcheck.errors import EngineError
from swcheck.measure import windows
from swcheck.records import Loaded, Scheme
from swcheck.remedy import SNIPPETS, respelled, snippet, spec_of
from swcheck.session import Session
from swcheck.settings import Settings
from swcheck.subject import subject_of
from tests import damage
from tests.test_schemes import INTX

DOWN, QUERY = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"
CLIPPED = "rtn:bits=4,block=128,clip=3"


@pytest.fixture(scope="module")
def ids(tiny):
    return windows(tiny.tokenizer, tiny.text, count=6, length=128)


def made_by(tiny, config, name="candidate"):
    """A candidate whose config says how it was quantized."""
    model = copy.copy(tiny.model)
    model.config = copy.deepcopy(tiny.model.config)
    if config is not None:
        model.config.quantization_config = config
    return subject_of(Loaded(model, tiny.tokenizer, name, tiny.text))


# --- the snippet -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("compressed-tensors", f'llm-compressor ignore=["lm_head", "{DOWN}", "{QUERY}"]'),
        ("bitsandbytes", f'bitsandbytes llm_int8_skip_modules=["lm_head", "{DOWN}", "{QUERY}"]'),
        ("torchao", f'torchao modules_to_not_convert=["lm_head", "{DOWN}", "{QUERY}"]'),
        ("quanto", f'quanto exclude=["{DOWN}", "{QUERY}"]'),
        ("awq", f'AWQ modules_to_not_convert=["{DOWN}", "{QUERY}"]'),
        ("intel/auto-round", f'AutoRound layer_config={{"{DOWN}": {{"bits": 16}}, "{QUERY}": {{"bits": 16}}}}'),
        ("gguf", "llama-quantize --tensor-type blk.0.attn_q=f16 --tensor-type blk.1.ffn_down=f16"),
    ],
)
def test_a_candidate_gets_the_line_of_its_own_tool(tiny, method, line):
    """Its config names the tool, and that tool's line is all that is said."""
    assert snippet(made_by(tiny, {"quant_method": method}), (DOWN, QUERY)) == line


def test_gptq_takes_negative_matches_that_match(tiny):
    """The pattern is a regular expression in JSON, and finds the module's own name alone."""
    import re

    line = snippet(made_by(tiny, {"quant_method": "gptq"}), (DOWN,))
    pattern = next(iter(json.loads(line.partition("dynamic=")[2])))

    assert pattern.startswith("-:")
    assert re.match(pattern[2:], DOWN)
    assert not re.match(pattern[2:], DOWN.replace(".1.", ".11."))


def test_a_candidate_of_an_unknown_tool_gets_the_usual_lines(tiny):
    """Where nothing says what wrote it, each usual tool has its line."""
    said = snippet(made_by(tiny, None), (DOWN,))

    assert said.count(";") == 4
    assert all(SNIPPETS[name]((DOWN,)) in said for name in ("compressed-tensors", "gguf", "quanto"))


def test_an_engine_is_asked_in_its_own_words(tiny):
    """Behind what was asked of an engine come the names to skip, those that were skipped already among them."""
    assert respelled(made_by(tiny, None, "rtn:bits=3,skip=a"), (DOWN, "a")) == f"rtn:bits=3,skip=a+{DOWN}"
    assert snippet(made_by(tiny, None, "rtn:bits=3"), (DOWN,)) == f"rtn:bits=3,skip={DOWN}"
    assert respelled(made_by(tiny, None, "clip"), (DOWN,)) is None


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes:int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes:fp4"),
        (
            {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
            "bitsandbytes:nf4-double",
        ),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
            "torchao:int8-weight-only",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "symmetric": True}}},
            },
            "compressed-tensors:W4A16",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "weights": {"num_bits": 8, "type": "float"},
                        "input_activations": {"num_bits": 8, "dynamic": True},
                    }
                },
            },
            "compressed-tensors:FP8_DYNAMIC",
        ),
        ({"quant_method": "torchao", "quant_type": INTX}, "torchao:int4-weight-only,group=64"),
        ({"quant_method": "gptq", "bits": 4}, None),
        ({"quant_method": "compressed-tensors"}, None),
        ({}, None),
    ],
)
def test_a_directory_says_which_engine_makes_such_a_one(config, spec):
    """What transformers writes into config.json leads to an engine's scheme, or honestly to none."""
    assert spec_of(config) == spec


def test_a_config_is_read_as_plain_values(tiny):
    """Objects that transformers keeps, plain mappings and nothing at all are read alike."""

    class Config:
        quant_method = "awq"

        def to_dict(self):
            return {"bits": 4}

    assert quantization_of(made_by(tiny, Config()).live) == {"bits": 4, "quant_method": "awq"}
    assert quantization_of(made_by(tiny, {"bits": 3}).live) == {"bits": 3}
    assert quantization_of(nn.Linear(2, 2)) == {}


# --- price and proof ---------------------------------------------------------------------------------------------------


def gate(candidate, **settings):
    """A session's reference and candidate, as a gate has them."""
    session = Session(Settings(models=("tiny",), candidates=(candidate,), device="cpu", **settings))
    reference = session.reference("tiny")
    return session, reference, session.candidate()


def test_a_fix_is_proven_by_quantizing_again(monkeypatch):
    """The gate makes the candidate anew with the named matrix spared, measures it, and says what it gains and costs.

    At no time are there more than two models: the reference's weights are away when the new one is made.
    """
    session, reference, candidate = gate(CLIPPED)
    made, load_one = [], engines.load

    def watched(spec, **options):
        made.append((spec, reference.module is None))
        return load_one(spec, **options)

    monkeypatch.setattr("swcheck.session.engines.load", watched)
    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(candidate, reference)
    verdict, fix = caught.value.verdict, caught.value.verdict.facts["fix"]

    assert made[0] == (f"{CLIPPED},skip={DOWN}", True)
    assert fix["proven"]
    assert fix["perplexity"] < fix["before"]
    assert fix["bytes"] == 256 * 512 * (32 - 4) // 8
    assert verdict.attempt.endswith(f"{CLIPPED},skip={DOWN} (+458,752 bytes)")
    assert "with this: perplexity x1.1" in dict(verdict.detail)["fix"]
    assert "(was x0.240)" in dict(verdict.detail)["fix"]
    session.free()


def test_a_fix_names_the_tensors_that_hurt(monkeypatch):
    """Where it is not the super weights, what is spared and proven are the five worst matrices, once for all checks."""
    session, reference, candidate = gate(f"{CLIPPED},keep")
    made, load_one = [], engines.load
    monkeypatch.setattr(
        "swcheck.session.engines.load", lambda spec, **more: made.append(spec) or load_one(spec, **more)
    )

    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(candidate, reference, ratio=1.1)
    with pytest.raises(RobustnessError, match=r"the super weight writes x0\.845 \(was x0\.845\)\n"):
        assert_perplexity_within(candidate, reference, ratio=1.1)
    with pytest.raises(RobustnessError, match="not enough yet"):
        assert_perplexity_within(candidate, reference, ratio=1.01)

    fix = caught.value.verdict.facts["fix"]
    assert len(fix["matrices"]) == 5
    assert fix["proven"]
    assert fix["perplexity"] < 1.1 < fix["before"]
    assert [spec for spec in made if spec.startswith("rtn:")] == [f"{CLIPPED},keep,skip={'+'.join(fix['matrices'])}"]
    session.free()


def test_a_fix_that_leaves_the_super_weight_too_weak_says_so():
    """With its matrix spared the super weight writes more, and less than a limit asks: that is not enough yet."""
    session, reference, candidate = gate(CLIPPED)

    with pytest.raises(RobustnessError, match=r"x0\.\d+ \(was x0\.240\)\n"):
        assert_super_weights_preserved(candidate, reference)
    with pytest.raises(RobustnessError, match=r"\(was x0\.240\), not enough yet") as caught:
        assert_super_weights_preserved(candidate, reference, low=0.95)

    assert 0.75 < caught.value.verdict.facts["fix"]["written"] < 0.95
    session.free()


def test_a_green_gate_quantizes_once(monkeypatch):
    """Nothing is made again for a candidate that is within its limits."""
    session, reference, candidate = gate("rtn:bits=8")
    monkeypatch.setattr("swcheck.session.engines.load", lambda spec, **_more: pytest.fail(f"{spec} was made again"))

    assert_super_weights_preserved(candidate, reference)
    assert_perplexity_within(candidate, reference)
    session.free()  # nor is a reference loaded again to be freed


@pytest.mark.parametrize("found", [EngineError("x", "no such scheme"), RuntimeError("out of memory")])
def test_an_engine_that_cannot_is_no_second_failure(monkeypatch, found):
    """Whatever goes wrong while a fix is proven, the verdict is the first one, and says that it was not proven."""
    session, reference, candidate = gate(CLIPPED)

    def refuse(*_args, **_options):
        raise found

    monkeypatch.setattr("swcheck.session.engines.load", refuse)
    with pytest.raises(RobustnessError, match="clipped or rounded down") as caught:
        assert_super_weights_preserved(candidate, reference)

    said = dict(caught.value.verdict.detail)["fix"]
    assert said.startswith("not proven:")
    assert str(found).splitlines()[-1].split(": ")[-1] in said
    session.free()


def test_two_models_in_memory_leave_no_room_for_a_third(tiny, ids):
    """In a caller's own process the fix is named, not proven, with the command that proves it."""
    candidate = load(CLIPPED, reference="tiny", device="cpu")

    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(candidate, tiny, token_ids=ids)

    said = dict(caught.value.verdict.detail)["fix"]
    assert "two models are in memory already" in said
    assert f"--candidate={CLIPPED},skip={DOWN}" in said


def test_a_candidate_that_no_engine_makes_is_told_so(tiny, ids):
    """Nobody can quantize a damaged copy again."""
    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(damage.damaged(tiny, damage.zero), tiny, token_ids=ids)

    assert "no engine of this machine makes such a candidate" in dict(caught.value.verdict.detail)["fix"]


def test_a_price_needs_a_scheme(tiny, ids):
    """What nobody calls quantized has no price; what is has one, at the dtype it would have."""
    model = copy.deepcopy(tiny.model).to(torch.bfloat16)
    with torch.no_grad():
        damage.zero(model.model.layers[1].mlp.down_proj.weight)

    def bytes_of(scheme):
        candidate = Loaded(model, tiny.tokenizer, "candidate", tiny.text, scheme=scheme)
        with pytest.raises(RobustnessError) as caught:
            assert_super_weights_preserved(candidate, tiny, token_ids=ids)
        return caught.value.verdict.facts["fix"]["bytes"]

    assert bytes_of(None) is None
    assert bytes_of(Scheme("float", 16)) is None
    assert bytes_of(Scheme("absmax", 8)) == 131072
