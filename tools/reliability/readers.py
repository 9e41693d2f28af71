"""Every reader of files and options that others wrote, as a function of bytes, with small good examples.

Each raises a ``SwcheckError`` for what it refuses; anything else is a fault. The fuzzer and a test run them.
"""

from __future__ import annotations

import argparse
import json
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from swcheck.base.errors import SwcheckError
from swcheck.base.reading.bounded import parsed_json
from swcheck.base.reading.text_file import read_text
from swcheck.base.records import Limit, Outcome, SuperActivation, SuperWeight, Verdict
from swcheck.gate.baseline.document import sealed
from swcheck.gate.baseline.file import read_baseline
from swcheck.gate.baseline.packing import pack
from swcheck.lens.tokens import token_windows
from swcheck.loading import checkpoint, engines
from swcheck.loading.files.adapter_files import check_adapter_patterns, read_adapter
from swcheck.loading.files.checkpoint_size import checkpoint_size
from swcheck.loading.files.config_file import read_config
from swcheck.loading.files.gguf_header import read_gguf_header
from swcheck.loading.files.safetensors_header import read_header
from swcheck.loading.files.shard_index import shards_of
from swcheck.loading.huggingface import tokenizer_of
from swcheck.loading.scheme_from_config import missing_packages, scheme_of
from swcheck.loading.spec_from_config import spec_of
from swcheck.loading.tiny import CHECKPOINT
from swcheck.quantizers import rtn
from swcheck.run.command_line import history
from swcheck.run.command_line.baseline import changed_facts
from swcheck.run.limit_overrides import parse_overrides
from swcheck.run.options import OPTIONS
from swcheck.run.project_table import read_table
from swcheck.run.reports.verdict_json import json_document
from swcheck.study.common.record import Measurement, Study, as_csv, as_json, from_json
from swcheck.superweights.locating.located import Located
from swcheck.superweights.measurements.prompt_readings import Reading


@dataclass(frozen=True)
class Reader:
    """``read`` takes the bytes of a file; ``good`` are contents that it accepts."""

    read: Callable[[bytes], object]
    good: tuple[bytes, ...]


_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
FOLDER: Final = tempfile.TemporaryDirectory(prefix="swcheck-readers-", dir=_MEMORY if _MEMORY.is_dir() else None)
"""Where the bytes lie while they are read; it is removed when Python ends."""


