"""Fixes: the line of the tool that wrote the candidate, its price, and the proof that the reference quantized so is better."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from swcheck import (
    RobustnessError,
    assert_collapses_when_zeroed,
    assert_perplexity_within,
    assert_predictions_preserved,
    assert_super_weights_preserved,
    load,
)
from swcheck.base.errors import EngineError
from swcheck.base.records import Limit, Loaded, Scheme
from swcheck.gate.checks.red_verdict import is_nearer
from swcheck.gate.diagnosis.remedy import remedy, snippet, spec_without, unquantized_maps
from swcheck.gate.diagnosis.snippets import SNIPPETS
from swcheck.gate.relation.linear_maps import quantization_config_of
from swcheck.lens.tokens import token_windows
from swcheck.loading import engines
from swcheck.loading.spec_from_config import spec_of
from swcheck.run.session import Session
from swcheck.run.settings import Settings
from swcheck.superweights.measurements.ablation import ablated_nats
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.model_sample import model_sample
from swcheck.superweights.measurements.scores import intact_scores
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.testing.damage import bases as relatives
from swcheck.testing.engine_checkpoint import state_fingerprint
from tests import checkpoints, damage, planted
from tests.loading.test_scheme_from_config import INTX
from tests.run.test_session import write_baseline

DOWN, QUERY = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True, "format": "gptq"}
ROUNDED = {"bits": 4, "group_size": 128, "data_type": "int", "sym": True, "enable_quanted_input": False}
"""As GPTQModel 7.6 and AutoRound 0.15 write them; what is at its default AutoRound leaves out."""

TAGS = 'tag: config for tag in model.linear_tags if tag not in ["mlp.down_proj", "self_attn.q_proj"]'
CLIPPED = "rtn:bits=4,block=128,clip=3"
THREE_BITS = "rtn:bits=3,block=128,keep"


@pytest.fixture(scope="module")
def ids(tiny):
    return token_windows(tiny.tokenizer, tiny.text, count=6, length=128)


def made_by(tiny, config, name="candidate"):
    """A candidate whose config says how it was quantized."""
    model = copy.copy(tiny.model)
    model.config = copy.deepcopy(tiny.model.config)
    if config is not None:
        model.config.quantization_config = config
    return as_subject(Loaded(model, tiny.tokenizer, name, tiny.text))


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
        ("hqq", f"hqq (by linear tag, in every layer) quant_config={{{TAGS}}}"),
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
    assert spec_without(made_by(tiny, None, "rtn:bits=3,skip=a"), (DOWN, "a")) == f"rtn:bits=3,skip=a+{DOWN}"
    assert snippet(made_by(tiny, None, "rtn:bits=3"), (DOWN,)) == f"rtn:bits=3,skip={DOWN}"
    assert spec_without(made_by(tiny, None, "clip"), (DOWN,)) is None


def test_what_a_file_or_a_server_holds_is_not_made_again(tiny, monkeypatch, tmp_path):
    """No engine leaves matrices out of it: the tool that writes such files has its line, for a server each usual one."""
    monkeypatch.setattr(engines, "installed_engines", lambda: dict.fromkeys(("server", "llamacpp", "openvino")))
    for spec, line in (
        ("server:http://127.0.0.1:8000", "llm-compressor ignore="),
        ("server:https://host/v1,model=a", "llm-compressor ignore="),
        ("llamacpp:./a.gguf", "llama-quantize --tensor-type"),
        ("llamacpp:./a.gguf,threads=2", "llama-quantize --tensor-type"),
        (f"openvino:{tmp_path},threads=2", "llm-compressor ignore="),
    ):
        candidate = made_by(tiny, None, spec)
        assert spec_without(candidate, (DOWN,)) is None
        assert snippet(candidate, (DOWN,)).startswith(line)
    assert spec_without(made_by(tiny, None, "llamacpp:q8_0"), (DOWN,)) == f"llamacpp:q8_0,skip={DOWN}"


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
        (GPTQ, "gptq:4bit,group=64"),
        ({"quant_method": "gptq", "bits": 2}, "gptq:2bit,group=128"),
        (GPTQ | {"desc_act": True}, None),
        (GPTQ | {"sym": False}, None),
        (GPTQ | {"bits": 5}, None),
        (GPTQ | {"group_size": -1}, None),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, None),
        (ROUNDED | {"quant_method": "awq", "provider": "auto-round"}, "autoround:W4A16,format=auto_awq"),
        (ROUNDED | {"quant_method": "gptq", "provider": "auto-round"}, "autoround:W4A16,format=auto_gptq"),
        (ROUNDED | {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}, "autoround:W4A16"),
        (ROUNDED | {"quant_method": "intel/auto-round", "bits": 2}, "autoround:W2A16"),
        (ROUNDED | {"quant_method": "auto-round", "group_size": 32}, None),
        (ROUNDED | {"quant_method": "auto-round", "iters": 200}, None),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}, None),
        ({"quant_method": "quanto", "weights": "int8", "activations": None}, "quanto:int8"),
        ({"quant_method": "quanto", "weights": "float8"}, "quanto:fp8"),
        ({"quant_method": "quanto", "weights": "int8", "activations": "int8"}, None),
        ({"quant_method": "quanto"}, None),
        ({"quant_method": "compressed-tensors"}, None),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
            },
            None,
        ),
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

    assert quantization_config_of(made_by(tiny, Config()).module) == {"bits": 4, "quant_method": "awq"}
    assert quantization_config_of(made_by(tiny, {"bits": 3}).module) == {"bits": 3}
    assert quantization_config_of(nn.Linear(2, 2)) == {}


# --- price and proof ---------------------------------------------------------------------------------------------------


def gate(candidate, **settings):
    """A session's reference and candidate, as a gate has them."""
    session = Session(Settings(models=("tiny",), candidates=(candidate,), device="cpu", **settings))
    reference = session.reference("tiny")
    return session, reference, session.candidate()


