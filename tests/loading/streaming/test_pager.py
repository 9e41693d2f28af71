"""A streamed model computes what the loaded one does, and keeps nothing in memory but what somebody wrote to."""

from __future__ import annotations

import mmap
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import swcheck
from swcheck.base.errors import CheckpointError, OptionError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import MapKey, checked_anatomy
from swcheck.lens.architecture.storage import evaluating, plain_weight
from swcheck.lens.intervene import maps_zeroed, scalars_zeroed, scaled
from swcheck.lens.likelihood import token_nats
from swcheck.lens.nulls import without_largest
from swcheck.loading import huggingface
from swcheck.loading.streaming import pager, streamable
from swcheck.loading.streaming.free_memory import FreeMemory
from swcheck.loading.streaming.mapped_pages import PAGE_FLAGS, MappedPages, Span, can_give_back, maps_of
from swcheck.loading.streaming.pager import pager_of
from swcheck.superweights.locating.locate import locate
from swcheck.superweights.measurements.weights import map_responses, non_finite_parameters
from swcheck.superweights.subject.as_subject import as_subject
from tests import checkpoints
from tools.small_models import small_model

pytestmark = pytest.mark.skipif(not can_give_back(), reason="only Linux shows which pages were written to")
IDS = torch.arange(0, 40).view(1, -1) % 1000


@pytest.fixture
def streamed(monkeypatch):
    """Tiny, streamed; of a model this small every tensor counts."""
    monkeypatch.setattr(pager, "LEAST", 0)
    return swcheck.load("tiny", stream=True, dtype="bfloat16")


@pytest.fixture(scope="module")
def loaded():
    """Tiny in the dtype of its file, loaded as usual."""
    return swcheck.load("tiny", device="cpu", dtype="bfloat16")


