"""The built-in loader: what it loads, what it refuses, and that nothing of a checkpoint runs."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import swcheck
from swcheck import huggingface, tiny
from swcheck.errors import CheckpointError, EngineError, SwcheckError, UnknownModelError, UnsafeCheckpointError
from tests import checkpoints, damage
from tests.checkpoints import DOWN, config, copy_of_tiny, text
from tests.test_engines import words_of


def test_tiny(tiny):
    """The embedded model comes with its tokenizer, its text and its directory, on the device that was asked for."""
    assert tiny.name == "tiny"
    assert tiny.model.device.type == "cpu"
    assert not tiny.model.training
    assert tiny.tokenizer("x")["input_ids"][0] == 0
    assert tiny.text == swcheck.tiny.HELDOUT.read_text(encoding="utf-8")
    assert Path(tiny.source) == swcheck.tiny.CHECKPOINT


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


def test_a_home_directory(tmp_path, monkeypatch):
    """``~`` is the home directory, for the loader as for the check before it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    copy_of_tiny(tmp_path / "mine")
    huggingface.check("~/mine")
    assert swcheck.load("~/mine").name == "mine"


def test_a_path_object_is_not_taken_for_a_name(tmp_path):
    """A name is text: a path is refused in words, not in an AttributeError."""
    with pytest.raises(SwcheckError, match="the name of a model"):
        swcheck.load(copy_of_tiny(tmp_path / "a"))  # type: ignore[arg-type]


def test_a_directory_called_like_a_known_model_is_not_that_model(tmp_path, monkeypatch):
    """Nobody said that a folder ``llama-7b`` is LLaMA-7B: its name stays its path, which has no published coordinates."""
    copy_of_tiny(tmp_path / "llama-7b")
    monkeypatch.chdir(tmp_path)
    assert swcheck.load("./llama-7b").name == "./llama-7b"
    assert huggingface.name_of("llama-7b") == "llama-7b"


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
        (text("tokenizer.json", "{"), "JSONDecodeError"),
        (text("tokenizer.json", "[1]"), ""),
        (config(num_attention_heads=7), "not a multiple of the number of attention heads"),
        (config(hidden_size="big"), "hidden_size"),
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

    monkeypatch.setattr(huggingface, "_moved", quantized)
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


def test_a_header_that_lies(tmp_path):
    """A header whose shapes do not fit its own offsets is refused."""
    folder = copy_of_tiny(tmp_path / "lying")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[DOWN]["shape"] = [1, 2]
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])
    with pytest.raises(CheckpointError, match="SafetensorError"):
        swcheck.load(str(folder))


def test_a_file_that_is_too_long(tmp_path):
    """Bytes after the last tensor are refused: two files may have been written into one."""
    folder = copy_of_tiny(tmp_path / "long")
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(CheckpointError, match="the file is too long"):
        huggingface.check(str(folder))


@given(data=st.binary(max_size=64))
def test_any_bytes_for_weights_are_refused_in_words(data, tmp_path_factory):
    """No file of a few bytes passes for safetensors, and none brings the reader down."""
    file = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    file.write_bytes(data)
    if data[:8] == struct.pack("<Q", max(0, len(data) - 8)) and data[8:].strip() == b"{}":
        huggingface.check_safetensors(file)
    else:
        with pytest.raises(CheckpointError, match="safetensors in"):
            huggingface.check_safetensors(file)


