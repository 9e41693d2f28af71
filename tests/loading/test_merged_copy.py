"""A mixture that is stored expert by expert is copied so that it can be streamed, with the same numbers."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

import swcheck
from swcheck.base.errors import CheckpointError, OptionError
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.likelihood import token_nats
from swcheck.loading import engines, merged_copy, tiny
from swcheck.loading.merged_copy import write_merged
from swcheck.loading.streaming import pager
from swcheck.loading.streaming.mapped_pages import MappedPages, can_give_back
from swcheck.loading.streaming.pager import pager_of
from swcheck.run.command_line.main import main
from swcheck.superweights.locating.locate import locate
from tests.versions import RECENT
from tools.families_table import GEOMETRIES, IDS
from tools.small_models import small_model

WINDOWS = torch.randint(5, 60, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mixture(tmp_path):
    """Writes a small mixture of a type as it is published, with a planted super weight in an expert; returns its folder."""

    def write(kind, geometry=None):
        model = small_model(kind, vocabulary=1024) if geometry is None else small_model(kind)
        if geometry is not None:
            GEOMETRIES[geometry](model, 1, 0)
        folder = tmp_path / kind
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny.CHECKPOINT).save_pretrained(folder)
        return folder

    return write


@pytest.mark.skipif(not can_give_back(), reason="only Linux shows which pages were written to")
@pytest.mark.parametrize(
    "kind",
    [
        *("mixtral", "qwen3_moe", "olmoe"),
        *(pytest.param(name, marks=RECENT) for name in ("deepseek_v3", "jamba")),
    ],
)
def test_the_copy_is_streamed_and_has_the_numbers_of_the_original(mixture, tmp_path, kind):
    """The original cannot be streamed, and says what to do."""
    source = mixture(kind)
    with pytest.raises(OptionError, match="makes other tensors of its own") as caught:
        swcheck.load(source, stream=True)
    assert f"swcheck merge-experts {source} OUT" in str(caught.value)
    written = write_merged(source, tmp_path / "merged")
    assert written.parts > written.merged > 0
    streamed, whole = swcheck.load(tmp_path / "merged", stream=True), swcheck.load(source, device="cpu")
    assert sum(span.size for span in pager_of(streamed.model).parameters) > 0.9 * written.size
    state = whole.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in streamed.model.state_dict().items())
    torch.testing.assert_close(
        token_nats(streamed.model, WINDOWS), token_nats(whole.model, WINDOWS), rtol=1e-4, atol=1e-4
    )


@pytest.mark.skipif(not can_give_back(), reason="only Linux shows which pages were written to")
def test_a_super_weight_in_an_expert_is_located_in_the_copy(mixture, tmp_path, monkeypatch):
    """As in the loaded original."""
    monkeypatch.setattr(pager, "LEAST", 0)
    source = mixture("mixtral", "one")
    write_merged(source, tmp_path / "merged")
    found = locate(swcheck.load(tmp_path / "merged", stream=True).model, token_ids=IDS)
    assert found == locate(swcheck.load(source, device="cpu").model, token_ids=IDS)
    assert [one.expert for one in found.super_weights] == [0]


@pytest.mark.skipif(not can_give_back(), reason="only Linux shows which pages were written to")
def test_experts_that_no_token_goes_to_are_not_read(tmp_path, monkeypatch):
    """A pass over one token of a mixture of 16 experts, 2 for each token; nothing of them is read ahead either."""
    monkeypatch.setattr(pager, "LEAST", 2**16)
    config = MixtralConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_local_experts=16
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(tiny.CHECKPOINT).save_pretrained(tmp_path / "large")
    write_merged(tmp_path / "large", tmp_path / "merged")
    model = swcheck.load(tmp_path / "merged", stream=True).model
    ahead, read_ahead = [], MappedPages.read_ahead
    monkeypatch.setattr(
        MappedPages, "read_ahead", lambda pages, span: ahead.append(span.size) or read_ahead(pages, span)
    )
    before, size = pager_of(model).bytes_read, sum(span.size for span in pager_of(model).parameters)
    with evaluating(model):
        model(WINDOWS[:1, :1], use_cache=False)
    assert 0 < pager_of(model).bytes_read - before < 0.4 * size
    assert sum(ahead) < 0.4 * size


def test_the_copy_is_cut_into_small_files(mixture, tmp_path, monkeypatch):
    """A tensor that is larger than a file may be has one of its own; the index names all, and other files come along."""
    monkeypatch.setattr(merged_copy, "SHARD", 2**17)
    source = mixture("mixtral")
    write_merged(source, tmp_path / "merged")
    files = sorted((tmp_path / "merged").glob("*.safetensors"))
    places = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(files) > 3
    assert {file.name: set(load_file(file)) for file in files} == {
        file.name: {name for name, place in places.items() if place == file.name} for file in files
    }
    assert {file.name for file in source.iterdir()} - {"model.safetensors"} < {
        file.name for file in (tmp_path / "merged").iterdir()
    }


def test_a_dense_model_is_copied_as_it_is(mixture, tmp_path):
    """Nothing of it is in parts."""
    assert write_merged(mixture("llama"), tmp_path / "copy").merged == 0


def test_what_is_there_is_not_written_over(mixture, tmp_path):
    """A folder, and that of another run that writes it."""
    source = mixture("mixtral")
    (tmp_path / "there").mkdir()
    with pytest.raises(OptionError, match="it is there"):
        write_merged(source, tmp_path / "there")
    (tmp_path / "new.part").mkdir()
    with pytest.raises(OptionError, match="another run writes it, or was ended"):
        write_merged(source, tmp_path / "new")
    assert (tmp_path / "new.part").is_dir()


def test_what_cannot_be_copied_leaves_nothing_behind(mixture, tmp_path, monkeypatch):
    """A tensor that the files lack, a packed checkpoint, a disk without room, and a write that fails."""
    source = mixture("mixtral")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(OptionError, match="packed checkpoint"):
        write_merged(source, tmp_path / "out")
    (source / "config.json").write_text(json.dumps(config))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=1000))
        with pytest.raises(OptionError, match="are needed, and .* are free"):
            write_merged(source, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(merged_copy, "_write_shards", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_merged(source, tmp_path / "out")
    tensors = load_file(source / "model.safetensors")
    save_file({name: one for name, one in tensors.items() if "norm" not in name}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no tensors of the files make model\.layers\.0"):
        write_merged(source, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["mixtral"]


def test_the_command_says_what_it_has_written(mixture, tmp_path, capsys, monkeypatch):
    """And the code is 2 for what it cannot write, or does not find."""
    source = mixture("mixtral")
    assert main(["merge-experts", str(source), str(tmp_path / "merged")]) == 0
    assert "tensors put together of" in capsys.readouterr().out
    assert main(["merge-experts", str(source), str(tmp_path / "merged")]) == 2
    monkeypatch.setattr(engines, "check", lambda _spec: None)  # there is a network
    assert main(["merge-experts", "mixtral-8x7b", str(tmp_path / "other")]) == 2
    assert "not on this machine" in capsys.readouterr().err
