"""hqq for real: its schemes pass the shared check, and its traps are what they are said to be."""

from __future__ import annotations

import sys

import pytest
import swcheck_hqq
import torch

import swcheck
from swcheck import (
    EngineError,
    OptionError,
    SuperWeight,
    UnsafeCheckpointError,
    anatomy,
    assert_perplexity_within,
    captured_output,
    check_engine,
    plain_weight,
)
from swcheck.gate.diagnosis.snippets import SNIPPETS
from swcheck.loading import engines
from swcheck.testing.conformance import save_narrowed_tiny

WEIGHT = SuperWeight(1, 97, 301)


def load(scheme, reference="tiny"):
    return swcheck_hqq.ENGINE.load(scheme, reference=reference, device="cpu", dtype=None)


@pytest.mark.parametrize(
    ("scheme", "error"), [("8bit", 0.001), ("4bit", 0.03), ("4bit,group=32", 0.03), ("3bit", 0.05)]
)
def test_conformance(scheme, error):
    """The three readings agree; a searched zero point moves the extreme a little."""
    (reading,) = check_engine("hqq", [scheme])
    assert reading.contribution == pytest.approx(2.625, rel=error)
    assert reading.dequantized == pytest.approx(reading.contribution, rel=1e-4)
    assert reading.skip == "kept"


def test_two_bits():
    """At two bits the super weight survives, and the input that it reads does not."""
    (reading,) = check_engine("hqq", ["2bit"])
    assert reading.contribution == pytest.approx(2.625, rel=0.05)
    assert reading.input < 135


def test_half_precision():
    """In bfloat16 as well."""
    check_engine("hqq", ["4bit"], dtype="bfloat16")


def test_every_linear_map_of_the_layers_and_nothing_else():
    """Seven maps a layer have no weight any more; embeddings and head are as before."""
    model = load("4bit").model
    packed = [name for name, module in model.named_modules() if type(module).__name__ == "HQQLinear"]
    assert len(packed) == 35
    assert all(".layers." in name for name in packed)
    assert type(model.lm_head) is torch.nn.Linear
    assert plain_weight(anatomy(model).down_projections[1]) is None


def test_groups_straddle_rows(tmp_path):
    """A group is a run of weights, so 480 inputs are no obstacle to groups of 64."""
    check_engine("hqq", ["4bit"], reference=save_narrowed_tiny(tmp_path, 480), super_weights=[WEIGHT])


def test_a_group_that_does_not_divide():
    """Where the weights of a matrix are no multiple of the group, it is named."""
    with pytest.raises(EngineError, match="q_proj has 65536 weights, no multiple of 24"):
        load("4bit,group=24")


def test_an_unknown_scheme():
    """The schemes are listed."""
    with pytest.raises(EngineError, match="known: 8bit, 4bit, 3bit, 2bit"):
        load("int4")


@pytest.mark.parametrize("spec", ["4bit,group=", "4bit,group=x", "4bit,group=4", "4bit,group=65"])
def test_a_group_that_makes_no_sense(spec):
    """hqq packs eight weights at a time."""
    with pytest.raises(OptionError, match="a multiple of 8"):
        load(spec)


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("4bits", EngineError, "scheme '4bits' of hqq\n  found: known: 8bit, 4bit, 3bit, 2bit\n  try: hqq:4bit"),
        ("4bit,group=65", OptionError, "a multiple of 8"),
        ("4bit,skip=", OptionError, "skip= without a module"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (swcheck_hqq.ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_no_reference():
    """There is nothing to quantize."""
    with pytest.raises(OptionError, match="no reference"):
        load("4bit", None)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "hqq", None)
    for refuse in (swcheck_hqq.ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'hqq>="):
            refuse("4bit")


@pytest.mark.parametrize(("bits", "low", "high"), [(8, 0.999, 1.001), (2, 1.1, 1.3)])
def test_a_cache_quantized_by_hqq_is_scored_through(bits, low, high):
    """Transformers' own quantized cache: eight bits are free, two cost what only a pass through the cache shows."""
    import math

    reference, candidate = (swcheck.load("tiny", device="cpu") for _ in range(2))
    candidate.model.generation_config.cache_implementation = "quantized"
    candidate.model.generation_config.cache_config = {"backend": "hqq", "nbits": bits, "residual_length": 16}

    facts = assert_perplexity_within(candidate, reference, ratio=2.0).facts

    assert facts["perplexity"] == facts["reference_perplexity"]
    assert facts["kv_cache"]["scheme"] == f"{bits}-bit hqq"
    assert low < math.exp(facts["kv_cache"]["nats"]) < high


# --- what hqq does on its own ------------------------------------------------------------------------------------------


def quantized(config_of):
    """tiny, quantized by hqq's own API for whole models."""
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    model = swcheck.load("tiny", device="cpu").model
    AutoHQQHFModel.set_auto_linear_tags(model)
    config = config_of(model, BaseQuantizeConfig(nbits=4, group_size=64))
    with captured_output():
        AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float32, device="cpu")
    return AutoHQQHFModel, model


def test_its_own_checkpoint_is_refused_unopened(tmp_path, monkeypatch):
    """``save_quantized`` writes a pickle and no tokenizer; the reason is the pickle, and nobody opens it."""
    api, model = quantized(lambda _model, config: config)
    api.save_quantized(model, str(tmp_path / "saved"))
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == ["config.json", "qmodel.pt"]
    for unpickle in ("torch.load", "pickle.load", "pickle.loads"):
        monkeypatch.setattr(unpickle, lambda *_args, **_more: pytest.fail("it was opened"))
    for refuse in (engines.check, lambda spec: swcheck.load(spec, device="cpu")):
        with pytest.raises(UnsafeCheckpointError, match=r"its weights are a pickle \(qmodel\.pt\)"):
            refuse(str(tmp_path / "saved"))


def test_the_fix_is_in_its_own_words():
    """The line that a red gate gives is Python that hqq takes, and leaves out what it says."""
    line = SNIPPETS["hqq"](["model.layers.1.mlp.down_proj"])
    text = line.partition("quant_config=")[2]
    _api, model = quantized(lambda model, config: eval(text, {"model": model, "config": config}))
    plain = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert plain == {"lm_head", *(f"model.layers.{number}.mlp.down_proj" for number in range(5))}
