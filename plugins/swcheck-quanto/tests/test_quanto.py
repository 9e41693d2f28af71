"""optimum-quanto for real: its schemes pass the shared check, and its traps are what they are said to be."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace

import pytest
import swcheck_quanto
import torch

import swcheck
from swcheck import (
    EngineError,
    OptionError,
    RobustnessError,
    SuperWeight,
    anatomy,
    assert_perplexity_within,
    captured_output,
    check_engine,
    contributions,
    effective_weight,
    observe,
    plain_weight,
    scaled,
    token_windows,
    zeroed,
)
from swcheck.lens.intervene import set_to

WEIGHT = SuperWeight(1, 97, 301)
IDS = torch.tensor([[0, 5, 9, 33, 2, 77, 130]])


def load(scheme, reference="tiny"):
    return swcheck_quanto.ENGINE.load(scheme, reference=reference, device="cpu", dtype=None)


def down(loaded):
    return anatomy(loaded.model).down_projections[1]


@pytest.mark.parametrize("scheme", ["int8", "fp8", "int8-static"])
def test_conformance(scheme):
    """The largest of a row is exact, so all three readings give tiny's own super weight."""
    (reading,) = check_engine("quanto", [scheme])
    assert reading.contribution == pytest.approx(2.625, rel=1e-3)
    assert reading.one_hot == pytest.approx(2.625, rel=1e-3)
    assert reading.dequantized == pytest.approx(2.625, rel=1e-3)
    assert reading.skip == "kept"


@pytest.mark.skipif(
    shutil.which("g++") is None or not os.environ.get("SWCHECK_SLOW"),
    reason="compiles for a minute; SWCHECK_SLOW=1 runs it where there is a g++",
)
@pytest.mark.parametrize("scheme", ["int4", "int2"])
def test_conformance_of_what_is_compiled(scheme):
    """An asymmetric grid keeps its extremes."""
    (reading,) = check_engine("quanto", [scheme])
    assert reading.dequantized == pytest.approx(2.625, rel=0.01)


def test_half_precision():
    """In bfloat16 as well."""
    check_engine("quanto", ["int8", "int8-static"], dtype="bfloat16")


# --- traps: static inputs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static():
    """The model whose inputs are quantized on calibrated grids."""
    return load("int8-static")


def test_a_one_hot_of_size_one_reads_another_weight(static):
    """The grid ends at the sink's input, 150: a probe of 1 is rounded to a step of more than 1, one of 150 is exact."""
    module = down(static)
    with torch.no_grad(), observe(static.model, inputs=[1]) as sight:
        static.model(IDS)
    x = sight.inputs[1][0, 0]
    assert type(x) is torch.Tensor
    size = float(x[WEIGHT.column])
    assert abs(effective_weight(module, WEIGHT.row, WEIGHT.column) / 2.625 - 1) > 0.1
    assert effective_weight(module, WEIGHT.row, WEIGHT.column, at=size) == pytest.approx(2.625, rel=1e-3)
    written = float(contributions(module, x, WEIGHT.row, [WEIGHT.column])[0])
    assert written / size == pytest.approx(2.625, rel=1e-3)


def test_an_input_beyond_the_grid_is_clipped(static):
    """Twice the calibrated input writes hardly more: what counts is what the module does, not weight times input."""
    module = down(static)
    with torch.no_grad(), observe(static.model, inputs=[1]) as sight:
        static.model(IDS)
    x = sight.inputs[1][0, 0]
    once = float(contributions(module, x, WEIGHT.row, [WEIGHT.column])[0])
    doubled = x.clone()
    doubled[WEIGHT.column] *= 2
    assert float(contributions(module, doubled, WEIGHT.row, [WEIGHT.column])[0]) < 1.1 * once


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        (lambda model: zeroed(model, [WEIGHT]), 0.0),
        (lambda model: scaled(model, [WEIGHT], 2.0), 2.0),
        (lambda model: set_to(model, [SuperWeight(1, 97, 301, 1.3125)]), 0.5),
    ],
)
def test_an_override_is_of_what_is_really_written(static, change, factor):
    """Zeroed, scaled and set, the sink's output moves by the contribution, though its weight reads wrong at 1."""
    with torch.no_grad(), observe(static.model, inputs=[1], outputs=[1]) as sight:
        static.model(IDS)
    plain = sight.outputs[1][0, 0]
    share = float(contributions(down(static), sight.inputs[1][0, 0], WEIGHT.row, [WEIGHT.column])[0])
    with torch.no_grad(), change(static.model), observe(static.model, outputs=[1]) as sight:
        static.model(IDS)
    expected = float(plain[WEIGHT.row]) + (factor - 1) * share
    assert float(sight.outputs[1][0, 0, WEIGHT.row]) == pytest.approx(expected, abs=0.01 * share)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_the_hook_equals_a_write_into_the_codes(scheme):
    """Zero is a code here, so the override from outside can be held against a write into the storage."""
    loaded = load(scheme)
    with torch.no_grad():
        before = loaded.model(IDS).logits
        with zeroed(loaded.model, [WEIGHT]):
            hooked = loaded.model(IDS).logits
        down(loaded).weight._data[WEIGHT.row, WEIGHT.column] = 0
        written = loaded.model(IDS).logits
    assert (hooked - written).norm() < 1e-4 * (before - written).norm()


def test_a_packed_weight_is_never_plain(static):
    """QLinear is no plain layer."""
    assert plain_weight(down(static)) is None


# --- what it says ------------------------------------------------------------------------------------------------------


def test_without_a_compiler(monkeypatch):
    """int4 needs g++; that is said before the minute is spent."""
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(EngineError, match=r"no g\+\+"):
        load("int4")


def test_an_unknown_scheme():
    """The schemes are listed."""
    with pytest.raises(EngineError, match="known: int8, fp8, int8-static, int4, int2"):
        load("int5")


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("int3x", EngineError, "known: int8, fp8, int8-static, int4, int2"),
        ("int8,group=64", OptionError, "options here: skip="),
        ("int8,skip=", OptionError, "skip= without a module"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (swcheck_quanto.ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_no_reference():
    """There is nothing to quantize."""
    with pytest.raises(OptionError, match="no reference"):
        load("int8", None)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.delattr(sys.modules["optimum"], "quanto")
    monkeypatch.setitem(sys.modules, "optimum.quanto", None)
    for refuse in (swcheck_quanto.ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'optimum-quanto>="):
            refuse("int8")


def test_what_transformers_quantized_gets_its_fix_proven():
    """transformers' own config of quanto, which it cannot save, says which scheme makes such a one."""
    from transformers import AutoModelForCausalLM, QuantoConfig

    reference = swcheck.load("tiny", device="cpu")
    with captured_output():
        model = AutoModelForCausalLM.from_pretrained(
            reference.source, quantization_config=QuantoConfig("int8"), local_files_only=True
        ).eval()
    with pytest.raises(RobustnessError, match="not the super weights") as caught:
        candidate, ids = (
            replace(reference, model=model, name="mine"),
            token_windows(reference.tokenizer, reference.text, count=4, length=128),
        )
        assert_perplexity_within(candidate, reference, ratio=0.99, token_ids=ids)

    fix = caught.value.verdict.facts["fix"]
    assert fix["by"] == "quantized again with these matrices left out"
    assert fix["spec"].startswith("quanto:int8,skip=model.layers.")
    assert "quanto exclude=" in caught.value.verdict.attempt
