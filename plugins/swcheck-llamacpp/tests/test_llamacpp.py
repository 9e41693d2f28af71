"""llama.cpp for real: its numbers are torch's, and each way to destroy a file is red with its own cause."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import sys
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
import torch
from swcheck_llamacpp import ENGINE, library
from swcheck_llamacpp.passes import Passes
from swcheck_llamacpp.writing import write
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

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
from swcheck.gate.checks.serving.eviction import band, masked_nats
from swcheck.lens.likelihood import nats_of
from swcheck.superweights.subject.as_subject import as_subject

WEIGHT = SuperWeight(1, 97, 301)


def load(spec, reference="tiny"):
    return ENGINE.load(str(spec), reference=reference, device="cpu", dtype=None)


@pytest.fixture(scope="module")
def base():
    return swcheck.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def reference(base):
    """tiny, measured on eight windows of its own text."""
    return as_subject(base, token_ids=token_windows(base.tokenizer, base.text, count=8, length=96))


@pytest.fixture(scope="module")
def files(base, tmp_path_factory):
    """tiny as files: float, 8 and 4 bits."""
    folder = tmp_path_factory.mktemp("files")
    for scheme in ("f32", "q8_0", "q4_0"):
        write(base.model, base.tokenizer, folder / f"{scheme}.gguf", scheme)
    return folder


# --- what llama.cpp computes -------------------------------------------------------------------------------------------


def test_conformance():
    """Ids, values and overrides are what they say; a matrix can be spared; nothing heavy is imported early."""
    for reading in check_engine("llamacpp", ["f32", "q8_0", "q4_0"]):
        assert reading.contribution == pytest.approx(2.625, rel=3e-3)
        assert reading.skip == "kept"


@pytest.mark.parametrize("text", ["def spam(eggs=1):\n    return [eggs] * 2  # é, 你好\n", "", "  x\t\n\n y", "<s>a"])
def test_the_same_ids(base, files, text):
    """Its own tokenizer gives the ids of transformers', with BOS; special tokens in a text are text."""
    runtime = load(files / "f32.gguf").model
    plain = base.tokenizer(text.replace("<s>", "< s>"))["input_ids"]
    assert list(runtime.token_ids(text.replace("<s>", "< s>"))) == plain


@pytest.fixture(scope="module")
def with_marks(base):
    """A tokenizer as Llama 2 has it, of tiny's size: words begin with a mark, and bytes stand for what it does not know."""
    bytes_known = [f"<0x{number:02X}>" for number in range(256)]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=["<unk>", "<s>", *bytes_known], show_progress=False)
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    made.train_from_iterator([base.text], trainer)
    made.pre_tokenizer = None
    said = json.loads(made.to_str())
    said["added_tokens"] = [one for one in said["added_tokens"] if one["content"] not in bytes_known]
    made = Tokenizer.from_str(json.dumps(said))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>")


@pytest.mark.parametrize("text", ["def spam(eggs=1):\n    return [eggs] * 2  # é, 你好\n", "", "  x\t\n\n y", "self.x"])
def test_the_same_ids_of_a_tokenizer_with_marks(base, with_marks, tmp_path, text):
    """It is written as the scores that its merges come from."""
    assert len(with_marks) == 1024
    write(base.model, with_marks, tmp_path / "marks.gguf", "f32")
    assert list(load(tmp_path / "marks.gguf").model.token_ids(text)) == with_marks(text)["input_ids"]


def test_parity_of_the_float_file(reference, files):
    """Unquantized, llama.cpp computes what torch does: perplexity, predictions, activation within their noise."""
    found = all_verdicts(load(files / "f32.gguf"), reference)
    assert {verdict.outcome for verdict in found.values()} == {Outcome.PASSED}
    assert found["perplexity"].measured == pytest.approx(1, abs=1e-4)
    assert found["predictions"].measured < 1e-5
    assert found["super activations"].measured == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("scheme", ["q8_0", "q4_0", "q6_k", "q5_k", "q4_k", "q3_k", "mxfp4", "nvfp4"])
def test_healthy_quantizations_pass(reference, scheme):
    """K-quants and the two of 4-bit floats too, which ggml's own functions encode here."""
    assert not [str(one) for one in all_verdicts(load(scheme), reference).values() if one.red]