@pytest.mark.slow
def test_a_fix_is_proven_by_quantizing_again(monkeypatch):
    """The gate makes the candidate anew with the named matrix spared, measures it, and says what it gains and costs.

    At no time are there more than two models: the reference's weights are away when the new one is made.
    """
    session, reference, candidate = gate(CLIPPED)
    made, load_one = [], engines.load

    def watched(spec, **options):
        made.append((spec, not reference.held.in_memory))
        return load_one(spec, **options)

    monkeypatch.setattr("swcheck.run.session.engines.load", watched)
    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(candidate, reference)
    verdict, fix = caught.value.verdict, caught.value.verdict.facts["fix"]

    assert made[0] == (f"{CLIPPED},skip={DOWN}", True)
    assert fix["proven"]
    assert fix["perplexity"] < fix["before"]
    assert fix["bytes"] == 256 * 512 * (32 - 4) // 8
    assert verdict.attempt.endswith(f"unquantized (+458,752 bytes): {CLIPPED},skip={DOWN}")
    assert "quantized again with these matrices left out: perplexity x1.1" in dict(verdict.detail)["fix"]
    assert "(was x0.240)" in dict(verdict.detail)["fix"]
    session.free()


@pytest.mark.slow
def test_a_fix_names_the_tensors_that_hurt(monkeypatch):
    """Where it is not the super weights, what is spared and proven are the five worst matrices, once for all checks."""
    session, reference, candidate = gate(THREE_BITS)
    made, load_one = [], engines.load
    monkeypatch.setattr(
        "swcheck.run.session.engines.load", lambda spec, **more: made.append(spec) or load_one(spec, **more)
    )

    with pytest.raises(RobustnessError) as caught:
        assert_perplexity_within(candidate, reference, ratio=1.085)
    with pytest.raises(RobustnessError, match=r"the super weight writes x1\.004 \(was x1\.004\)\n"):
        assert_perplexity_within(candidate, reference, ratio=1.085)
    with pytest.raises(RobustnessError, match="not enough yet"):
        assert_perplexity_within(candidate, reference, ratio=1.01)

    fix = caught.value.verdict.facts["fix"]
    assert len(fix["matrices"]) == 5
    assert fix["proven"]
    assert fix["perplexity"] < 1.085 < fix["before"]
    assert [spec for spec in made if "skip=" in spec] == [f"{THREE_BITS},skip={'+'.join(fix['matrices'])}"]
    session.free()


