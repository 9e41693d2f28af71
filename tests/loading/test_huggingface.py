"""The built-in loader: what it loads, what it refuses, and that nothing of a checkpoint runs."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import swcheck
from swcheck.base.errors import CheckpointError, EngineError, SwcheckError, UnsafeCheckpointError
from swcheck.loading import hub, huggingface
from tests import checkpoints, damage
from tests.checkpoints import DOWN, config, copy_of_tiny, text
from tests.loading.test_engines import words_of
from tests.versions import RECENT


def test_tiny(tiny):
    """The embedded model comes with its tokenizer, its text and its directory, on the device that was asked for."""
    assert tiny.name == "tiny"
    assert tiny.model.device.type == "cpu"
    assert not tiny.model.training
    assert tiny.tokenizer("x")["input_ids"][0] == 0
    assert tiny.text == swcheck.loading.tiny.HELDOUT.read_text(encoding="utf-8")
    assert Path(tiny.source) == swcheck.loading.tiny.CHECKPOINT


def test_a_directory(tmp_path, tiny):
    """A copy of the files is the same model under the name of its directory, without a text of its own."""
    loaded = swcheck.load(str(copy_of_tiny(tmp_path / "copy")), device="cpu")
    assert (loaded.name, loaded.text, loaded.source) == ("copy", None, str(tmp_path / "copy"))
    ids = torch.tensor([[0, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tiny.model(ids).logits)


def test_a_fine_tuned_copy(tmp_path, tiny):
    """What ``save_pretrained`` writes after training is loaded with the new weights."""
    tuned = damage.damaged(tiny, damage.halve)
    tuned.model.save_pretrained(tmp_path / "tuned")
    tuned.tokenizer.save_pretrained(tmp_path / "tuned")
    loaded = swcheck.load(str(tmp_path / "tuned"))
    weight = loaded.model.model.layers[1].mlp.down_proj.weight
    before = tiny.model.model.layers[1].mlp.down_proj.weight
    assert weight[97, 301].item() == pytest.approx(before[97, 301].item() / 2)


def test_shards(tmp_path, tiny):
    """A checkpoint in shards with an index is the same model."""
    loaded = swcheck.load(str(copy_of_tiny(tmp_path / "sharded", checkpoints.sharded)))
    assert torch.equal(loaded.model.lm_head.weight, tiny.model.lm_head.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(dtype):
    """The weights have the dtype that was asked for."""
    assert swcheck.load("tiny", dtype=dtype).model.dtype == getattr(torch, dtype)


def test_the_checkpoints_own_dtype(tmp_path):
    """Without a dtype the config's own is kept."""
    assert swcheck.load(str(copy_of_tiny(tmp_path / "a", config(dtype="bfloat16")))).model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "changes", [{"vocab_size": 10**9}, {"intermediate_size": 10**8}, {"hidden_size": 2**20, "head_dim": 2**18}]
)
def test_more_parameters_than_the_files_have_bits_are_refused(tmp_path, changes):
    """A config of a model that the files cannot hold is refused before memory is taken for it."""
    folder = copy_of_tiny(tmp_path / "odd", config(**changes))
    with pytest.raises(CheckpointError) as caught:
        swcheck.load(str(folder), device="cpu")
    assert "parameters, and the files" in words_of(caught)[1]


def test_a_config_that_cannot_be_built_is_left_to_transformers(tmp_path):
    """Where counting the parameters fails, the error is that of loading, in words."""
    folder = copy_of_tiny(tmp_path / "odd", config(hidden_size=2**62))
    with pytest.raises(CheckpointError):
        swcheck.load(str(folder), device="cpu")


@pytest.mark.slow
def test_the_first_load_leaves_environment_and_random_numbers(tmp_path):
    """What packages set and draw when they are imported is undone: a process is after the first load as it was before."""
    code = """if True:
        import os, random
        before, state = dict(os.environ), random.getstate()
        import swcheck
        swcheck.load("tiny", device="cpu")
        print(dict(os.environ) == before, random.getstate() == state)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_a_home_directory(tmp_path, monkeypatch):
    """``~`` is the home directory, for the loader as for the check before it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    copy_of_tiny(tmp_path / "mine")
    hub.check("~/mine")
    assert swcheck.load("~/mine").name == "mine"


def test_a_path_object_is_a_directory(tmp_path):
    """A path loads as its text does; what is neither is refused in words, not in an AttributeError."""
    folder = copy_of_tiny(tmp_path / "a")
    assert swcheck.load(folder).name == swcheck.load(str(folder)).name
    with pytest.raises(SwcheckError, match="the name of a model"):
        swcheck.load(7)  # type: ignore[arg-type]


