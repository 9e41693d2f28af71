"""llm-compressor for real: its presets pass the shared check, and its traps are what they are said to be."""

from __future__ import annotations

import os
import sys

import pytest
import swcheck_compressed_tensors
import torch

import swcheck
from swcheck import (
    EngineError,
    OptionError,
    SuperWeight,
    anatomy,
    assert_perplexity_within,
    captured_output,
    check_engine,
    contributions,
    effective_weight,
    observe,
    plain_weight,
)
from swcheck.testing.conformance import save_narrowed_tiny

WEIGHT = SuperWeight(1, 97, 301)
IDS = torch.tensor([[0, 5, 9, 33, 2, 77, 130]])
KEPT = {
    "W4A16": 7 / 7.5,
    "W4A16_ASYM": 0.976,
    "W8A16": 127 / 127.5,
    "W8A8": 127 / 127.5,
    "FP8_DYNAMIC": 1,
    "NVFP4A16": 1,
}


def load(scheme, reference="tiny"):
    with captured_output():
        return swcheck_compressed_tensors.ENGINE.load(scheme, reference=reference, device="cpu", dtype=None)


def down(loaded):
    return anatomy(loaded.model).down_projections[1]


def written(loaded):
    """What the super weight writes at the first token, over its input."""
    with captured_output(), torch.no_grad(), observe(loaded.model, inputs=[1]) as sight:
        loaded.model(IDS)
    x = sight.inputs[1][0, 0]
    return float(contributions(down(loaded), x, WEIGHT.row, [WEIGHT.column])[0]) / float(x[WEIGHT.column])


def test_every_scheme_is_tested():
    """The table above leaves none out."""
    assert KEPT.keys() == swcheck_compressed_tensors.SCHEMES.keys()


@pytest.mark.parametrize("scheme", KEPT)
def test_conformance(scheme):
    """The readings agree, also on what the grid has cut off the super weight; a save afterwards is as good as before."""
    (reading,) = check_engine("compressed-tensors", [scheme])
    assert reading.contribution == pytest.approx(2.625 * KEPT[scheme], rel=0.005)
    assert reading.one_hot == pytest.approx(2.625 * KEPT[scheme], rel=0.005)
    assert reading.dequantized is None
    halves_only = ", and not loaded again: CheckpointError" if scheme == "NVFP4A16" else ""
    assert reading.saved == f"equal{halves_only}"
    assert reading.skip == "kept"


def test_half_precision():
    """In bfloat16 as well."""
    for reading in check_engine("compressed-tensors", ["W4A16", "W8A8", "NVFP4A16"], dtype="bfloat16"):
        assert reading.saved == "equal"


# --- traps -------------------------------------------------------------------------------------------------------------


def test_the_weight_in_memory_is_the_original():
    """``module.weight`` would call an int4 candidate perfect; it is not taken for what the module computes with."""
    loaded = load("W4A16")
    module = down(loaded)
    assert float(module.weight[WEIGHT.row, WEIGHT.column]) == 2.625
    assert plain_weight(module) is None
    assert effective_weight(module, WEIGHT.row, WEIGHT.column) == pytest.approx(2.45, rel=1e-4)
    assert written(loaded) == pytest.approx(2.45, rel=1e-4)


@pytest.mark.parametrize("scheme", ["W4A16", "W8A8", "FP8_DYNAMIC"])
def test_its_checkpoint_is_a_candidate_without_an_engine(tmp_path, scheme):
    """Saved and loaded by the core, the scalar reads as in memory; the first pass has unpacked the weights then."""
    loaded = load(scheme)
    expected = written(loaded)
    with captured_output():
        loaded.model.save_pretrained(tmp_path)
        loaded.tokenizer.save_pretrained(tmp_path)
        again = swcheck.load(str(tmp_path), device="cpu")
    assert plain_weight(down(again)) is None
    assert written(again) == pytest.approx(expected, rel=0.01)
    assert effective_weight(down(again), WEIGHT.row, WEIGHT.column, at=100.0) == pytest.approx(expected, rel=0.01)
    assert plain_weight(down(again)) is None


