"""GGUF for real: round trips and files pass the shared check, and what is wrong with a file is said."""

from __future__ import annotations

import shutil
import struct
import sys
from contextlib import suppress

import gguf
import numpy as np
import pytest
import swcheck_gguf
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from swcheck_gguf import ENGINE, permuted, scheme_of, write

import swcheck
from swcheck import (
    CheckpointError,
    EngineError,
    OptionError,
    Scheme,
    SuperWeight,
    assert_perplexity_within,
    assert_super_weights_preserved,
    check_engine,
    read_gguf_header,
)
from swcheck.loading import engines
from swcheck.loading.files import gguf_header
from swcheck.testing.conformance import save_narrowed_tiny

WEIGHT = SuperWeight(1, 97, 301)
IDS = torch.tensor([[0, 5, 9, 33, 2, 77, 130]])


def load(spec, reference="tiny"):
    return ENGINE.load(str(spec), reference=reference, device="cpu", dtype=None)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """tiny as a file of 8 bits."""
    path = tmp_path_factory.mktemp("gguf") / "tiny-q8.gguf"
    write(swcheck.load("tiny", device="cpu").model, path, "q8_0")
    return path


@pytest.mark.parametrize("scheme", swcheck_gguf.SCHEMES)
def test_conformance(scheme):
    """The largest of a block of 32 comes back to a thousandth, and every reading is of the plain weight."""
    (reading,) = check_engine("gguf", [scheme])
    assert reading.contribution == pytest.approx(2.625, rel=1e-3)
    assert reading.dequantized == pytest.approx(2.625, rel=1e-3)
    assert reading.skip == "kept"


def test_conformance_of_a_file(file):
    """A path is a scheme as well."""
    check_engine("gguf", [str(file)])
    check_engine("gguf", [str(file)], dtype="bfloat16")


def test_a_file_needs_no_prefix(file, tmp_path):
    """A path that ends in .gguf is this engine's, if it is a file."""
    assert engines.route(str(file)) == ("gguf", str(file))
    assert swcheck.load(str(file), reference="tiny", device="cpu").scheme == Scheme("absmax", 8)
    assert not ENGINE.claims(tmp_path)
    assert not ENGINE.claims(tmp_path / "nowhere.gguf")


def test_a_round_trip_in_halves_changes_nothing():
    """Sixteen bits hold tiny's weights exactly: every name and the permutation of q and k are right, to the bit."""
    ours, theirs = load("f16"), swcheck.load("tiny", device="cpu")
    assert ours.model.state_dict().keys() == theirs.model.state_dict().keys()
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], tensor.half().float()), name
    with torch.no_grad():
        assert (ours.model(IDS).logits - theirs.model(IDS).logits).abs().max() < 1e-3


def test_skip_writes_that_tensor_in_halves(tmp_path):
    """The file holds it as F16, as llama.cpp's --tensor-type would; every other matrix of the layers as asked."""
    path, base = tmp_path / "mixed.gguf", swcheck.load("tiny", device="cpu")
    write(base.model, path, "q4_0", ("model.layers.1.mlp.down_proj",))
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.")}
    assert [name for name, kind in kinds.items() if kind == "F16"] == ["blk.1.ffn_down.weight"]
    assert scheme_of(path) == Scheme("absmax", 4)
    ours = load("q4_0,skip=model.layers.1.mlp.down_proj").model.model.layers[1].mlp.down_proj.weight
    assert torch.equal(ours, base.model.model.layers[1].mlp.down_proj.weight.half().float())


def test_skip_is_for_round_trips(file):
    """A file is as it is: behind its path the option is part of a name that does not exist."""
    with pytest.raises(EngineError, match=r"known: FILE\.gguf"):
        load(f"{file},skip=model.layers.1.mlp.down_proj")


def test_the_permutation_interleaves_halves():
    """Rows 0 and 4 of a head of eight become its first two."""
    rows = torch.arange(16.0)[:, None]
    assert permuted(rows, 2).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