def test_a_directory_called_like_a_known_model_is_not_that_model(tmp_path, monkeypatch):
    """Nobody said that a folder ``llama-7b`` is LLaMA-7B: its name stays its path, which has no published coordinates."""
    copy_of_tiny(tmp_path / "llama-7b")
    monkeypatch.chdir(tmp_path)
    assert swcheck.load("./llama-7b").name == "./llama-7b"
    assert hub.name_of("llama-7b") == "llama-7b"


def test_tied_embeddings(tmp_path, tiny):
    """A model whose head is its embedding has no tensor for the head, and that is no error."""
    shape = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**shape, **heads)).save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = swcheck.load(str(tmp_path)).model
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_tensors_that_are_not_used_are_said(tmp_path, capsys):
    """A tensor that the model has no place for is no error, and one line on stderr."""
    folder = copy_of_tiny(tmp_path / "more", checkpoints.tensors(lambda whole: {**whole, "model.more": torch.zeros(3)}))
    swcheck.load(str(folder))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"swcheck: {folder} has 1 tensors that the model does not use, first model.more\n"


def test_loading_and_encoding_a_long_text_is_silent(capfd, tmp_path):
    """transformers shows no progress bar and no warning, neither on loading nor on a text longer than the model."""
    loaded = swcheck.load(str(copy_of_tiny(tmp_path / "copy")))
    assert len(loaded.tokenizer("word " * 2000)["input_ids"]) > 2000
    assert capfd.readouterr() == ("", "")


