"""ONNX Runtime for real: its numbers are torch's, and a damaged graph is red with its cause."""

from __future__ import annotations

import re
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from swcheck_onnx import ENGINE
from swcheck_onnx.graph import Places, exported, quantized, scheme_of
from swcheck_onnx.runtime import OnnxRuntime

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
    """tiny, exported."""
    return exported(swcheck.load("tiny", device="cpu").model)


@pytest.fixture(scope="module")
def graphs(graph, tmp_path_factory):
    """The same in files: float, 8 and 4 bits; the last with one matrix spared."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, scheme, kept in (
        ("f32", "f32", ()),
        ("int8", "int8", ()),
        ("int4", "int4", ()),
        ("kept", "int4", (DOWN,)),
    ):
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        onnx.save(quantized(copy, scheme, kept), folder / f"{name}.onnx")
    return folder


@pytest.mark.parametrize("name", ["f32", "int8", "int4"])
def test_conformance(graphs, name):
    """Values and overrides are what they say, however the weights are stored."""
    (reading,) = check_engine("onnx", [str(graphs / f"{name}.onnx")])
    assert reading.contribution == pytest.approx(2.625, rel=5e-3)


def test_parity_of_the_float_graph(graphs, reference):
    """Unquantized, ONNX Runtime computes what torch does."""
    found = all_verdicts(load(graphs / "f32.onnx"), reference)
    assert {verdict.outcome for verdict in found.values()} == {Outcome.PASSED}
    assert found["perplexity"].measured == pytest.approx(1, abs=1e-4)
    assert found["predictions"].measured < 1e-6
    assert found["super activations"].measured == pytest.approx(1, abs=1e-3)


def test_four_bits_pass(graphs, reference):
    """Blocks of 32 keep what matters."""
    assert not [str(one) for one in all_verdicts(load(graphs / "int4.onnx"), reference).values() if one.red]


def test_eight_bit_activations_are_all_verdicts(graphs, reference):
    """One grid for a whole activation, which its sink sets: the super weight is kept, and the rest is what it costs."""
    found = all_verdicts(load(graphs / "int8.onnx"), reference)
    assert found["super weights"].outcome is Outcome.PASSED
    assert found["perplexity"].facts["runtime"].startswith("ONNX Runtime")
    assert found["perplexity"].measured > 1.01
    assert not found["perplexity"].facts["shapes"]["faults"]


def test_no_shape_departs(graphs, reference):
    """Lengths, a padded batch, chunks behind the cache that the graph gives back."""
    verdict = assert_perplexity_within(load(graphs / "int4.onnx"), reference)
    shapes = verdict.facts["shapes"]
    assert {"33 tokens in a batch of 3", "chunks of 32", "uneven chunks", "single tokens"} <= set(shapes["scored"])
    assert not shapes["faults"]
    assert not shapes["lacking"]


def test_chunks_of_floats_are_the_whole_window(graphs, reference):
    """Behind a cache of floats nothing is lost, and nothing is left of it."""
    runtime, ids = load(graphs / "f32.onnx").model, reference.token_ids[0]
    whole = runtime.log_probabilities(ids)
    chunks = runtime.chunked_log_probabilities(ids, cuts=[32, 33, 70])
    assert torch.allclose(chunks, whole, atol=1e-3)
    assert (runtime.log_probabilities(ids) == whole).all()


def test_chunks_of_a_graph_without_a_cache_are_said_to_be_missing(graphs, reference, tmp_path):
    """Its outputs are the logits alone: the cache that it takes is empty."""
    alone = onnx.load(graphs / "f32.onnx")
    del alone.graph.output[1:]
    onnx.save(alone, tmp_path / "alone.onnx")
    verdict = assert_perplexity_within(load(tmp_path / "alone.onnx"), reference)
    assert "; not in other shapes: a window in chunks (not shown)" in verdict.summary


def put_behind(graph, name, *nodes):
    """What reads an input reads what the nodes make of it."""
    for node in graph.node:
        node.input[:] = ["damaged" + name if one == name else one for one in node.input]
    for place, (kind, read, write, *more) in enumerate(nodes):
        graph.node.insert(place, helper.make_node(kind, read, [write], **(more[0] if more else {})))


def constants(graph):
    """Add the numbers that the faults count with."""
    for name, value in (("zero", np.int64(0)), ("one", np.int64(1)), ("first axis", np.array([0]))):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def length_of(name):
    """The second size of an input, as a scalar that is called as it is."""
    return (
        ("Shape", [name], f"shape of {name}"),
        ("Gather", [f"shape of {name}", "one"], f"length of {name}"),
    )


def forget_positions(graph):
    """Each pass begins at the position 0."""
    put_behind(
        graph,
        "position_ids",
        *length_of("input_ids"),
        ("Range", ["zero", "length of input_ids", "one"], "counted"),
        ("Unsqueeze", ["counted", "first axis"], "damagedposition_ids"),
    )


def mask_off_by_one(graph):
    """The mask ends one place too early behind a cache: its last token is not seen."""
    put_behind(
        graph,
        "attention_mask",
        *length_of("input_ids"),
        *length_of("attention_mask"),
        ("Range", ["zero", "length of attention_mask", "one"], "places"),
        ("Sub", ["length of attention_mask", "length of input_ids"], "begin"),
        ("Sub", ["begin", "one"], "last"),
        ("Equal", ["places", "last"], "is last"),
        ("Not", ["is last"], "is kept"),
        ("Cast", ["is kept"], "kept", {"to": TensorProto.INT64}),
        ("Mul", ["attention_mask", "kept"], "damagedattention_mask"),
    )


def round_cache(graph):
    """What comes back from the cache is rounded to whole fours, as in 8 bits with a range that is too wide."""
    graph.initializer.append(numpy_helper.from_array(np.float32(4), "step"))
    for one in [one.name for one in graph.input if one.name.startswith("past")]:
        steps = (("Div", [one, "step"], f"steps of {one}"), ("Round", [f"steps of {one}"], f"rounded {one}"))
        put_behind(graph, one, *steps, ("Mul", [f"rounded {one}", "step"], f"damaged{one}"))


@pytest.mark.parametrize("fault", [forget_positions, mask_off_by_one, round_cache])
def test_a_fault_behind_the_cache_is_red_with_its_shape(graphs, reference, tmp_path, fault):
    """Whole windows are as before, and so are all lengths alone; chunks are named."""
    broken = onnx.load(graphs / "f32.onnx")
    constants(broken.graph)
    fault(broken.graph)
    onnx.save(broken, tmp_path / "broken.onnx")
    with pytest.raises(RobustnessError, match="the kernels of this candidate depend on the shape:") as caught:
        assert_perplexity_within(load(tmp_path / "broken.onnx"), reference)
    assert re.search(r"the shape: (chunks of 3\d|uneven chunks|single tokens) x", str(caught.value))
    assert caught.value.verdict.cause_kind == "kernels"


def test_further_rows_of_a_batch_are_red_by_their_name(graphs, reference, monkeypatch):
    """Rows but the first get their neighbours' logits, as by a kernel that steps wrongly from row to row."""
    plain = OnnxRuntime.padded_logits

    def wrong(self, ids, mask):
        logits = plain(self, ids, mask)
        logits[1:] = logits[1:].roll(1, -1)
        return logits

    monkeypatch.setattr(OnnxRuntime, "padded_logits", wrong)
    with pytest.raises(
        RobustnessError, match=r"the kernels of this candidate depend on the shape: \d+ tokens in a batch of 3 x"
    ):
        assert_perplexity_within(load(graphs / "int4.onnx"), reference)