@pytest.mark.slow
def test_a_fix_that_leaves_the_super_weight_too_weak_says_so():
    """With its matrix spared the super weight writes more, and less than a limit asks: that is not enough yet."""
    session, reference, candidate = gate(CLIPPED)

    with pytest.raises(RobustnessError, match=r"x0\.\d+ \(was x0\.240\)\n"):
        assert_super_weights_preserved(candidate, reference)
    with pytest.raises(RobustnessError, match=r"\(was x0\.240\), not enough yet") as caught:
        assert_super_weights_preserved(candidate, reference, low=0.95)

    assert 0.75 < caught.value.verdict.facts["fix"]["written"] < 0.95
    session.free()


@pytest.mark.slow
def test_a_fix_is_held_to_the_check_that_is_red():
    """Of two bits the worst maps left out bring the predictions nearer, not near enough, and the dependence down: that says
    so, and gets other advice."""
    session = Session(Settings(models=("tiny",), candidates=("rtn:bits=2",)))
    reference = session.reference("tiny")
    ablated_nats(reference, located(reference).super_weights)
    candidate = session.candidate("rtn:bits=2")
    with pytest.raises(RobustnessError) as weaker:
        assert_collapses_when_zeroed(candidate, reference)
    verdict = weaker.value.verdict
    assert verdict.facts["fix"]["dependence"] < verdict.measured
    assert dict(verdict.detail)["fix"].endswith(
        f", dependence {verdict.facts['fix']['dependence']:.3f}, not enough yet"
    )
    assert verdict.attempt == "more bits or smaller groups (to spare these matrices alone does not help)"
    with pytest.raises(RobustnessError) as other:
        assert_predictions_preserved(candidate, reference)
    verdict = other.value.verdict
    assert verdict.limit.high < verdict.facts["fix"]["kl"] < verdict.measured
    assert "nats, not enough yet" in dict(verdict.detail)["fix"]
    assert "returns" in verdict.attempt
    session.free()


HUNDREDTHS = st.integers(0, 1000).map(lambda number: number / 100)


@given(HUNDREDTHS, HUNDREDTHS, st.sampled_from([Limit(0.5, None, ""), Limit(None, 0.5, ""), Limit(0.75, 2, "")]))
def test_what_is_nearer_to_a_limit(value, than, limit):
    """What is within it always is; outside, what is closer on the same side."""
    assume(not limit.holds(than))
    ends = [end for end in (limit.low, limit.high) if end is not None]
    same_side = limit.holds(value) or all((value < end) == (than < end) for end in ends)
    if same_side:
        away, before = (min(abs(one - end) for end in ends) for one in (value, than))
        assert is_nearer(limit, value, than) == (limit.holds(value) or away < before)


@pytest.mark.slow
def test_a_green_gate_quantizes_once(monkeypatch):
    """Nothing is made again for a candidate that is within its limits."""
    session, reference, candidate = gate("rtn:bits=8")
    monkeypatch.setattr("swcheck.run.session.engines.load", lambda spec, **_more: pytest.fail(f"{spec} was made again"))

    assert_super_weights_preserved(candidate, reference)
    assert_perplexity_within(candidate, reference)
    session.free()  # nor is a reference loaded again to be freed