def in_memory(model, *, written=False):
    """How many pages of the model's mapped parameters are in memory, or only those that were written to."""
    with PAGE_FLAGS.open("rb", buffering=0) as stream:
        pages = {
            number
            for span in pager_of(model).parameters
            for number in range(span.begin // mmap.PAGESIZE, -(-span.end // mmap.PAGESIZE))
        }
        flags = [int.from_bytes(os.pread(stream.fileno(), 8, 8 * page), sys.byteorder) for page in sorted(pages)]
    return sum(flag >> 63 and not (written and flag >> 61 & 1) for flag in flags)


def test_the_numbers_are_those_of_the_loaded_model(streamed, loaded):
    """Bit by bit where the operations are the same; the super weights, and every other result of locating too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pager, "_is_slow_product", lambda *_: False)
        assert torch.equal(token_nats(streamed.model, IDS), token_nats(loaded.model, IDS))
        assert locate(streamed.model, token_ids=IDS) == locate(loaded.model, token_ids=IDS)


def test_a_pass_leaves_nothing_in_memory(streamed):
    """All parameters of tiny are in its file, and after a pass no page of them is in memory."""
    sizes = [one.numel() * one.element_size() for one in streamed.model.parameters()]
    assert sum(span.size for span in pager_of(streamed.model).parameters) == sum(sizes)
    token_nats(streamed.model, IDS)
    assert in_memory(streamed.model) == 0


def test_what_reads_every_matrix_leaves_nothing_in_memory(streamed):
    """The outputs of all linear maps for fixed inputs, and the search for NaN in every parameter."""
    subject = as_subject(streamed)
    assert len(map_responses(subject).names) == 5 * 7
    assert non_finite_parameters(subject) == {}
    assert in_memory(streamed.model) == 0


def test_in_a_pass_one_matrix_is_in_memory_at_a_time(monkeypatch, tmp_path):
    """When a layer is done, less than one sixth of the model is; files are read in units of 16 pages."""
    monkeypatch.setattr(pager, "LEAST", 0)
    streamed = swcheck.load(
        checkpoints.copy_of_tiny(tmp_path / "tiny", checkpoints.forgotten), stream=True, dtype="bfloat16"
    )
    seen, total = [], sum(span.size for span in pager_of(streamed.model).parameters) / mmap.PAGESIZE
    handles = [
        layer.register_forward_hook(lambda *_: seen.append(in_memory(streamed.model)))
        for layer in checked_anatomy(streamed.model).layers
    ]
    token_nats(streamed.model, IDS)
    for handle in handles:
        handle.remove()
    assert 0 < max(seen) < total / 6


def test_while_held_pages_stay(streamed):
    """Until the block ends: the next operation reads the same."""
    layer = checked_anatomy(streamed.model).layers[0]
    with evaluating(streamed.model), pager_of(streamed.model).holding():
        layer.mlp(torch.zeros(1, 3, 256, dtype=torch.bfloat16))
        held = in_memory(streamed.model)
    assert held >= 3 * 512 * 256 * 2 / mmap.PAGESIZE
    assert in_memory(streamed.model) == 0


def test_what_was_written_stays(streamed, loaded):
    """A scaled weight is scaled in every pass of the block, and its own again afterwards."""
    weights = locate(loaded.model, token_ids=IDS).super_weights
    with scaled(streamed.model, weights, 0.5), scaled(loaded.model, weights, 0.5):
        once, again = token_nats(streamed.model, IDS), token_nats(streamed.model, IDS)
        assert torch.equal(once, again)
        assert torch.allclose(once, token_nats(loaded.model, IDS), atol=0.2)
        assert in_memory(streamed.model) == in_memory(streamed.model, written=True) == len(weights)
    assert torch.allclose(token_nats(streamed.model, IDS), token_nats(loaded.model, IDS), atol=0.2)


def test_products_of_two_byte_floats_are_as_exact_as_they_can_be():
    """They are those of float32, rounded once, with a bias as well."""
    x, weight, bias = (torch.randn(shape).bfloat16() for shape in ((2, 5, 64), (300, 64), (300,)))
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    assert torch.allclose(pager._linear(x, weight, bias).double(), exact, rtol=2**-8, atol=1e-6)
    assert torch.equal(pager._linear(x, weight), pager._linear(x, weight, torch.zeros(300).bfloat16()))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "opt"])
def test_the_structure_is_found_in_one_layer_of_a_kind(tmp_path, model_type):
    """As it is found in all layers of the loaded model; the others are not run."""
    small_model(model_type).save_pretrained(tmp_path)
    model = type(small_model(model_type)).from_pretrained(tmp_path, dtype="auto").eval()
    whole = checked_anatomy(model).structure
    again = type(model).from_pretrained(tmp_path, dtype="auto").eval()
    pager.page_weights(again, [tmp_path / "model.safetensors"])
    run = []
    for name, module in again.named_modules():
        if not list(module.children()) and name.startswith(f"{whole.layers}."):
            module.register_forward_hook(lambda *_, name=name: run.append(name))
    assert checked_anatomy(again).structure == whole
    assert {name.removeprefix(f"{whole.layers}.").partition(".")[0] for name in run} == {"0"}


def test_pages_of_another_file_are_left_alone(tmp_path):
    """Only the files that were named are known; an address elsewhere is in none of them."""
    save_file({"a": torch.arange(4096.0)}, tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    pages = MappedPages(maps_of([tmp_path / "a.safetensors"]))
    assert pages.hold(tensors["a"].data_ptr())
    assert not pages.hold(torch.zeros(4096).data_ptr())
    assert maps_of([tmp_path / "b.safetensors"]) == []
    pages.give_back(Span(tensors["a"].data_ptr(), tensors["a"].data_ptr() + 4 * 4096))
    assert torch.equal(tensors["a"], torch.arange(4096.0))


def without_memory(monkeypatch):
    monkeypatch.setattr(streamable, "free_memory", lambda: FreeMemory(2**20, "this machine"))


def test_a_model_that_does_not_fit_is_streamed_by_itself(monkeypatch, capsys):
    """And that is told with the figures; not where streaming is switched off."""
    two_bytes = {"device": "cpu", "dtype": "bfloat16"}
    assert pager_of(swcheck.load("tiny", **two_bytes).model) is None
    without_memory(monkeypatch)
    assert pager_of(swcheck.load("tiny", **two_bytes).model) is not None
    assert (
        "does not fit into memory (7 MB, and 1 MB are free: this machine); its weights are" in capsys.readouterr().err
    )
    assert pager_of(swcheck.load("tiny", **two_bytes, stream=False).model) is None


def test_what_is_converted_or_packed_loads_whole(tmp_path, monkeypatch, capsys):
    """It is refused where streaming was asked for, with what to try; else it is told."""
    with pytest.raises(OptionError, match="stored as BF16 and loaded as float32.*\n.*--dtype=bfloat16"):
        swcheck.load("tiny", stream=True, dtype="float32")
    without_memory(monkeypatch)
    assert pager_of(swcheck.load("tiny", device="cpu", dtype="float32").model) is None
    assert "cannot be streamed: its tensors are stored as BF16" in capsys.readouterr().err
    fields = {"quantization_config": {"quant_method": "gptq"}}
    assert streamable.why_whole(tmp_path, fields, torch.nn.Linear(1, 1), "float32")[0].startswith(
        "its weights are packed by gptq"
    )


def test_experts_that_transformers_merges_load_whole(tmp_path):
    """A checkpoint with a matrix for each expert is another one in memory."""
    small_model("mixtral").save_pretrained(tmp_path)
    config = huggingface._load_config(tmp_path, False)
    model = huggingface.model_without_weights(config, trusted=False)
    found, _ = streamable.why_whole(tmp_path, config.to_dict(), model, "float32")
    assert "transformers makes other tensors of its own when it loads them whole, first model.layers.0" in found


@pytest.mark.slow
def test_streaming_is_of_the_cpu(tmp_path):
    """On another device, or with a device map, it is refused; so it is by an engine that makes its models in memory."""
    folder = checkpoints.micro(tmp_path / "micro")
    with pytest.raises(OptionError, match="two answers to where a model is"):
        swcheck.load(folder, stream=True, device_map="auto")
    with pytest.raises(OptionError, match="it runs on the CPU alone"):
        streamable.StreamRequest(folder, {}, torch.device("cuda"), None, True).is_granted(lambda: None)
    with pytest.raises(swcheck.SwcheckError, match="cannot stream a model from its files"):
        swcheck.load("rtn:bits=4", reference="tiny", stream=True)


@pytest.mark.parametrize("least", [0, pager.LEAST])
def test_a_file_that_is_cut_off_or_written_to_ends_the_pass_in_words(tmp_path, monkeypatch, least):
    """Between two layers of a streamed pass, however small their weights; one that is removed is read on, since it is mapped."""
    monkeypatch.setattr(pager, "LEAST", least)
    folder = checkpoints.copy_of_tiny(tmp_path / "copy")
    model, file = swcheck.load(folder, stream=True, dtype="bfloat16").model, folder / "model.safetensors"
    data = file.read_bytes()
    nats = token_nats(model, IDS)

    def cut(*_call):
        file.write_bytes(data[: len(data) // 2])

    handle = model.model.layers[2].register_forward_hook(cut)
    with pytest.raises(CheckpointError, match="it was changed: [0-9,]+ bytes, [0-9,]+ when it was opened"):
        token_nats(model, IDS)
    handle.remove()
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="it was changed: written to"):
        token_nats(model, IDS)
    again = swcheck.load(folder, stream=True, dtype="bfloat16").model
    file.unlink()
    assert torch.equal(token_nats(again, IDS), nats)


def test_a_file_of_a_model_that_is_loaded_whole_is_looked_at_before_a_pass(tmp_path):
    """In its own dtype its weights are maps of the file. Another file in its place, or a model that was converted, goes on."""
    folder = checkpoints.copy_of_tiny(tmp_path / "copy")
    file = folder / "model.safetensors"
    whole, converted = (swcheck.load(folder, device="cpu", dtype="bfloat16", stream=False).model for _ in range(2))
    converted.float()
    nats = token_nats(whole, IDS)
    shutil.copy(file, folder / "other")
    (folder / "other").replace(file)
    assert torch.equal(token_nats(whole, IDS), nats)
    spoilt = swcheck.load(folder, device="cpu", dtype="bfloat16", stream=False).model
    os.truncate(file, 4096)
    with pytest.raises(CheckpointError, match="it was changed: 4,096 bytes"):
        token_nats(spoilt, IDS)
    with pytest.raises(CheckpointError, match="it was changed: 4,096 bytes"):
        _ = as_subject(spoilt, token_ids=IDS).module
    assert token_nats(whole, IDS).shape == token_nats(converted, IDS).shape


SUPER_WEIGHT = SuperWeight(1, 97, 301)


@pytest.mark.parametrize(
    "block",
    [
        lambda model: swcheck.zeroed(model, [SUPER_WEIGHT]),
        lambda model: maps_zeroed(model, [MapKey(1)]),
        lambda model: scalars_zeroed(plain_weight(model.model.layers[1].mlp.down_proj), [(97, 301)]),
        lambda model: without_largest(model, [SUPER_WEIGHT]),
    ],
    ids=["scaled", "maps", "scalars", "largest"],
)
def test_weights_of_a_file_that_is_cut_off_are_touched_no_more(tmp_path, block):
    """Neither read outside of a pass nor given their values back: what was written into its map is gone as well."""
    folder = checkpoints.copy_of_tiny(tmp_path / "copy")
    model = swcheck.load(folder, stream=True, dtype="bfloat16").model
    with pytest.raises(CheckpointError, match="it was changed: 4,096 bytes"), block(model):
        os.truncate(folder / "model.safetensors", 4096)
    with pytest.raises(CheckpointError, match="it was changed: 4,096 bytes"):
        plain_weight(model.model.layers[0].mlp.up_proj)


def test_a_file_that_is_cut_off_is_no_matter_of_another_model(tmp_path):
    """While it is still in memory, the weights of every other model are read and changed as ever."""
    folder = checkpoints.copy_of_tiny(tmp_path / "copy")
    spoilt = swcheck.load(folder, stream=True, dtype="bfloat16").model
    os.truncate(folder / "model.safetensors", 4096)
    other = swcheck.load("tiny", device="cpu").model
    assert as_subject(other, token_ids=IDS).module is other
    with swcheck.zeroed(other, [SUPER_WEIGHT]):
        assert plain_weight(other.model.layers[1].mlp.down_proj)[97, 301] == 0
    with pytest.raises(CheckpointError):
        _ = as_subject(spoilt, token_ids=IDS).module


@pytest.mark.slow
def test_where_memory_runs_out_the_reason_is_told(tmp_path, monkeypatch):
    """Not that weights and config may not belong together, whatever torch says."""
    folder = checkpoints.micro(tmp_path / "micro")
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", unable_to_map)
    without_memory(monkeypatch)
    with pytest.raises(CheckpointError, match="memory ran out\n.*are left by this machine\n.*--swcheck-stream"):
        swcheck.load(folder, device="cpu", stream=False)
    monkeypatch.setattr(streamable, "free_addresses", lambda: FreeMemory(1, "the limit on address space (ulimit -v)"))
    with pytest.raises(CheckpointError, match="left by the limit on address space.*\n.*ulimit -v unlimited"):
        swcheck.load(folder, device="cpu", stream=False)
    monkeypatch.setattr(streamable, "free_addresses", lambda: None)
    monkeypatch.setattr(streamable, "free_memory", lambda: FreeMemory(2**50, "this machine"))
    with pytest.raises(CheckpointError, match="save it in smaller shards"):
        swcheck.load(folder, device="cpu", stream=False)


def unable_to_map(*_args, **_keywords):
    raise RuntimeError("unable to mmap 13476839424 bytes from file <model.safetensors>: Cannot allocate memory (12)")