def test_one_row_without_a_model(file):
    """The super weight can be read from the file alone."""
    (tensor,) = [t for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_down.weight"]
    row = gguf.quants.dequantize(tensor.data[WEIGHT.row : WEIGHT.row + 1], tensor.tensor_type)
    assert float(row[0, WEIGHT.column]) == pytest.approx(2.625, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        ("F32", Scheme("float", 32)),
        ("BF16", Scheme("float", 16)),
        ("Q8_0", Scheme("absmax", 8)),
        ("Q4_1", Scheme("rtn", 4)),
        ("Q4_K", Scheme("k-quant", 4, calibrated=True)),
        ("Q2_K", Scheme("k-quant", 2, calibrated=True)),
        ("IQ3_XXS", Scheme("k-quant", 3, calibrated=True)),
        ("MXFP4", Scheme("mxfp4", 4)),
    ],
)
def test_what_a_file_says_of_itself(tmp_path, kind, scheme):
    """The type that most weights of the blocks have; the embedding and vectors do not count."""
    types = gguf.GGMLQuantizationType
    path = tmp_path / "some.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    shape = gguf.quants.quant_shape_to_byte_shape((4, 256), types[kind])
    writer.add_tensor("blk.0.ffn_down.weight", np.zeros(shape, np.uint8), raw_dtype=types[kind])
    writer.add_tensor("blk.0.attn_v.weight", np.zeros((1, 256), np.float16))
    writer.add_tensor("blk.0.attn_norm.weight", np.zeros(9000, np.float32))
    writer.add_tensor("token_embd.weight", np.zeros((64, 256), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert scheme_of(path) == scheme


# --- what it says ------------------------------------------------------------------------------------------------------


def test_a_file_that_is_cut_off(tmp_path, file):
    """What is missing is named, before anything is loaded."""
    short = tmp_path / "short.gguf"
    short.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="ends 5,000 bytes behind the file"):
        load(short)


def test_a_file_that_is_no_gguf(tmp_path):
    """A foreign file of this name is refused in words."""
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(CheckpointError, match=r"it does not begin with GGUF"):
        load(foreign)


def test_a_list_that_lies_about_its_length(file, tmp_path):
    """A count of 2**60 in a small file is refused at once; the gguf package would read on until memory ends."""
    key = b"tokenizer.ggml.scores"
    lie = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 6, 2**60)
    whole = file.read_bytes()
    facts = struct.unpack("<Q", whole[16:24])[0]
    (tmp_path / "lie.gguf").write_bytes(whole[:16] + struct.pack("<Q", facts + 1) + lie + whole[24:])
    for refuse in (ENGINE.check, load):
        with pytest.raises(CheckpointError, match=r"values of 'tokenizer\.ggml\.scores', at most"):
            refuse(str(tmp_path / "lie.gguf"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1500), other=st.binary(min_size=1, max_size=9))
def test_any_damage_is_read_or_refused(file, place, other):
    """Whatever our reader lets through, the gguf package reads in time; and what it refuses, it refuses in words."""
    whole = file.read_bytes()
    damaged = file.with_name("damaged.gguf")
    damaged.write_bytes(whole[:place] + other + whole[place + len(other) :])
    try:
        names = set(read_gguf_header(damaged).tensors)
    except CheckpointError:
        return
    with suppress(UnicodeDecodeError):
        assert {tensor.name for tensor in gguf.GGUFReader(damaged).tensors} == names


def test_what_lies_beside_a_file_is_not_read(file, tmp_path):
    """An adapter's config in the folder would send transformers to the model that it names."""
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nobody/nothing"}')
    shutil.copy(file, tmp_path / "other.gguf")
    assert load(tmp_path / "other.gguf").scheme == Scheme("absmax", 8)


def test_our_table_of_types_is_that_of_the_package():
    """Codes, names, blocks and bytes agree for every type that both know."""
    ours = {code: (name, block, size) for code, (name, block, size) in gguf_header.TYPES.items()}
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {code: ours.get(code) for code in theirs} == theirs


def test_a_file_of_another_model(tmp_path, file):
    """Widths that are not the reference's are an error of the file; transformers would load it."""
    with pytest.raises(
        CheckpointError, match=r"not the reference's: model\.layers\.0\.mlp\.gate_proj\.weight: \(512, 256\)"
    ):
        load(file, save_narrowed_tiny(tmp_path, 480))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config.rope_parameters.update(rope_theta=5e5), r"rope\.freq_base = 500000"),
        (lambda config: config.rope_parameters.update(rope_theta=float("nan")), r"rope\.freq_base = nan"),
        (lambda config: setattr(config, "rms_norm_eps", 1e-5), r"layer_norm_rms_epsilon = 1e-05"),
        (lambda config: setattr(config, "num_attention_heads", 8), r"attention\.head_count = 8"),
    ],
)
def test_a_file_that_says_something_else(tmp_path, change, words):
    """llama.cpp computes with what the file says beside its weights, so that has to be the reference's."""
    model = swcheck.load("tiny", device="cpu").model
    change(model.config)
    write(model, tmp_path / "other.gguf", "q8_0")
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / "other.gguf")