def test_mxfp4_moves_the_super_weight(base):
    """The nearest of its codes is 3.0 for 2.625: x1.143."""
    assert load("mxfp4").model.weight_value(WEIGHT) == 3.0


@pytest.mark.parametrize("options", ["cache=q8_0", "flash=on", "flash=off", "batch=32", "threads=2", "cache=f32"])
def test_settings_change_the_kernels_and_hardly_the_numbers(base, files, options):
    """Cache, flash attention, the tokens of a pass, threads: each runs, and says so in its title."""
    ids = token_windows(base.tokenizer, base.text, count=1, length=96)[0]
    plain, other = load(files / "f32.gguf").model, load(f"{files / 'f32.gguf'},{options}").model
    assert options in other.title
    difference = (plain.log_probabilities(ids) - other.log_probabilities(ids)).abs()
    assert float(difference.median()) < 0.02
    in_parts = other.values(ids, residual=[4], inputs=[4])
    assert in_parts[0][4].shape == (96, 256)
    assert in_parts[1][4].shape == (96, 512)


@pytest.mark.parametrize(("scheme", "noise"), [("f32", 2e-3), ("q8_0", 0.05)])
def test_no_length_departs(base, files, scheme, noise):
    """Windows around 32, 64 and 128 tokens: under causality a shorter one gives the beginning of a longer one."""
    runtime = load(files / f"{scheme}.gguf").model
    ids = token_windows(base.tokenizer, base.text, count=1, length=160)[0]
    whole = runtime.log_probabilities(ids)
    for length in (31, 32, 33, 63, 64, 65, 127, 128, 129):
        part = runtime.log_probabilities(ids[:length])
        assert float((part - whole[: length - 1]).abs().mean()) < noise, length


@pytest.mark.parametrize("scheme", ["f32", "q8_0", "q4_0", "q4_k"])
def test_no_shape_departs(reference, scheme):
    """Lengths, four sequences in one batch, chunks, single tokens, the types of cache and settings that llama.cpp has."""
    scored = assert_perplexity_within(load(scheme), reference).facts["shapes"]
    assert not scored["faults"]
    assert not scored["lacking"]
    wanted = {"single tokens", "33 tokens in a batch of 3", "chunks, q8_0 KV cache", "chunks, q4_0 KV cache"}
    settings = {"in physical batches of 32", "with flash attention", "without flash attention"}
    assert {*wanted, *(f"65 tokens {setting}" for setting in settings)} <= set(scored["scored"])


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("batch=16,flash=on", {"without flash attention"}),
        ("batch=64,flash=off", {"in physical batches of 32", "with flash attention"}),
    ],
)
def test_settings_that_are_its_own_are_not_swept(files, options, settings):
    """Neither the kind of attention, nor a physical batch that is as small."""
    assert set(load(f"{files / 'q8_0.gguf'},{options}").model.settings) == settings


@pytest.mark.parametrize(("cache", "coarse"), [("f16", False), ("q8_0", False), ("q5_1", True), ("q4_0", True)])
def test_a_cache_of_few_bits_is_stated(files, cache, coarse):
    """Of 5 and 4 bits, behind which chunks may differ by more."""
    assert load(f"{files / 'q8_0.gguf'},cache={cache}").model.coarse_cache is coarse


def test_a_setting_that_a_file_cannot_have_is_said(reference, files):
    """A cache of 8 bits needs flash attention: llama.cpp's own words stand in the summary, and nothing is red."""
    verdict = assert_perplexity_within(load(f"{files / 'q8_0.gguf'},cache=q8_0"), reference)
    (lacking,) = verdict.facts["shapes"]["lacking"]
    assert lacking.startswith("65 tokens without flash attention (no context: ")
    assert lacking in verdict.summary


