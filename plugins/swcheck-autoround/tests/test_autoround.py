"""AutoRound for real: its schemes pass the shared check, and its traps are what they are said to be."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest
import swcheck_autoround
import torch

from swcheck import (
    EngineError,
    OptionError,
    SuperWeight,
    anatomy,
    captured_output,
    check_engine,
    effective_weight,
    plain_weight,
)

WEIGHT = SuperWeight(1, 97, 301)


def load(spec, reference="tiny"):
    with captured_output():
        return swcheck_autoround.ENGINE.load(spec, reference=reference, device="cpu", dtype=None)


def test_conformance():
    """The readings agree, a save loads as the same model, and a matrix that is to be kept is kept."""
    (reading,) = check_engine("autoround", ["W4A16"])
    assert reading.contribution == pytest.approx(2.625, rel=0.01)
    assert reading.one_hot == pytest.approx(2.625, rel=0.01)
    assert (reading.saved, reading.skip) == ("equal", "kept")


def test_it_computes_in_halves_and_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    """Kernels without a weight, in float16 on their own; no variable in the environment, no file where one stands."""
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    loaded = load("W2A16")
    module = anatomy(loaded.model).down_projections[1]
    assert loaded.model.dtype is torch.float16
    assert plain_weight(module) is None
    assert 0.5 < effective_weight(module, WEIGHT.row, WEIGHT.column) / 2.625 < 1.5
    assert dict(os.environ) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("gptqmodel") is not None, reason="gptqmodel is installed here")
def test_a_format_that_needs_another_package():
    """What gptqmodel would read is made, and the line that installs it is given."""
    with pytest.raises(EngineError, match="not installed: gptqmodel") as caught:
        load("W4A16,format=auto_awq")
    assert caught.value.attempt.startswith("pip install gptqmodel")


# --- what it says ------------------------------------------------------------------------------------------------------


def test_an_unknown_scheme():
    """The schemes are listed."""
    with pytest.raises(EngineError, match="known: W8A16, W4A16, W3A16, W2A16"):
        load("W5A16")


def test_an_unknown_format():
    """The formats are listed."""
    with pytest.raises(OptionError, match="formats: auto_round, auto_gptq, auto_awq"):
        load("W4A16,format=gguf")


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("W5A16", EngineError, "known: W8A16"),
        ("W4A16,format=gguf", OptionError, "formats: auto_round"),
        ("W4A16,skip=", OptionError, "skip= without a module"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (swcheck_autoround.ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_no_reference():
    """There is nothing to quantize."""
    with pytest.raises(OptionError, match="no reference"):
        load("W4A16", None)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "auto_round", None)
    for refuse in (swcheck_autoround.ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'auto-round>="):
            refuse("W4A16")