def test_a_file_without_a_tensor(tmp_path):
    """A tensor that is missing is named, and not made up."""
    model = swcheck.load("tiny", device="cpu").model
    whole = model.state_dict()
    model.state_dict = lambda: {name: t for name, t in whole.items() if name != "model.layers.2.mlp.down_proj.weight"}
    write(model, tmp_path / "lacking.gguf", "q8_0")
    with pytest.raises(CheckpointError, match=r"no model\.layers\.2\.mlp\.down_proj\.weight"):
        load(tmp_path / "lacking.gguf")


def test_no_such_file(tmp_path):
    """The path is repeated."""
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "nowhere.gguf")


def test_an_unknown_scheme():
    """The schemes are listed, and a file is one."""
    with pytest.raises(EngineError, match=r"known: FILE\.gguf, q8_0, q5_0"):
        load("q4_k_m")


def test_a_width_that_no_block_divides(tmp_path):
    """Blocks hold 32 weights of a row."""
    with pytest.raises(EngineError, match=r"shape \(256, 470\) to Q4_0"):
        load("q4_0", save_narrowed_tiny(tmp_path, 470))


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("q4_k_m", EngineError, r"known: FILE\.gguf, q8_0"),
        ("q8_0,skip=", OptionError, "skip= without a module"),
        ("nowhere.gguf", CheckpointError, "no such file"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (swcheck_gguf.ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_no_reference():
    """A file has no tokenizer that swcheck could use."""
    with pytest.raises(OptionError, match="no reference"):
        load("q8_0", None)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    for refuse in (swcheck_gguf.ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'gguf>="):
            refuse("q8_0")


def q4_k(weights: np.ndarray) -> np.ndarray:
    """``weights`` as Q4_K by ggml's layout, uint8: of 256 values d and dmin, eight 6-bit scales and minima, the codes.

    The gguf package reads this kind and does not write it. Scale and minimum here span each run of 32, unsearched.
    """
    runs = weights.reshape(-1, 8, 32).astype(np.float32)
    least = np.maximum(0, -runs.min(2))
    step = np.maximum(runs.max(2) + least, 1e-8) / 15
    d, dmin = (np.float16(part.max(1, keepdims=True) / 63) for part in (step, least))
    scales = np.ceil(step / np.maximum(d.astype(np.float32), 1e-12)).clip(0, 63).astype(np.uint8)
    minima = np.round(least / np.maximum(dmin.astype(np.float32), 1e-12)).clip(0, 63).astype(np.uint8)
    unit = (d.astype(np.float32) * scales)[..., None]
    codes = np.round((runs + (dmin.astype(np.float32) * minima)[..., None]) / np.maximum(unit, 1e-12)).clip(0, 15)
    pairs = codes.astype(np.uint8).reshape(-1, 4, 2, 32)
    low, high = scales[:, :4] | (scales[:, 4:] >> 4 << 6), minima[:, :4] | (minima[:, 4:] >> 4 << 6)
    mixed = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    quants = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(len(runs), 128)
    blocks = np.concatenate([d.view(np.uint8), dmin.view(np.uint8), low, high, mixed, quants], axis=1)
    return blocks.reshape(*weights.shape[:-1], -1)


@pytest.fixture(scope="module")
def k_quants(tmp_path_factory):
    """tiny as a file of Q4_K."""
    path, plain = tmp_path_factory.mktemp("gguf") / "tiny-q4_k.gguf", gguf.quants.quantize
    kind = gguf.GGMLQuantizationType.Q4_K

    def either(array, wanted):
        return q4_k(array) if wanted == kind else plain(array, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.quants, "quantize", either)
        write(swcheck.load("tiny", device="cpu").model, path, "q4_k")
    return path


def test_k_quants_are_read_as_they_are_stored(k_quants):
    """A file of Q4_K is a calibrated four-bit candidate, near its reference everywhere, and passes the shared check."""
    assert scheme_of(k_quants) == Scheme("k-quant", 4, calibrated=True)
    check_engine("gguf", [str(k_quants)])
    ours, theirs = (loaded.model.state_dict() for loaded in (load(k_quants), swcheck.load("tiny", device="cpu")))
    errors = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs}
    assert 0.01 < max(errors.values()) < 0.35
    assert errors["model.embed_tokens.weight"] < 1e-3


def test_a_file_of_k_quants_goes_through_the_gate(k_quants):
    """Its super weight is kept, and its perplexity is what four bits cost."""
    reference, candidate = swcheck.load("tiny", device="cpu"), load(k_quants)
    kept = assert_super_weights_preserved(candidate, reference)
    assert kept.measured == pytest.approx(1.0, abs=0.05)
    assert assert_perplexity_within(candidate, reference, ratio=1.10).measured < 1.10
