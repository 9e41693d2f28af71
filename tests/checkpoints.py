"""Checkpoint directories for tests: whole copies of tiny, damaged ones, and a model of a few thousand random weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from swcheck.loading import tiny
from tests import damage

MARK = "the code of a checkpoint ran"
DOWN = "model.layers.1.mlp.down_proj.weight"


def copy_of_tiny(folder: Path, *edits) -> Path:
    """Tiny's files in ``folder``, then each of ``edits`` done to that folder."""
    shutil.copytree(tiny.CHECKPOINT, folder)
    for edit in edits:
        edit(folder)
    return folder


def damaged(folder: Path, edit) -> Path:
    """Tiny with an edit of ``tests.damage`` done to layer 1's down projection."""
    copy_of_tiny(folder)
    tensors = load_file(folder / "model.safetensors")
    matrix = tensors[DOWN].float()
    edit(matrix)
    save_file(
        {**tensors, DOWN: matrix.to(tensors[DOWN].dtype)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder


def micro(folder: Path, **options) -> Path:
    """A Llama that had 20 steps on tiny's text, with its tokenizer: loads at once, and has no super weight."""
    sizes = {"vocab_size": 1024, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, "bos_token_id": 0, "eos_token_id": 0, **options}))
    tokenizer = AutoTokenizer.from_pretrained(tiny.CHECKPOINT)
    ids = torch.tensor(tokenizer(tiny.HELDOUT.read_text()[:20000])["input_ids"][: 64 * 64]).view(64, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(**changes):
    """An edit that changes entries of config.json; None takes one out."""

    def edit(folder: Path) -> None:
        file = folder / "config.json"
        entries = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))

    return edit


def tensors(change):
    """An edit of the tensors by name."""

    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return edit


def without(*names: str):
    """An edit that deletes files."""

    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def text(name: str, content: str):
    """An edit that writes a file."""
    return lambda folder: (folder / name).write_text(content)


def sharded(folder: Path) -> None:
    """Two shards and their index."""
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    places = {name: f"model-0000{1 + (number % 2)}-of-00002.safetensors" for number, name in enumerate(names)}
    for shard in set(places.values()):
        part = {name: whole[name] for name in names if places[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def truncated(folder: Path) -> None:
    """The last hundred bytes of the weights are missing."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


class _Bomb:
    """Unpickling one writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, MARK)


def pickled(folder: Path) -> None:
    """A pickle beside the rest that leaves ``exploded`` in the folder when it is opened."""
    torch.save(_Bomb(folder / "exploded"), folder / "pytorch_model.bin")


def as_hqq(folder: Path) -> None:
    """What hqq's own save_quantized leaves: a config and ``qmodel.pt``, here one that explodes; no tokenizer, no more."""
    for file in list(folder.iterdir()):
        if file.name != "config.json":
            file.unlink()
    torch.save(_Bomb(folder / "exploded"), folder / "qmodel.pt")


def bringing_code(folder: Path) -> None:
    """Python of its own for a model type that transformers does not know; it leaves ``exploded`` when it runs."""
    config(model_type="homemade", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})(folder)
    (folder / "code.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(folder / 'exploded')!r}).write_text({MARK!r})\n"
        "class Config(LlamaConfig):\n    model_type = 'homemade'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )


def bert(folder: Path) -> None:
    """The config of a classifier, with tiny's weights: it is refused before they are looked at."""
    config(architectures=["BertForSequenceClassification"], model_type="bert")(folder)


def t5(folder: Path) -> None:
    config(architectures=["T5ForConditionalGeneration"], model_type="t5", is_encoder_decoder=True)(folder)


def poisoned(folder: Path) -> None:
    """NaN in one weight."""
    tensors(lambda whole: {**whole, DOWN: _edited(whole[DOWN], damage.poison)})(folder)


def _edited(tensor, edit):
    edit(tensor)
    return tensor


def forgotten(folder: Path) -> None:
    """Let the system forget what it has read of the weights: of files in its cache it may map larger pieces."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
