"""GPTQModel for real: what it makes passes the shared check, and its traps are what they are said to be."""

from __future__ import annotations

import os
import sys

import pytest
import swcheck_gptq
import torch
from transformers import AutoModelForCausalLM

import swcheck
from swcheck import (
    CheckpointError,
    EngineError,
    OptionError,
    SuperWeight,
    anatomy,
    captured_output,
    check_engine,
    contributions,
    effective_weight,
    observe,
    plain_weight,
    zeroed,
)
from swcheck.testing.conformance import save_narrowed_tiny

WEIGHT = SuperWeight(1, 97, 301)
IDS = torch.tensor([[0, 5, 9, 33, 2, 77, 130]])


def load(spec, reference="tiny", dtype=None):
    with captured_output():
        return swcheck_gptq.ENGINE.load(spec, reference=reference, device="cpu", dtype=dtype)


def down(model):
    return anatomy(model).down_projections[1]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """tiny in four bits, as GPTQModel saves it."""
    folder = tmp_path_factory.mktemp("gptq")
    with captured_output():
        base = swcheck.load("tiny", device="cpu")
        swcheck_gptq.quantized(base, "4bit", folder)
    return folder


@pytest.mark.parametrize(("scheme", "kept"), [("4bit", 7 / 7.5), ("2bit", 1 / 1.5)])
def test_conformance(scheme, kept):
    """The readings agree, on what the grid has cut off the super weight; what has been repacked is not saved again."""
    (reading,) = check_engine("gptq", [scheme])
    assert reading.contribution == pytest.approx(2.625 * kept, rel=0.01)
    assert reading.skip == "kept"
    assert reading.saved == "refused: CheckpointError"


def test_a_pass_repacks_and_a_save_is_refused(directory, tmp_path):
    """transformers would write a checkpoint that no pass survives; a model that swcheck loaded says so instead."""
    with captured_output():
        raw = AutoModelForCausalLM.from_pretrained(directory)
        before = down(raw).qzeros.shape
        with torch.no_grad():
            raw(IDS)
    assert down(raw).qzeros.shape != before
    loaded = swcheck.load(str(directory), device="cpu")
    with pytest.raises(CheckpointError, match="is not what the directory holds any more"):
        loaded.model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    assert (loaded.scheme.method, loaded.scheme.weight_bits) == ("gptq", 4)


def test_the_codes_are_no_weight(directory):
    """Contribution and one-hot agree with what GPTQModel dequantizes before the first pass, and the module is no plain layer."""
    with captured_output():
        raw = AutoModelForCausalLM.from_pretrained(directory)
        own = float(down(raw).dequantize_weight().T[WEIGHT.row, WEIGHT.column])
        loaded = swcheck.load(str(directory), device="cpu")
        with torch.no_grad(), observe(loaded.model, inputs=[1]) as sight:
            loaded.model(IDS)
    module, x = down(loaded.model), sight.inputs[1][0, 0]
    share = float(contributions(module, x, WEIGHT.row, [WEIGHT.column])[0])
    assert plain_weight(module) is None
    assert share / float(x[WEIGHT.column]) == pytest.approx(own, rel=0.01)
    assert effective_weight(module, WEIGHT.row, WEIGHT.column) == pytest.approx(own, rel=0.01)


def test_a_write_into_the_storage_is_ignored(directory):
    """After its first pass the kernel computes with a copy: scales set to zero change nothing, the hook does."""
    loaded = swcheck.load(str(directory), device="cpu")
    with captured_output(), torch.no_grad():
        before = loaded.model(IDS).logits
        down(loaded.model).scales.zero_()
        assert torch.equal(loaded.model(IDS).logits, before)
        with zeroed(loaded.model, [WEIGHT]):
            assert (loaded.model(IDS).logits - before).norm() > 0.1 * before.norm()
        assert torch.equal(loaded.model(IDS).logits, before)


# --- what it says ------------------------------------------------------------------------------------------------------


def test_it_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    """No variable in the environment, no file in the working directory."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    load("4bit")
    assert dict(os.environ) == before
    assert not list(tmp_path.iterdir())


def test_a_group_that_does_not_divide(tmp_path):
    """480 inputs have no groups of 128; the module is named, and the group that is offered works."""
    reference = save_narrowed_tiny(tmp_path, 480)
    with pytest.raises(EngineError, match=r"down_proj has 480 inputs, no multiple of 128") as caught:
        load("4bit", reference)
    assert caught.value.attempt == "gptq:4bit,group=32"
    assert load("4bit,group=32", reference).scheme.weight_bits == 4


def test_an_unknown_scheme():
    """The schemes are listed."""
    with pytest.raises(EngineError, match="known: 8bit, 4bit, 3bit, 2bit"):
        load("int4")


def test_a_group_that_makes_no_sense():
    """A group holds inputs."""
    with pytest.raises(OptionError, match="a number of inputs"):
        load("4bit,group=x")


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("5bit", EngineError, "known: 8bit, 4bit, 3bit, 2bit"),
        ("4bit,group=x", OptionError, "a number of inputs"),
        ("4bit,skip=a++b", OptionError, "skip= without a module"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (swcheck_gptq.ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_no_reference():
    """There is nothing to quantize."""
    with pytest.raises(OptionError, match="no reference"):
        load("4bit", None)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "gptqmodel", None)
    for refuse in (swcheck_gptq.ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'gptqmodel>="):
            refuse("4bit")