def test_physical_batches_that_depart_are_red_by_their_name(reference, files, monkeypatch):
    """Behind the first physical batch each token gets its neighbour's logits."""
    plain = Passes.run

    def wrong(self, ids, watch, settings=None):
        logits = plain(self, ids, watch, settings)
        if settings is not None and settings.batch == 32:
            logits[32:] = logits[32:].roll(1, -1)
        return logits

    monkeypatch.setattr(Passes, "run", wrong)
    words = r"the kernels of this candidate depend on the shape: 65 tokens in physical batches of 32 x"
    with pytest.raises(RobustnessError, match=words):
        assert_perplexity_within(load(files / "q8_0.gguf"), reference)


def test_a_shape_that_departs_is_red_by_its_name(reference, files, monkeypatch):
    """Tokens that are computed alone behind the cache get their neighbour's logits."""
    plain = Passes.run_chunks

    def wrong(self, ids, cuts, cache, watch):
        logits = plain(self, ids, cuts, cache, watch)
        alone = [one for one, following in pairwise((*cuts, len(ids))) if following == one + 1]
        logits[alone] = logits[alone].roll(1, -1)
        return logits

    monkeypatch.setattr(Passes, "run_chunks", wrong)
    with pytest.raises(
        RobustnessError, match=r"the kernels of this candidate depend on the shape: single tokens x"
    ) as caught:
        assert_perplexity_within(load(files / "q8_0.gguf"), reference)
    assert caught.value.verdict.cause_kind == "kernels"


def test_an_override_leaves_nothing_behind(base, files):
    """Zeroed in the callback the loss explodes; afterwards every bit is as before."""
    runtime = load(files / "q8_0.gguf").model
    ids = token_windows(base.tokenizer, base.text, count=1, length=96)[0]
    before = runtime.log_probabilities(ids)
    with swcheck.zeroed(runtime, [WEIGHT]):
        zeroed = runtime.log_probabilities(ids)
    assert torch.equal(runtime.log_probabilities(ids), before)
    loss, lost = (float(-logs.gather(1, ids[1:, None]).mean()) for logs in (before, zeroed))
    assert lost - loss > 5


@pytest.mark.parametrize("first", [0, 1])
def test_a_cache_that_rolls_over_costs_what_torch_says(base, files, first):
    """Tokens leave llama.cpp's own memory; a mask of a band does the same in torch."""
    ids = token_windows(base.tokenizer, base.text, count=1, length=96)[0]
    logs = load(files / "f32.gguf").model.rolled_log_probabilities(ids, window=32, first=first)
    expected = masked_nats(base.model, ids[None], band(96, 32 - first, first))[0]
    assert nats_of(logs, ids).sub(expected).abs().max() < 0.05


def test_it_opens_again_after_closing(base, files):
    """A closed runtime has freed its model, and gives the same numbers when it is asked again."""
    runtime, ids = load(files / "q8_0.gguf").model, torch.tensor([0, 5, 9, 33])
    before = runtime.log_probabilities(ids)
    runtime.close()
    assert torch.equal(runtime.log_probabilities(ids), before)


def test_a_made_file_outlives_a_candidate_that_is_freed_to_read_it_in_torch(reference):
    """A run frees the candidate before its twin is loaded; the same weights in torch stand beside it."""
    candidate = as_subject(load("q8_0"))
    candidate.score_in_torch = True
    file = Path(candidate.runtime.twin.partition(":")[2])
    assert "the same weights in torch x1.00" in assert_perplexity_within(candidate, reference).summary
    candidate.discard()
    del candidate
    gc.collect()
    assert file.is_file()


# --- destroyed files ---------------------------------------------------------------------------------------------------


def edited(source, target, edit):
    """A copy of a file with ``edit`` applied to its reader, in place."""
    shutil.copy(source, target)
    reader = gguf.GGUFReader(target, "r+")
    edit({tensor.name: tensor for tensor in reader.tensors}, reader)
    reader.data.flush()
    return target