def test_transformers_is_as_loud_as_before(tmp_path):
    """The quiet of loading ends with it: verbosity and progress bars are as the caller had them."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_info()
    try:
        swcheck.load("tiny")
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, before[1])
    finally:
        logging.set_verbosity(before[0])


# What cannot be loaded. The plugin's tests walk the same folders as usage errors; here are those of the loader alone.


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (
            config(intermediate_size=500),
            "15 of another shape, first model.layers.0.mlp.down_proj.weight: 256 x 512 where",
        ),
        (config(num_hidden_layers=9), "36 of its tensors are missing, first model.layers.5."),
        (
            checkpoints.tensors(lambda whole: {**whole, DOWN: whole[DOWN][:, :9].clone()}),
            "1 of another shape, first " + DOWN,
        ),
        (text("tokenizer.json", "{"), "Expecting property name"),
        (text("tokenizer.json", "[1]"), ""),
        pytest.param(config(num_attention_heads=7), "not a multiple of the number of attention heads", marks=RECENT),
        pytest.param(config(hidden_size="big"), "hidden_size", marks=RECENT),
        (config(model_type="homemade"), "homemade"),
        (config(hidden_act="nothing"), "nothing"),
        (config(dtype="float7"), "float7"),
    ],
    ids=[
        "inner",
        "layers",
        "shape",
        "tokenizer",
        "tokenizer-list",
        "heads",
        "type",
        "unknown",
        "act",
        "dtype",
    ],
)
def test_what_transformers_cannot_load(tmp_path, edit, found):
    """Whatever transformers raises is one worded error of bounded length that names the folder."""
    folder = copy_of_tiny(tmp_path / "broken", edit)
    with pytest.raises(CheckpointError) as caught:
        swcheck.load(str(folder))
    asked, said, attempt = words_of(caught)
    assert str(folder) in asked
    assert found in said
    assert len(said) < 400
    assert "\n" not in said
    assert attempt


class Coded(nn.Module):
    """A quantizer's kernel: codes and a scale. With a fault its first pass transposes them, moves them, or fails."""

    def __init__(self, plain, fault):
        super().__init__()
        self.fault = fault
        self.scale = nn.Buffer(plain.weight.detach().abs().max() / 127)
        self.codes = nn.Buffer((plain.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x):
        fault, self.fault = self.fault, None
        if fault == "fails":
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        if fault == "transposes":
            self.codes = self.codes.T.contiguous()
        if fault == "moves":
            self.codes.add_(1)
        codes = self.codes.T if len(self.codes) == 512 else self.codes
        return nn.functional.linear(x, codes * self.scale)


@pytest.mark.parametrize("fault", ["fails", "transposes", "moves", None])
def test_a_kernel_that_repacks(tmp_path, monkeypatch, fault):
    """What the first pass makes of the codes beyond reading is not saved; what it cannot compute is one worded error."""
    source = tmp_path / "packed"
    model = swcheck.load("tiny", device="cpu").model
    packed = Coded(model.model.layers[2].mlp.down_proj, None)
    copy_of_tiny(
        source, checkpoints.tensors(lambda whole: {**whole, "model.layers.2.mlp.down_proj.codes": packed.codes})
    )

    def quantized(model, *_more):
        model.hf_quantizer = "ours"
        model.model.layers[2].mlp.down_proj = Coded(model.model.layers[2].mlp.down_proj, fault)
        return model

    monkeypatch.setattr(huggingface, "_moved_to_device", quantized)
    if fault == "fails":
        with pytest.raises(CheckpointError, match="RuntimeError: expected m1 and m2") as caught:
            swcheck.load(str(source), device="cpu")
        assert words_of(caught)[2].startswith("another --swcheck-dtype")
        return
    loaded, target = swcheck.load(str(source), device="cpu"), tmp_path / "saved"
    if fault is None:
        loaded.model.hf_quantizer = None
        loaded.model.save_pretrained(target)
        assert (target / "model.safetensors").exists()
        return
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.down_proj\.codes in memory is not what"):
        loaded.model.save_pretrained(target)
    assert not target.exists()


def test_a_pickle_beside_safetensors_is_never_opened(tmp_path):
    """With safetensors there, a pickle beside them stays closed."""
    folder = copy_of_tiny(tmp_path / "both", checkpoints.pickled)
    (folder / "training_args.bin").write_bytes((folder / "pytorch_model.bin").read_bytes())
    swcheck.load(str(folder))
    assert not (folder / "exploded").exists()
    with pytest.raises(Exception, match="."):  # the bomb itself works: torch refuses it, or it goes off
        torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (folder / "exploded").exists()


def test_a_pickle_alone_is_refused(tmp_path):
    """Without safetensors a pickle is refused unopened, with the way to convert it."""
    folder = copy_of_tiny(tmp_path / "pickle", checkpoints.without("model.safetensors"), checkpoints.pickled)
    with pytest.raises(UnsafeCheckpointError, match="pytorch_model.bin") as caught:
        swcheck.load(str(folder), trust_remote_code=True)
    assert "save_pretrained" in words_of(caught)[2]
    assert not (folder / "exploded").exists()


def test_code_runs_only_where_it_is_allowed(tmp_path, monkeypatch):
    """Python that a checkpoint brings is refused, and has not run; allowed by name it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = copy_of_tiny(tmp_path / "homemade", checkpoints.bringing_code)
    for refusing in (hub.check, swcheck.load):
        with pytest.raises(UnsafeCheckpointError, match="auto_map") as caught:
            refusing(str(folder))
        assert "--swcheck-trust-remote-code" in words_of(caught)[2]
    assert not (folder / "exploded").exists()
    assert type(swcheck.load(str(folder), trust_remote_code=True).model).__name__ == "Model"
    assert (folder / "exploded").exists()


def test_what_others_deprecate_ends_no_load(tmp_path, monkeypatch):
    """Where warnings are errors, one of the Python that a load imports does not make it fail; the filters stay as set."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = copy_of_tiny(tmp_path / "warning", checkpoints.bringing_code)
    code = (folder / "code.py").read_text()
    (folder / "code.py").write_text(f"import warnings\nwarnings.warn('old', DeprecationWarning)\n{code}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swcheck.load(str(folder), trust_remote_code=True)
        with pytest.raises(DeprecationWarning):
            warnings.warn("mine", DeprecationWarning, stacklevel=1)


def test_a_tokenizer_that_brings_code_is_refused(tmp_path):
    """A tokenizer of a class that only its own Python has is refused like a model, and that Python has not run."""
    folder = copy_of_tiny(tmp_path / "both", checkpoints.bringing_code, config(model_type="llama", auto_map=None))
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    with pytest.raises(UnsafeCheckpointError, match="auto_map"):
        swcheck.load(str(folder))
    assert not (folder / "exploded").exists()


def test_no_room_on_the_device():
    """A device that is full is an error in words, with the options that help."""

    class Large:
        def to(self, _device):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13 GiB.\nmore\nand more")

    with pytest.raises(SwcheckError, match="llama-7b on cpu") as caught:
        huggingface._moved_to_device(Large(), torch.device("cpu"), "llama-7b")
    _, found, attempt = words_of(caught)
    assert found == "CUDA out of memory. Tried to allocate 13 GiB. more"
    assert "--swcheck-dtype" in attempt


def test_code_that_is_not_needed_stays_where_it_is(tmp_path):
    """A type that transformers knows is loaded without the Python that came along, as Phi-3's is."""
    names = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    folder = copy_of_tiny(tmp_path / "both", checkpoints.bringing_code, config(model_type="llama", auto_map=names))
    assert type(swcheck.load(str(folder)).model) is LlamaForCausalLM
    assert not (folder / "exploded").exists()


# The hub.


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "magic", "bits": 4}, {"bits": 4}], ids=["unknown", "unnamed"]
)
def test_a_quantization_that_nobody_here_knows_is_refused(tmp_path, quantization):
    """transformers would warn and load what it finds as plain floats: that is another model."""
    folder = copy_of_tiny(tmp_path / "magic", config(quantization_config=quantization))
    with pytest.raises(EngineError, match=r"quantized by (magic|a method without a name)[\s\S]*knows no such method"):
        swcheck.load(str(folder), device="cpu")
