"""OpenVINO for real: its numbers are torch's, and a damaged IR is red with its cause."""

from __future__ import annotations

import re
import sys

import numpy as np
import openvino
import pytest
import torch
from openvino import opset13 as ops
from swcheck_openvino import ENGINE
from swcheck_openvino.graph import Places, compressed, converted, scheme_of
from swcheck_openvino.runtime import OpenVino

import swcheck
from swcheck import (
    CheckpointError,
    EngineError,
    OptionError,
    Outcome,
    RobustnessError,
    SuperWeight,
    all_verdicts,
    assert_perplexity_within,
    check_engine,
    exportable,
    token_windows,
)
from swcheck.superweights.subject.as_subject import as_subject

WEIGHT = SuperWeight(1, 97, 301)
DOWN = "model.layers.1.mlp.down_proj"


def load(spec, reference="tiny"):
    return ENGINE.load(str(spec), reference=reference, device="cpu", dtype=None)


@pytest.fixture(scope="module")
def reference():
    base = swcheck.load("tiny", device="cpu")
    return as_subject(base, token_ids=token_windows(base.tokenizer, base.text, count=8, length=96))


@pytest.fixture(scope="module")
def graph():
    """tiny, converted."""
    return converted(swcheck.load("tiny", device="cpu").model)


@pytest.fixture(scope="module")
def files(graph, tmp_path_factory):
    """The same as IRs: float, 8 and 4 bits."""
    folder = tmp_path_factory.mktemp("irs")
    for scheme in ("f32", "int8", "int4"):
        openvino.save_model(compressed(graph.clone(), scheme, 64, ()), folder / f"{scheme}.xml", compress_to_fp16=False)
    return folder


@pytest.mark.parametrize("name", ["f32", "int8", "int4"])
def test_conformance(files, name):
    """Values and overrides are what they say, however the weights are stored."""
    (reading,) = check_engine("openvino", [str(files / f"{name}.xml")])
    assert reading.contribution == pytest.approx(2.625, rel=5e-3)


def test_parity_of_the_float_graph(files, reference):
    """Unquantized, OpenVINO computes what torch does."""
    found = all_verdicts(load(f"{files / 'f32.xml'},precision=f32"), reference)
    assert {verdict.outcome for verdict in found.values()} == {Outcome.PASSED}
    assert found["perplexity"].measured == pytest.approx(1, abs=1e-4)
    assert found["predictions"].measured < 1e-6
    assert found["super activations"].measured == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_healthy_quantizations_pass(files, reference, name):
    """As nncf compresses them."""
    assert not [str(one) for one in all_verdicts(load(files / f"{name}.xml"), reference).values() if one.red]


def test_no_shape_departs(files, reference):
    """Lengths, a padded batch, chunks behind the kept cache, and each type of it."""
    verdict = assert_perplexity_within(load(files / "int8.xml"), reference)
    shapes = verdict.facts["shapes"]
    assert {"33 tokens in a batch of 3", "chunks of 32", "single tokens", "chunks, u4 KV cache"} <= set(
        shapes["scored"]
    )
    assert not shapes["faults"]
    assert not shapes["lacking"]


def test_chunks_of_floats_are_the_whole_window(graph, reference):
    """Behind a cache of floats, to the bits of a cache of halves behind another."""
    runtime, ids = OpenVino(graph, "openvino:f32", {"precision": "f32", "cache": "f32"}), reference.token_ids[0]
    whole = runtime.log_probabilities(ids)
    for cache, within in (("", 1e-3), ("f16", 0.1), ("u4", 10)):
        apart = (runtime.chunked_log_probabilities(ids, cuts=[32, 33, 70], cache=cache) - whole).abs().max()
        assert 0 < apart < within
        assert cache != "u4" or apart > 0.1
    assert (runtime.log_probabilities(ids) == whole).all()


def test_the_type_of_the_cache_stands_in_the_title(files):
    """The one that OpenVINO chose, or the one that was asked for; it is not swept again."""
    for given, own in (("", "u8"), (",cache=u4", "u4")):
        runtime = load(f"{files / 'int8.xml'}{given}").model
        assert f"cache={own}" in runtime.title
        assert {*runtime.caches, own} == {"f16", "u8", "u4"}
        assert runtime.coarse_cache == (own == "u4")