def lose_block(tensors, _reader):
    row = tensors["blk.1.ffn_down.weight"].data[97]
    size = len(row) // 16
    row[301 // 32 * size : (301 // 32 + 1) * size] = 0


def no_bos(_tensors, reader):
    flag = reader.get_field("tokenizer.ggml.add_bos_token")
    flag.parts[flag.data[0]][0] = 0


def scale_norm(tensors, _reader):
    tensors["blk.2.ffn_norm.weight"].data[:] *= 3


def other_rope(_tensors, reader):
    base = reader.get_field("llama.rope.freq_base")
    base.parts[base.data[0]][0] = 500.0


@pytest.mark.parametrize(
    ("source", "edit", "kind", "words"),
    [
        ("q4_0", lose_block, "super_weight", "what the super weights write is lost"),
        ("q8_0", no_bos, "tokenizer", "tokenizer or BOS policy differs"),
        ("q8_0", scale_norm, "tensor", "norm model.layers.2.post_attention_layernorm is scaled x3"),
        ("f32", scale_norm, "conversion", "conversion, not quantization: norm"),
        ("f32", other_rope, "conversion", "rope.freq_base = 500"),
    ],
    ids=["block", "bos", "norm of 8 bits", "norm of floats", "rope"],
)
def test_a_destroyed_file_is_red_with_its_cause(reference, files, tmp_path, source, edit, kind, words):
    """By what llama.cpp computes with it; the first word of the cause is the right one."""
    file = edited(files / f"{source}.gguf", tmp_path / "damaged.gguf", edit)
    with pytest.raises(RobustnessError, match=words) as caught:
        assert_perplexity_within(load(file), reference)
    assert caught.value.verdict.cause_kind == kind


def test_a_lost_block_is_red_in_every_check(reference, files, tmp_path):
    """Super weight, activation, perplexity, predictions and dependence; the tool's own option is the advice."""
    found = all_verdicts(load(edited(files / "q4_0.gguf", tmp_path / "block.gguf", lose_block)), reference)
    assert all(verdict.outcome is Outcome.FAILED for verdict in found.values())
    assert {verdict.cause_kind for verdict in found.values()} == {"super_weight"}
    assert "--tensor-type blk.1.ffn_down=f16" in found["perplexity"].attempt


@pytest.fixture(scope="module")
def pair():
    """tiny-pair, measured on a few windows of its own text."""
    loaded = swcheck.load("tiny-pair", device="cpu")
    return as_subject(loaded, token_ids=token_windows(loaded.tokenizer, loaded.text, count=4, length=96))


def test_of_two_super_weights_one_is_lost(pair, tmp_path):
    """tiny-pair passes in 8 bits; with one of its two weights zeroed it is red, and that one is named."""
    loaded = swcheck.load("tiny-pair", device="cpu")
    sound = load("q8_0", "tiny-pair")
    assert not [str(one) for one in all_verdicts(sound, pair).values() if one.red]
    with swcheck.zeroed(loaded.model, [SuperWeight(1, 41, 173)]):
        for part in (loaded.model, loaded.tokenizer):
            part.save_pretrained(tmp_path)
    with pytest.raises(RobustnessError, match=r"layer 1 \[41, 173\]") as caught:
        assert_perplexity_within(load("q8_0", str(tmp_path)), pair)
    assert caught.value.verdict.cause_kind == "super_weight"


class WithoutMerge:
    """A tokenizer that has lost one merge, as a converter sees it."""

    def __init__(self, tokenizer, merge):
        self._tokenizer, self._merge = tokenizer, merge

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, *args, **options):
        return self._tokenizer(*args, **options)

    @property
    def backend_tokenizer(self):
        return self

    def to_str(self):
        said = json.loads(self._tokenizer.backend_tokenizer.to_str())
        said["model"]["merges"].remove(self._merge)
        return json.dumps(said)


@pytest.mark.parametrize("merge", [["s", "e"], ["sel", "f"]])
def test_a_lost_merge_is_red(base, reference, tmp_path, merge):
    """Where the ids first differ is said; with the reference's ids nothing is lost."""
    write(base.model, WithoutMerge(base.tokenizer, merge), tmp_path / "merge.gguf", "q8_0")
    with pytest.raises(RobustnessError, match="tokenizer") as caught:
        assert_perplexity_within(load(tmp_path / "merge.gguf"), reference)
    assert caught.value.verdict.cause_kind == "tokenizer"
    assert "its perplexity is x1" in caught.value.verdict.summary


# --- bad input ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_cut_off(files, tmp_path):
    """It is refused in words, and llama.cpp is never asked."""
    short = tmp_path / "short.gguf"
    short.write_bytes((files / "q8_0.gguf").read_bytes()[:-5000])
    with pytest.raises(CheckpointError):
        load(short)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 100, b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60)])