def test_of_two_super_weights_one_is_lost(tmp_path):
    """tiny-pair passes; with one of its two weights zeroed it is red, and that one is named."""
    loaded = swcheck.load("tiny-pair", device="cpu")
    pair = as_subject(loaded, token_ids=token_windows(loaded.tokenizer, loaded.text, count=4, length=96))
    assert not [str(one) for one in all_verdicts(load("int4", "tiny-pair"), pair).values() if one.red]
    with swcheck.zeroed(loaded.model, [SuperWeight(1, 41, 173)]):
        for part in (loaded.model, loaded.tokenizer):
            part.save_pretrained(tmp_path)
    verdict = all_verdicts(load("int4", str(tmp_path)), pair)["super weights"]
    assert verdict.cause.startswith("super weight at layer 1 [41, 173] rounded away")
    assert verdict.cause_kind == "super_weight"


def test_skip_keeps_a_matrix(graphs):
    """The one named is a plain product of floats, all others are not."""
    nodes = {layer: down.node.op_type for layer, down in Places(onnx.load(graphs / "kept.onnx")).downs.items()}
    assert nodes == {0: "MatMulNBits", 1: "MatMul", 2: "MatMulNBits", 3: "MatMulNBits", 4: "MatMulNBits"}


def test_a_graph_whose_down_projections_are_spared_is_quantized_all_the_same(graph):
    """Its scheme is that of most linear maps."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    assert scheme_of(graph).weight_bits == 32
    downs = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in range(5))
    assert scheme_of(quantized(copy, "int4", downs)).weight_bits == 4


def damaged(source, target, name, change):
    graph = onnx.load(source)
    for one in graph.graph.initializer:
        if one.name == name:
            array = numpy_helper.to_array(one).copy()
            change(array)
            one.CopyFrom(numpy_helper.from_array(array, name))
            break
    else:
        raise AssertionError([one.name for one in graph.graph.initializer][:20])
    onnx.save(graph, target)
    return target


def lose_block(array):
    array[97, 301 // 32] = 0x88  # eight is the code of zero


def scale(array):
    array *= 3


@pytest.mark.parametrize(
    ("source", "name", "change", "kind", "words"),
    [
        ("int4", f"{DOWN}.weight.T_Q4", lose_block, "super_weight", "what the super weights write is lost"),
        ("f32", "model.model.layers.2.post_attention_layernorm.weight", scale, "conversion", "not quantization"),
    ],
    ids=["block", "norm"],
)
def test_a_damaged_graph_is_red_with_its_cause(graphs, reference, tmp_path, source, name, change, kind, words):
    """A lost block is restored in the graph; of floats the first layer that departs is named."""
    file = damaged(graphs / f"{source}.onnx", tmp_path / "damaged.onnx", name, change)
    with pytest.raises(RobustnessError, match=words) as caught:
        assert_perplexity_within(load(file), reference)
    assert caught.value.verdict.cause_kind == kind
    if kind == "conversion":
        assert "departs first in layer 2" in str(caught.value)


def foreign(file, *names):
    """A graph that asks for other inputs, whose logits are a constant."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [1, "T"]) for name in names]
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, 8])
    constant = numpy_helper.from_array(np.zeros((1, 2, 8), np.float32), "zeros")
    graph = helper.make_graph([helper.make_node("Identity", ["zeros"], ["logits"])], "g", inputs, [out], [constant])
    onnx.save(helper.make_model(graph), file)


def test_a_graph_without_known_places_shows_less(tmp_path):
    """Log-probabilities alone, where no down projection is found."""
    foreign(tmp_path / "model.onnx", "input_ids", "attention_mask")
    runtime = load(tmp_path).model
    assert (runtime.shows, runtime.vocabulary) == (frozenset(), 8)
    assert torch.allclose(runtime.log_probabilities(torch.tensor([0, 1])).exp(), torch.full((1, 8), 1 / 8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no .onnx file in it"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"\x08\x01broken"), "a whole ONNX file"),
        (lambda folder: foreign(folder / "model.onnx", "pixel_values"), "it asks for pixel_values"),
        (lambda folder: [(folder / f"{n}.onnx").touch() for n in "ab"], "a.onnx, b.onnx"),
    ],
    ids=["empty", "broken", "foreign", "two"],
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
        ("int4,colour=red", OptionError, "options here: threads"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"pip install 'onnxruntime>="):
        ENGINE.check("int8")