@pytest.mark.slow
@pytest.mark.parametrize("found", [EngineError("x", "no such scheme"), RuntimeError("out of memory")])
def test_an_engine_that_cannot_is_no_second_failure(monkeypatch, found):
    """Whatever goes wrong while a fix is proven, the verdict is the first one; the other proof is had, and both are said."""
    session, reference, candidate = gate(CLIPPED)

    load_one = engines.load

    def refuse(spec, **options):
        if "skip=" in spec:
            raise found
        return load_one(spec, **options)

    monkeypatch.setattr("swcheck.run.session.engines.load", refuse)
    with pytest.raises(RobustnessError, match="clipped or rounded down") as caught:
        assert_super_weights_preserved(candidate, reference)

    said = dict(caught.value.verdict.detail)["fix"]
    assert said.startswith("with these matrices given back through a hook: perplexity x1.1")
    assert "; quantized again with these matrices left out: " in said
    assert str(found).splitlines()[-1].split(": ")[-1] in said
    session.free()


def state(*models):
    """Everything that a model holds, and what hangs on its modules."""
    hooks = [len(module._forward_hooks) for model in models for module in model.modules()]
    return [state_fingerprint(model) for model in models], hooks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("largest", "way", "spec"),
    [
        (10**9, "quantized again with these matrices left out", True),
        (0, "with these matrices given back through a hook", False),
    ],
)
def test_a_fix_is_proven_for_two_models_in_memory(tiny, ids, monkeypatch, largest, way, spec):
    """In a caller's own process as well: by a third model where the two are small, else by their own matrices.

    Of neither proof a trace is left in the caller's models.
    """
    monkeypatch.setattr("swcheck.superweights.measurements.weights.SMALL_MODEL", largest)
    candidate = load(CLIPPED, reference="tiny", device="cpu")
    before, made, load_one = state(candidate.model, tiny.model), [], engines.load
    monkeypatch.setattr(
        "swcheck.superweights.subject.subject.engines.load",
        lambda name, **more: made.append(name) or load_one(name, **more),
    )

    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(candidate, tiny, token_ids=ids)

    fix = caught.value.verdict.facts["fix"]
    assert dict(caught.value.verdict.detail)["fix"].startswith(f"{way}: perplexity x1.1")
    assert (fix["proven"], fix["by"]) == (True, way)
    assert fix["perplexity"] < fix["before"]
    assert fix["written"] > 0.8
    assert (f"{CLIPPED},skip={DOWN}" in made) == spec == bool(made)
    assert state(candidate.model, tiny.model) == before


class Coarse(nn.Module):
    """A quantizer of somebody's own: a packed map of three levels, with no weight that could be read."""

    def __init__(self, plain):
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        step = plain.weight.abs().max() / 4
        self.register_buffer("codes", (plain.weight / step).round().clamp(-1, 1).to(torch.int8))
        self.register_buffer("step", step)

    def forward(self, x):
        return nn.functional.linear(x, self.codes.to(x.dtype) * self.step)


@pytest.mark.slow
def test_a_quantizer_of_somebodys_own_gets_its_fix_proven(tiny, ids):
    """No engine can make it again, but the reference's matrix can be put in the place of what it packed."""
    model = copy.deepcopy(tiny.model)
    model.model.layers[1].mlp.down_proj = Coarse(model.model.layers[1].mlp.down_proj)
    before = state(model, tiny.model)

    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(model, tiny.model, tokenizer=tiny.tokenizer, token_ids=ids)

    fix = caught.value.verdict.facts["fix"]
    assert fix["by"] == "with these matrices given back through a hook"
    assert fix["instead"] == "no engine of this machine makes such a candidate"
    assert fix["matrices"] == [DOWN]
    assert fix["perplexity"] == pytest.approx(1, abs=1e-6)
    assert fix["before"] > 1.3
    assert fix["written"] == pytest.approx(1, abs=1e-6)
    assert state(model, tiny.model) == before