def test_a_file_that_is_none(tmp_path, content):
    """Empty, foreign, or with impossible counts."""
    (tmp_path / "foreign.gguf").write_bytes(content)
    with pytest.raises(CheckpointError):
        load(tmp_path / "foreign.gguf")


def test_an_unknown_architecture(files, tmp_path):
    """llama.cpp's own words."""

    def rename(_tensors, reader):
        field = reader.get_field("general.architecture")
        field.parts[field.data[0]][:] = list(b"xlama")

    file = edited(files / "q8_0.gguf", tmp_path / "other.gguf", rename)
    with pytest.raises(CheckpointError, match="unknown model architecture: 'xlama'"):
        load(file)


def test_more_layers_than_tensors(files, tmp_path):
    """The two numbers are named."""

    def deepen(_tensors, reader):
        field = reader.get_field("llama.block_count")
        field.parts[field.data[0]][0] = 9

    file = edited(files / "q8_0.gguf", tmp_path / "deep.gguf", deepen)
    with pytest.raises(CheckpointError, match="it says 9 layers and has tensors of 5"):
        load(file)


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("q4_k_m", EngineError, r"known: FILE\.gguf, f32"),
        ("nowhere.gguf", CheckpointError, "no such file"),
        ("q8_0,skip=", OptionError, "skip= without a module"),
        ("q8_0,cache=q9", OptionError, "known: f32, f16"),
        ("q8_0,threads=many", OptionError, "no positive number"),
        ("q8_0,colour=red", OptionError, "options here: batch"),
    ],
)
def test_what_makes_no_sense_is_said_at_once(spec, kind, words):
    """Before anything is loaded, and in the words of a load."""
    for refuse in (ENGINE.check, load):
        with pytest.raises(kind, match=words):
            refuse(spec)


def test_a_file_takes_no_skip(files):
    """It is as it is."""
    with pytest.raises(OptionError, match="a file is as it is"):
        ENGINE.check(f"{files / 'q8_0.gguf'},skip=model.layers.1.mlp.down_proj")


@pytest.fixture
def forgotten_library():
    """The library is loaded anew in the test, and again behind it."""
    library.library.cache_clear()
    yield
    library.library.cache_clear()


@pytest.mark.usefixtures("forgotten_library")
@pytest.mark.parametrize("name", ["DEFAULT_SIZES", "NO_EVALUATION_F16_CACHE", "FOUR_AUTOMATIC"])
def test_another_layout_of_parameters_is_an_error_in_words(monkeypatch, name):
    """Where the defaults are not found, nothing is run."""
    monkeypatch.setattr(library, name, b"\x07" * 16)
    with pytest.raises(EngineError, match="another layout"):
        library.library()


@pytest.mark.usefixtures("forgotten_library")
@pytest.mark.parametrize("name", ["DATA_NAME", "SOURCES", "SHAPE", "STRIDES"])
def test_another_layout_of_tensors_is_an_error_in_words(monkeypatch, name):
    """Where a product of two tensors does not look as expected, nothing is run."""
    monkeypatch.setattr(library, name, getattr(library, name) + 8)
    with pytest.raises(EngineError, match="a tensor has another layout"):
        library.library()


@pytest.mark.usefixtures("forgotten_library")
def test_llama_cpp_can_speak_after_a_layout_was_refused(monkeypatch):
    """It keeps one pointer to the log callback for the whole process, so that of a refused load has to stay alive."""
    before = library.library()
    monkeypatch.setattr(library, "DEFAULT_SIZES", b"\x07" * 16)
    library.library.cache_clear()
    with pytest.raises(EngineError, match="another layout"):
        library.library()
    gc.collect()
    before.said.clear()
    assert not before.c.llama_model_load_from_file(b"/no/such/file", before.c.llama_model_default_params())
    assert "no/such/file" in " ".join(before.said)


def test_without_the_package(monkeypatch):
    """The install line is given."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    for refuse in (ENGINE.check, load):
        with pytest.raises(EngineError, match=r"pip install 'xllamacpp>="):
            refuse("q8_0")