def test_chunks_of_a_graph_without_a_cache_are_said_to_be_missing(reference, tmp_path):
    """As OpenVINO's converter makes one of a module that takes ids alone."""
    alone = exportable(swcheck.load("tiny", device="cpu").model)
    plain = openvino.convert_model(alone, example_input=torch.zeros(1, 8, dtype=torch.int64))
    plain.outputs[0].get_tensor().set_names({"logits"})
    openvino.save_model(plain, tmp_path / "plain.xml")
    verdict = assert_perplexity_within(load(tmp_path / "plain.xml"), reference)
    assert "; not in other shapes: a window in chunks (not shown)" in verdict.summary
    with pytest.raises(OptionError, match="this graph keeps no cache"):
        load(f"{tmp_path / 'plain.xml'},cache=u8")


def put_before(output, make):
    """What reads an output reads what is made of it."""
    readers = list(output.get_target_inputs())
    made = make(output).output(0)
    for reader in readers:
        reader.replace_source_output(made)


def length_of(graph, name):
    """The second size of an input."""
    return ops.gather(ops.shape_of(graph.input(name)), ops.constant(1), ops.constant(0))


def forget_positions(graph):
    """Each pass begins at the position 0."""
    zero, one = ops.constant(np.int64(0)), ops.constant(np.int64(1))
    counted = ops.unsqueeze(ops.range(zero, length_of(graph, "input_ids"), one, "i64"), zero)
    put_before(graph.input("position_ids").get_node().output(0), lambda _: counted)


def mask_off_by_one(graph):
    """The mask ends one place too early behind a cache: its last token is not seen."""
    zero, one = ops.constant(np.int64(0)), ops.constant(np.int64(1))

    def shorter(mask):
        places, new = (length_of(graph, name) for name in ("attention_mask", "input_ids"))
        last = ops.subtract(ops.subtract(places, new), one)
        kept = ops.not_equal(ops.range(zero, places, one, "i64"), last)
        return ops.multiply(mask, ops.convert(kept, "i64"))

    put_before(graph.input("attention_mask").get_node().output(0), shorter)


def round_cache(graph):
    """What comes back from the cache is rounded to whole fours, as in 8 bits with a range that is too wide."""
    step = ops.constant(np.float32(4))
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            put_before(
                node.output(0), lambda past: ops.multiply(ops.round(ops.divide(past, step), "half_to_even"), step)
            )


@pytest.mark.parametrize("fault", [forget_positions, mask_off_by_one, round_cache])
def test_a_fault_behind_the_cache_is_red_with_its_shape(graph, reference, tmp_path, fault):
    """Whole windows are as before; chunks are named, and every length alone agrees."""
    broken = graph.clone()
    fault(broken)
    broken.validate_nodes_and_infer_types()
    openvino.save_model(broken, tmp_path / "broken.xml", compress_to_fp16=False)
    with pytest.raises(RobustnessError, match="the kernels of this candidate depend on the shape:") as caught:
        assert_perplexity_within(load(tmp_path / "broken.xml"), reference)
    verdict = caught.value.verdict
    assert re.search(
        r"the shape: (chunks of 3\d|uneven chunks|single tokens|chunks, \w+ KV cache) x", str(caught.value)
    )
    assert verdict.cause_kind == "kernels"


def test_further_rows_of_a_batch_are_red_by_their_name(files, reference, monkeypatch):
    """Rows but the first get their neighbours' logits, as by a kernel that steps wrongly from row to row."""
    plain = OpenVino.padded_logits

    def wrong(self, ids, mask):
        logits = plain(self, ids, mask)
        logits[1:] = logits[1:].roll(1, -1)
        return logits

    monkeypatch.setattr(OpenVino, "padded_logits", wrong)
    with pytest.raises(
        RobustnessError, match=r"the kernels of this candidate depend on the shape: \d+ tokens in a batch of 3 x"
    ):
        assert_perplexity_within(load(files / "int8.xml"), reference)


def test_of_two_super_weights_one_is_lost(tmp_path):
    """tiny-pair passes; with one of its two weights zeroed it is red, and that one is named."""
    loaded = swcheck.load("tiny-pair", device="cpu")
    pair = as_subject(loaded, token_ids=token_windows(loaded.tokenizer, loaded.text, count=4, length=96))
    assert not [str(one) for one in all_verdicts(load("int8", "tiny-pair"), pair).values() if one.red]
    with swcheck.zeroed(loaded.model, [SuperWeight(1, 41, 173)]):
        for part in (loaded.model, loaded.tokenizer):
            part.save_pretrained(tmp_path)
    verdict = all_verdicts(load("int8", str(tmp_path)), pair)["super weights"]
    assert verdict.cause.startswith("super weight at layer 1 [41, 173] rounded away")
    assert verdict.cause_kind == "super_weight"