@pytest.mark.parametrize("factor", [1 / 8.33, 8.33])
@pytest.mark.parametrize("scheme", ["W8A8", "W4A16"])
def test_rescaled_as_by_awq_the_contribution_stays(tmp_path, scheme, factor):
    """AWQ and SmoothQuant scale a column of down_proj against its row of up_proj: the bare weight is another one, the
    product with its input is the same."""
    base = swcheck.load("tiny", device="cpu")
    mlp = base.model.model.layers[1].mlp
    with torch.no_grad():
        mlp.down_proj.weight[:, WEIGHT.column] *= factor
        mlp.up_proj.weight[WEIGHT.column] /= factor
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    plain, rescaled = load(scheme), load(scheme, str(tmp_path))
    sizes = []
    for loaded in (plain, rescaled):
        with captured_output(), torch.no_grad(), observe(loaded.model, inputs=[1]) as sight:
            loaded.model(IDS)
        sizes.append(float(sight.inputs[1][0, 0, WEIGHT.column]))
    assert written(rescaled) / written(plain) == pytest.approx(factor, rel=0.02)
    assert sizes[1] / sizes[0] == pytest.approx(1 / factor, rel=0.05)
    products = [size * written(loaded) for size, loaded in zip(sizes, (plain, rescaled), strict=True)]
    assert products[1] == pytest.approx(products[0], rel=0.05)


def test_a_group_that_does_not_divide(tmp_path):
    """480 inputs have no groups of 128; that is said, and the presets without groups work."""
    reference = save_narrowed_tiny(tmp_path, 480)
    with pytest.raises(EngineError, match="compressed-tensors:W4A16"):
        load("W4A16", reference)
    check_engine("compressed-tensors", ["W8A8"], reference=reference, super_weights=[WEIGHT])


def test_it_leaves_the_process_as_it_was(tmp_path, monkeypatch, capfd):
    """No variable in the environment, no file in the working directory, not a word."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    before = dict(os.environ)
    capfd.readouterr()
    load("W8A8")
    assert capfd.readouterr() == ("", "")
    assert dict(os.environ) == before
    assert not list(tmp_path.iterdir())


# --- what it says ------------------------------------------------------------------------------------------------------


def test_an_unknown_scheme():
    """The presets are listed."""
    with pytest.raises(EngineError, match="known: W4A16, W4A16_ASYM"):
        load("w4a4")


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("W4A17", EngineError, "known: W4A16"),
        ("W4A16,group=64", OptionError, "options here: skip="),
        ("W4A16,skip=", OptionError, "skip= without a module"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (swcheck_compressed_tensors.ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_no_reference():
    """There is nothing to quantize."""
    with pytest.raises(OptionError, match="no reference"):
        load("W8A8", None)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "llmcompressor", None)
    for refuse in (swcheck_compressed_tensors.ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'llmcompressor>="):
            refuse("W8A8")


def test_a_checkpoint_with_a_cache_scheme_is_scored_through_its_cache(tmp_path):
    """What llm-compressor saves with a ``kv_cache_scheme`` loads from its directory, and its cache is really rounded."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    reference = swcheck.load("tiny", device="cpu")
    made = swcheck.load("tiny", device="cpu")
    ids = [made.tokenizer(made.text[start : start + 400])["input_ids"][:100] for start in (0, 400, 800, 1200)]
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    recipe = QuantizationModifier(targets="Linear", scheme="W8A16", ignore=["re:.*lm_head"], kv_cache_scheme=cache)
    with captured_output():
        oneshot(model=made.model, recipe=recipe, dataset=data, num_calibration_samples=4, max_seq_length=100)
        made.model.save_pretrained(tmp_path)
        made.tokenizer.save_pretrained(tmp_path)

    verdict = assert_perplexity_within(swcheck.load(str(tmp_path), device="cpu"), reference, ratio=1.03)

    assert verdict.facts["kv_cache"]["scheme"] == "8-bit float"
    assert verdict.facts["kv_cache"]["scored"]
    assert verdict.facts["not_quantized"] == []
    assert "through its 8-bit float KV cache x1" in verdict.summary