def _file(name: str, data: bytes, folder: str = "files") -> Path:
    path = Path(FOLDER.name, folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _config(data: bytes) -> None:
    folder = _file("config.json", data, "model").parent
    if not (folder / "tokenizer.json").exists():
        (folder / "tokenizer.json").write_bytes(b"{}")
        (folder / "model.safetensors").write_bytes(_LAYERS)
    with suppress(SwcheckError):
        checkpoint.check_directory(folder)
    checkpoint_size(folder)
    config = read_config(folder)
    missing_packages(config)
    scheme_of(config)
    for name in ("quantization_config", "compression_config"):
        if isinstance(config.get(name), dict):
            spec_of(config[name])


def _adapter(data: bytes) -> None:
    folder = _file("adapter_config.json", data, "adapter").parent
    if not (folder / "adapter_model.safetensors").exists():
        (folder / "adapter_model.safetensors").write_bytes(SAFETENSORS)
    found = read_adapter(folder)
    check_adapter_patterns(found.config, ("model.layers.0.mlp.down_proj", "lm_head"), "an adapter")


def _baseline(data: bytes) -> None:
    """A digest that fits is put in first, as one who forges a baseline would."""
    body: Any = None
    with suppress(SwcheckError):
        body = parsed_json(data, "it")
    if isinstance(body, dict) and isinstance(body.get("schema"), int) and body["schema"] >= 4:
        with suppress(ValueError):
            data = json.dumps(sealed(body)).encode()
    _, facts = read_baseline(data, "it")
    changed_facts(facts, {"super_weights": []})


def _history(data: bytes) -> None:
    """Every run of a folder is shown, so that what passes the reader is used."""
    folder = _file("run.json", data, "history").parent
    history.run(argparse.Namespace(folder=folder, out=None))


def _project(data: bytes) -> None:
    """The limits of a table are parsed too, as a run does."""
    found = read_table(_file("pyproject.toml", data, "project"), {option.name: option.kind for option in OPTIONS})
    parse_overrides(found.get("limit", []), "pyproject")


def _tokenizer(name: str) -> Callable[[bytes], None]:
    """Return the reader of one of a tokenizer's files, beside the others of ``tiny``; a text is encoded with it."""

    def read(data: bytes) -> None:
        for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
            _file(file, data if file == name else (CHECKPOINT / file).read_bytes(), "tokenizer")
        folder = Path(FOLDER.name, "tokenizer")
        token_windows(tokenizer_of(folder, trusted=False), "abba " * 40, count=2, length=8)

    return read


def _study(data: bytes) -> None:
    study = from_json(data, "it")
    as_json(study)
    as_csv([study])


def _options(data: bytes) -> None:
    text = data.decode("utf-8", errors="replace")
    for read in (lambda: parse_overrides([text]), lambda: rtn.ENGINE.check(text), lambda: engines.route(text)):
        with suppress(SwcheckError):
            read()


def _safetensors(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _gguf() -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    facts = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    facts += text(b"llama.block_count") + struct.pack("<II", 4, 1)
    facts += text(b"general.alignment") + struct.pack("<II", 4, 32)
    facts += text(b"tokens") + struct.pack("<IIQ", 9, 8, 1) + text(b"a") + text(b"x") + struct.pack("<IIQf", 9, 6, 1, 1)
    tensors = text(b"blk.0.ffn_down.weight") + struct.pack("<IQQIQ", 2, 32, 2, 8, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 5) + facts + tensors
    return head + bytes(-len(head) % 32 + 68)


SAFETENSORS: Final = _safetensors(
    {"__metadata__": {"a": "b"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}, bytes(24)
)
_CONFIG: Final = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
_LAYERS: Final = _safetensors(
    {
        f"model.layers.{layer}.mlp.down_proj.weight": {
            "dtype": "F32",
            "shape": [1, 1],
            "data_offsets": [4 * layer, 4 * layer + 4],
        }
        for layer in range(_CONFIG["num_hidden_layers"])
    },
    bytes(4 * _CONFIG["num_hidden_layers"]),
)
"""Weights as small as the counts of a config can be held against: many inputs a second want a short header."""

_PACKED: Final = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "config_groups": {"a": {"weights": {"num_bits": 4}}},
}
_WEIGHT: Final = SuperWeight(1, 97, 301, 2.625)
_PEAK: Final = SuperActivation(1, 97, 0, 396.8, 0.7, 3)
_MEASURED: Final = (
    ("bos", True), ("noise", (3e-7, 1e-7)), ("vocabulary", 1024), ("generation", ("0", "")), ("tokens", ((0, 52), (0, 3))),
    ("located", Located((_WEIGHT,), (395.0,), (_PEAK,), (), "1 super weight found", None)),
    ("prompt", torch.tensor([[0, 5, 9]], dtype=torch.int32)), (("weights", (_WEIGHT,)), (2.625,)),
    (("finite", (1, 95, -82)), True), (("usual", _PEAK), Reading(396.8, 396.8, 97, 0, (0,))),
)  # fmt: skip
_BASELINE: Final = {
    "schema": 4, "digest": "", "model": "tiny", "weights": "0" * 64, "tier": "standard", "super_weights": [_WEIGHT.as_json()],
    "measurements": [[pack(key), pack(value)] for key, value in _MEASURED],
}  # fmt: skip
_ADAPTER: Final = {"peft_type": "LORA", "r": 2, "target_modules": ".*_proj", "rank_pattern": {"q": 1}, "lora_alpha": 4}
_STUDY: Final = Study(
    "prune", "tiny", (Measurement("perplexity", 8.5, x=1.0, layer=1, prompt="=a"),), ("note",), {"seed": 0}
)

_VERDICT: Final = Verdict(
    "perplexity", "tiny", Outcome.FAILED, "perplexity 9 for 8", "rtn:bits=4", 1.125, Limit(None, 1.05, "given"), "x",
    detail=(("proof", "restored"),), facts={"tokens": 8160}, cause="rounding", attempt="more bits",
)  # fmt: skip
_TOKENIZER: Final = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
_VOCABULARY: Final = json.dumps(
    {
        **_TOKENIZER,
        "model": {**_TOKENIZER["model"], "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
    }
).encode()
"""A tokenizer of four tokens."""

_PROJECT: Final = b"""[tool.swcheck]
models = ["llama-7b"]
offline = true
limits = {perplexity = 1.03, activation = [0.8, 1.5], "rtn:*" = {kl = "reported"}}
"""

READERS: Final = {
    "safetensors": Reader(lambda data: read_header(_file("x.safetensors", data)), (SAFETENSORS,)),
    "config": Reader(
        _config,
        (json.dumps(_CONFIG).encode(), json.dumps({**_CONFIG, "quantization_config": _PACKED}).encode()),
    ),
    "index": Reader(
        lambda data: shards_of(_file("model.safetensors.index.json", data, "shards").parent),
        (json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode(),),
    ),
    "baseline": Reader(_baseline, (json.dumps(_BASELINE).encode(),)),
    "study": Reader(_study, (as_json(_STUDY).encode(),)),
    "history": Reader(_history, (json.dumps(json_document([("a.py::t", _VERDICT)])).encode(),)),
    "project": Reader(_project, (_PROJECT,)),
    "tokenizer": Reader(_tokenizer("tokenizer.json"), (_VOCABULARY,)),
    "tokenizer_config": Reader(
        _tokenizer("tokenizer_config.json"), ((CHECKPOINT / "tokenizer_config.json").read_bytes(),)
    ),
    "text": Reader(lambda data: read_text(_file("text.txt", data)), (b"One text.\r\n",)),
    "gguf": Reader(lambda data: read_gguf_header(_file("x.gguf", data)), (_gguf(),)),
    "adapter": Reader(_adapter, (json.dumps(_ADAPTER).encode(),)),
    "options": Reader(
        _options, (b"perplexity=1.05@tiny*", b"bits=4,block=128,clip=3,keep,skip=a+b", b"rtn:bits=4", b"collapse=5..")
    ),
}
"""The readers by name."""


def judged(reader: Reader, data: bytes) -> None:
    """Read ``data``; return also where it is refused. Whatever else is raised is a fault of the reader."""
    with suppress(SwcheckError):
        reader.read(data)