@given(
    header=st.recursive(
        st.none() | st.integers() | st.text(max_size=8) | st.just("data_offsets"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=12) | st.just("data_offsets"), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_header_is_read_or_refused(header, tmp_path_factory):
    """No JSON in the place of a header brings the reader down."""
    file = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written)
    with suppress(CheckpointError):
        huggingface.check_safetensors(file)


# Nothing runs.


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
    for refusing in (huggingface.check, swcheck.load):
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
        huggingface._moved(Large(), torch.device("cpu"), "llama-7b")
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


def test_a_known_name_is_its_repository():
    """Aliases in any case and spelling, and hub ids, stand for a repository; two ways to name a model mean the same."""
    assert huggingface.repository_of("LLaMA_7B") == "huggyllama/llama-7b"
    assert huggingface.repository_of("somebody/some-model") == "somebody/some-model"
    assert huggingface.meaning("llama-7b") == huggingface.meaning("huggyllama/llama-7b") == "huggyllama/llama-7b"


@pytest.mark.parametrize(
    "spec", ["llma-7b", "./nowhere", "/no/where", "~/nowhere", "a/b/c", "a b/c", "owner/name:main", "x" * 300]
)
def test_no_such_model(spec):
    """What is neither path, alias nor hub id is refused with what would be."""
    with pytest.raises(UnknownModelError, match="no such path") as caught:
        huggingface.check(spec)
    _, found, attempt = words_of(caught)
    assert ("the closest: llama-7b" in found) == (spec == "llma-7b")
    assert "tiny" in attempt


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as downloading one model takes: its repository is ``mine/model``, ``mine/gated`` is gated."""

    commit = "0" * 40
    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path.startswith("/api/models/mine/model/tree/"):
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in self.files.items()]
            self.answer(200, json.dumps(tree).encode())
        elif self.path.startswith("/api/models/mine/model"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            self.answer(200, json.dumps({"id": "mine/model", "sha": self.commit, "siblings": siblings}).encode())
        elif self.path.startswith("/mine/model/resolve/"):
            data = self.files.get(self.path.rpartition("/")[2])
            name = {"ETag": f'"{hash(data)}"', "X-Repo-Commit": self.commit}
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"}) if data is None else self.answer(200, data, name)
        elif "/mine/gated" in self.path:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif "/mine/pickles" in self.path:
            siblings = [{"rfilename": "pytorch_model.bin", "size": 9}]
            self.answer(200, json.dumps({"id": "mine/pickles", "sha": self.commit, "siblings": siblings}).encode())
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def answer(self, status, data, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_args):
        pass


@pytest.fixture(scope="module")
def hub():
    """The address of a hub on this machine that has tiny's files."""
    Hub.files = {path.name: path.read_bytes() for path in tiny.CHECKPOINT.iterdir() if path.is_file()}
    Hub.files |= {"consolidated.safetensors": b"twice", "onnx/model.json": b"{}", "m.bin": b""}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetching(tmp_path, hub):
    """Fetch a model in a process of its own, with an empty cache, and give what was written."""

    def fetch(spec: str, address: str = hub, *, offline: bool = False, **environment: str):
        program = (
            "import sys\nfrom swcheck import engines\nfrom swcheck.errors import SwcheckError\n"
            f"try:\n    engines.fetch({spec!r}, offline={offline})\n"
            "except SwcheckError as error:\n    print(error)\n    raise SystemExit(4)\n"
            "assert 'torch' not in sys.modules\n"
        )
        clean = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
        places = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**clean, **places, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    return fetch


def test_a_model_is_downloaded_once(fetching, tmp_path):
    """A hub id that the cache lacks is downloaded after its size was printed; the next time nothing is."""
    first = fetching("mine/model")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "swcheck: downloading mine/model, 0.0 GB" in first.stderr
    [snapshot] = (tmp_path / "home" / "hub" / "models--mine--model" / "snapshots").iterdir()
    assert (snapshot / "model.safetensors").stat().st_size == (tiny.CHECKPOINT / "model.safetensors").stat().st_size
    assert not {"consolidated.safetensors", "onnx", "m.bin", "README.md"} & {path.name for path in snapshot.iterdir()}
    again = fetching("mine/model", "http://127.0.0.1:9", offline=True)
    assert (again.returncode, again.stderr) == (0, "")


def test_half_a_download_is_not_a_model(fetching, tmp_path):
    """Where the cache has the config and not the weights, offline says that the weights are missing."""
    assert fetching("mine/model").returncode == 0
    [snapshot] = (tmp_path / "home" / "hub" / "models--mine--model" / "snapshots").iterdir()
    (snapshot / "model.safetensors").unlink()
    done = fetching("mine/model", offline=True)
    assert done.returncode == 4
    assert "its weights (*.safetensors) are not in the local cache, and downloads are forbidden" in done.stdout
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-00001-of-00002.safetensors").touch()
    done = fetching("mine/model", offline=True)
    assert "found: model-00002-of-00002.safetensors is not in the local cache" in done.stdout
    assert fetching("mine/model").returncode == 0
    (snapshot / "tokenizer.json").unlink()
    done = fetching("mine/model", offline=True)
    assert "found: its tokenizer is not in the local cache" in done.stdout


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("mine/gated", "found: it is gated\n  try: accept its licence at https://huggingface.co/mine/gated"),
        ("mine/nothing", "the hub knows no such model"),
        ("mine/pickles", "its weights are no safetensors"),
    ],
)
def test_what_the_hub_refuses_is_said(fetching, spec, said):
    """A gated, an unknown and a pickled repository each have their own words."""
    done = fetching(spec)
    assert done.returncode == 4, done.stderr
    assert said in done.stdout


def test_without_a_network_the_command_that_fetches_is_named(fetching):
    """A known name that is not here, and no network: said with the command that fetches it."""
    done = fetching("llama-7b", "http://127.0.0.1:9")
    assert done.returncode == 4
    assert "hub model huggyllama/llama-7b (llama-7b)" in done.stdout
    assert "not in the local cache, and the hub cannot be reached" in done.stdout
    assert "hf download huggyllama/llama-7b" in done.stdout


def test_the_hubs_own_variable_forbids_it(fetching):
    """With HF_HUB_OFFLINE nothing is tried."""
    done = fetching("llama-7b", HF_HUB_OFFLINE="1")
    assert done.returncode == 4
    assert "downloads are forbidden (offline)" in done.stdout


@pytest.mark.parametrize(
    "quantization", [{"quant_method": "magic", "bits": 4}, {"bits": 4}], ids=["unknown", "unnamed"]
)
def test_a_quantization_that_nobody_here_knows_is_refused(tmp_path, quantization):
    """transformers would warn and load what it finds as plain floats: that is another model."""
    folder = copy_of_tiny(tmp_path / "magic", config(quantization_config=quantization))
    with pytest.raises(EngineError, match=r"quantized by (magic|a method without a name)[\s\S]*knows no such method"):
        swcheck.load(str(folder), device="cpu")