@pytest.mark.slow
def test_a_directory_of_nobody_gets_its_fix_proven(tmp_path, monkeypatch):
    """In a gate the reference's matrices come out of its files: it is not loaded a second time for them."""
    session, reference, candidate = gate(str(checkpoints.damaged(tmp_path / "zeroed", damage.zero)))
    monkeypatch.setattr("swcheck.run.session.engines.load", lambda spec, **_more: pytest.fail(f"{spec} was loaded"))

    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(candidate, reference)

    said = dict(caught.value.verdict.detail)["fix"]
    assert said.startswith("with these matrices given back through a hook: perplexity x1 (was x")
    session.free()


def test_a_matrix_that_does_not_help_is_said_to(tiny, ids):
    """Another matrix than the one that is broken brings nothing back, and nobody calls that proven, or advises it."""
    broken = as_subject(damage.damaged(tiny, damage.zero), token_ids=ids)
    found = remedy(broken, as_subject(tiny, token_ids=ids), [QUERY])

    assert found.proof.startswith("this does not help, with these matrices given back through a hook: perplexity x")
    assert not found.facts["proven"]
    assert (
        found.words
        == "if a quantizer made it, more bits or smaller groups (to spare these matrices alone does not help)"
    )


def test_what_cannot_be_given_back_is_said(tiny, ids):
    """Another basis, a map that is not there, and a reference of which only numbers are left."""
    reference = as_subject(tiny, token_ids=ids)
    rotated = as_subject(relatives.rotated(tiny.model), token_ids=ids)
    assert (
        "matrices cannot be given back, its residual stream has another basis"
        in remedy(rotated, reference, [DOWN]).proof
    )

    broken = as_subject(damage.damaged(tiny, damage.zero), token_ids=ids)
    shorter = as_subject(copy.deepcopy(tiny.model), token_ids=ids)
    del shorter.module.model.layers[4]
    assert "the reference has no layers.4" in remedy(broken, shorter, [DOWN.replace("1", "4")]).proof

    intact_scores(reference)
    model_sample(reference)
    reference.free()
    reference.source = ""
    found = remedy(broken, reference, [DOWN])
    assert found.proof == (
        "not proven: no engine of this machine makes such a candidate; "
        "matrices cannot be given back, the reference is not on this machine"
    )


@pytest.mark.slow
def test_a_baseline_keeps_a_large_reference_away(tmp_path, monkeypatch):
    """Where the reference's files are larger than the candidate's, it is not loaded to prove a fix: its matrices are read."""
    write_baseline(Settings(models=("tiny",), device="cpu", baseline=tmp_path / "kept"))
    session, reference, candidate = gate(CLIPPED, baseline=tmp_path / "kept")
    monkeypatch.setattr("swcheck.gate.diagnosis.fix_trial.SMALL_FILES", 0)
    candidate.source = ""

    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(candidate, reference)

    fix = caught.value.verdict.facts["fix"]
    assert (fix["proven"], fix["by"]) == (True, "with these matrices given back through a hook")
    assert fix["instead"].startswith("beside its baseline the reference is not loaded: 6,9")
    session.free()


@pytest.mark.slow
def test_a_rescaled_matrix_is_not_called_useless(tiny, ids):
    """AWQ puts factors between two maps: the reference's own matrix does not fit there, and that is what is said."""
    broken = relatives.rescaled(tiny.model)
    with torch.no_grad():
        broken.get_submodule(QUERY).weight.mul_(0.5)
    candidate, reference = as_subject(broken, token_ids=ids), as_subject(tiny, token_ids=ids)

    for name in (DOWN, DOWN.replace("down", "up")):
        found = remedy(candidate, reference, [name])
        assert found.proof.endswith("their inputs or outputs are rescaled (as by AWQ, SmoothQuant)")
        assert not found.facts["proven"]
    assert remedy(candidate, reference, [QUERY]).facts["perplexity"] == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_a_reference_that_a_caller_changed_is_not_loaded_from_its_directory(tiny, ids):
    """What an engine would make of the directory proves nothing about the reference in memory; its own matrix does."""
    changed = copy.deepcopy(tiny.model)
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight[5] *= 1.5
    candidate = load(CLIPPED, reference="tiny", device="cpu")
    found = remedy(
        as_subject(candidate, token_ids=ids), as_subject(replace(tiny, model=changed), token_ids=ids), [DOWN]
    )

    assert found.facts["by"] == "with these matrices given back through a hook"
    assert found.facts["instead"] == f"the reference in memory has another {DOWN} than its directory"