def test_skip_keeps_a_matrix(graph):
    """The one named holds the reference's scalar to the bit, the same of the other layers is compressed."""
    places = Places(compressed(graph.clone(), "int4-asym", 64, (DOWN,)))
    plain = Places(graph)
    assert (places.matrix(1) == plain.matrix(1)).all()
    assert (places.matrix(2) != plain.matrix(2)).any()


def test_a_graph_whose_down_projections_are_spared_is_quantized_all_the_same(graph):
    """Its scheme is that of most linear maps."""
    downs = [f"model.layers.{layer}.mlp.down_proj" for layer in range(5)]
    assert scheme_of(compressed(graph.clone(), "int4", 64, downs)).weight_bits == 4
    assert scheme_of(graph).weight_bits == 32


def test_groups_that_do_not_divide_a_row_are_refused_in_words(graph):
    """The rows are named, and a size that divides them."""
    with pytest.raises(EngineError, match="groups of 192 do not divide rows of 256, 512") as caught:
        compressed(graph.clone(), "int4", 192, ())
    assert "group=64" in str(caught.value)


def replaced(constant, change):
    """Put a changed copy of a constant in its place; its own data cannot be written."""
    data = constant.data.copy()
    change(data)
    new = ops.constant(data)
    new.set_friendly_name(constant.get_friendly_name())
    for reader in list(constant.output(0).get_target_inputs()):
        reader.replace_source_output(new.output(0))


def lose_block(graph):
    (constant,) = [one for one in graph.get_ops() if one.get_friendly_name().endswith(f"{DOWN}.weight")]

    def zero(data):
        data[97, 288:320] = 0

    replaced(constant, zero)


def scale_norm(graph):
    """The norm's factor is a constant that its own multiplication reads."""
    name = "layers.2.post_attention_layernorm/aten::mul/Multiply_1"
    (node,) = [one for one in graph.get_ops() if one.get_friendly_name().endswith(name)]
    (constant,) = [one.get_node() for one in node.input_values() if one.get_node().get_type_name() == "Constant"]

    def triple(data):
        data *= 3

    replaced(constant, triple)


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lose_block, "super_weight", "what the super weights write is lost"),
        (scale_norm, "conversion", "not quantization"),
    ],
    ids=["block", "norm"],
)
def test_a_damaged_ir_is_red_with_its_cause(graph, reference, tmp_path, damage, kind, words):
    """A lost block is restored in the graph; of floats the first layer that departs is named."""
    broken = graph.clone()
    damage(broken)
    openvino.save_model(broken, tmp_path / "damaged.xml", compress_to_fp16=False)
    with pytest.raises(RobustnessError, match=words) as caught:
        assert_perplexity_within(load(tmp_path / "damaged.xml"), reference)
    assert caught.value.verdict.cause_kind == kind
    if kind == "conversion":
        assert "departs first in layer 2" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no .xml file in it"),
        (lambda folder: (folder / "model.xml").write_text("<net/>"), "no model.bin beside it"),
        (lambda folder: [(folder / f"model.{end}").write_bytes(b"<net") for end in ("xml", "bin")], "a whole IR"),
        (lambda folder: [(folder / f"{n}.xml").touch() for n in "ab"], "a.xml, b.xml"),
    ],
    ids=["empty", "no weights", "broken", "two"],
)
def test_bad_directories_are_refused_in_words(tmp_path, make, words):
    """Nothing to load, or nothing that is a language model."""
    make(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("int3", EngineError, "known: DIRECTORY, f32, int8, int4"),
        ("./nowhere", CheckpointError, "no such file"),
        ("int4,threads=0", OptionError, "no positive number"),
        ("int4,precision=f8", OptionError, "known: f32, bf16"),
        ("int4,cache=q8_0", OptionError, "known: f32, bf16, f16, u8, u4"),
        ("int4,colour=red", OptionError, "options here: cache"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"pip install 'openvino>="):
        ENGINE.check("int8")