@pytest.mark.slow
def test_a_third_model_is_made_as_the_reference_is(tiny, ids, monkeypatch):
    """On its device and in its dtype, so that the numbers compare."""
    made, load_one = [], engines.load
    reference = replace(tiny, model=copy.deepcopy(tiny.model).to(torch.bfloat16))
    candidate = load(CLIPPED, reference="tiny", device="cpu", dtype="bfloat16")
    monkeypatch.setattr(engines, "load", lambda spec, **more: made.append((spec, more)) or load_one(spec, **more))
    found = remedy(as_subject(candidate, token_ids=ids), as_subject(reference, token_ids=ids), [DOWN])

    assert found.facts["by"] == "quantized again with these matrices left out"
    assert made[0] == (f"{CLIPPED},skip={DOWN}", {"reference": tiny.source, "device": "cpu", "dtype": "bfloat16"})


def test_what_a_directory_spares_it_spares_again(tiny, monkeypatch):
    """Maps in plain floats among packed ones were left out on purpose; a fix leaves them out as well."""
    candidate = made_by(tiny, ROUNDED | {"quant_method": "auto-round"})
    monkeypatch.setattr(engines, "installed_engines", lambda: {"autoround": None})
    assert unquantized_maps(candidate) == ()
    assert spec_without(candidate, (DOWN,)) == f"autoround:W4A16,skip={DOWN}"

    candidate.held = HeldModel(copy.deepcopy(candidate.module))
    for number, layer in enumerate(candidate.module.model.layers):
        for parent in (layer.self_attn, layer.mlp):
            for name, module in list(parent.named_children()):
                if isinstance(module, nn.Linear) and (number, name) != (0, "q_proj"):
                    setattr(parent, name, Coarse(module))
    assert unquantized_maps(candidate) == (QUERY,)
    assert spec_without(candidate, (DOWN,)) == f"autoround:W4A16,skip={QUERY}+{DOWN}"


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [("pruned", "prune these matrices less: "), ("finetuned", "leave these matrices as they were, or train them more")],
)
def test_what_was_pruned_or_trained_gets_no_quantizers_words(tiny, ids, kind, words):
    """Whoever pruned or trained a model is told which matrices hurt, not how a quantizer skips them."""
    reference, broken = (as_subject(one, token_ids=ids) for one in (tiny, damage.damaged(tiny, damage.zero)))
    broken.kind = kind
    with pytest.raises(RobustnessError) as caught:
        assert_super_weights_preserved(broken, reference)

    attempt = caught.value.verdict.attempt
    assert attempt.startswith(words)
    assert attempt.endswith(f": {DOWN}")


def test_a_weight_given_back_helps_where_the_text_hardly_felt_it():
    """Where the damaged model is a hair better on the text, its super weight is still what the fix brings back."""
    model = planted.sinking(planted.on_first)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[5, 7] = 0
    one, other = (as_subject(each, tokenizer=planted.tokenizer(bos=False)) for each in (broken, model))
    weights = located(other).super_weights
    found = remedy(one, other, [DOWN], (weights, weights))

    assert found.facts["before"] < found.facts["perplexity"] < 1.0001
    assert found.facts["written"] == pytest.approx(1, abs=1e-5)
    assert found.facts["proven"]
    assert DOWN in found.words
