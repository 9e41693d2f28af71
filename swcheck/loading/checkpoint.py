"""Validate a model's directory before transformers reads it, with errors that name the problem. Standard library only.

No code that comes with a checkpoint is run: pickles are refused, and so is Python code, unless the user trusts it.
"""

from __future__ import annotations

import json
import shlex
import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import ArchitectureError, CheckpointError, EngineError, UnsafeCheckpointError, brief_message
from swcheck.loading.scheme_from_config import missing_packages

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLE_PATTERNS: Final = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
HQQ_PICKLE: Final = "qmodel.pt"
"""The pickle that hqq's own ``save_quantized`` writes."""

CAUSAL_HEADS: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
SINGLE_FILE: Final = "model.safetensors"
SHARD_INDEX: Final = "model.safetensors.index.json"


def check_directory(path: Path, *, trust_remote_code: bool = False) -> None:
    """Raise a ``SwcheckError`` unless ``path`` holds a causal language model: config, tokenizer, safetensors weights.

    ``trust_remote_code`` allows a model that only the checkpoint's own Python code can build.
    """
    if not path.is_dir():
        raise CheckpointError(f"model directory {path}", "a file", "give the folder that holds config.json")
    config = _read_config(path)
    _check_code(path, config, trust_remote_code)
    _check_causal(path, config)
    _check_pickles(path)
    _check_packages(path, config)
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"a tokenizer in {path}",
            f"none of {', '.join(TOKENIZER_FILES)}",
            "save the tokenizer beside the model: tokenizer.save_pretrained(directory)",
        )
    _check_weights(path)


def _check_code(path: Path, config: Mapping[str, Any], trusted: bool) -> None:
    """Raise ``UnsafeCheckpointError`` if only the checkpoint's own Python code can build the model.

    If transformers knows the model type, it does not run that code, so that the checkpoint is accepted.
    """
    if config.get("auto_map") and not trusted and not _is_native(str(config["model_type"])):
        raise own_code_error(path, "its config names Python code of its own (auto_map), which loading would run")


def own_code_error(path: Path, found: str) -> UnsafeCheckpointError:
    """Return the error for a checkpoint that needs Python code of its own; ``found`` says where that was seen."""
    return UnsafeCheckpointError(
        f"load {path}", found, "read that code, then allow it with --swcheck-trust-remote-code"
    )


def _is_native(model_type: str) -> bool:
    """Return whether transformers has a folder for this model type, without importing transformers."""
    spec = find_spec("transformers")
    folder = model_type.replace("-", "_")
    return bool(spec and spec.origin and folder and (Path(spec.origin).parent / "models" / folder).is_dir())


def _check_causal(path: Path, config: Mapping[str, Any]) -> None:
    architectures = [str(name) for name in config.get("architectures") or []]
    is_encoder_decoder = config.get("is_encoder_decoder") is True
    if is_encoder_decoder or (architectures and not any(name.endswith(CAUSAL_HEADS) for name in architectures)):
        named = ", ".join(architectures) or str(config["model_type"])
        raise ArchitectureError(
            f"a causal language model in {path}",
            f"{named}, {'an encoder with a decoder' if is_encoder_decoder else 'without a causal head'}",
            "give the checkpoint of a decoder with its head, as LlamaForCausalLM",
        )


def _check_packages(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ``EngineError``, with an install command, if packages that a quantized checkpoint needs are missing."""
    method, missing = missing_packages(config)
    if missing:
        command = f"pip install {shlex.join(requirement for _, requirement in missing)}"
        names = ", ".join(module for module, _ in missing)
        raise EngineError(f"load {path}, quantized by {method}", f"not installed: {names}", command)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    adapter = (path / "adapter_config.json").exists()
    if adapter or not file.exists():
        listed = ", ".join(sorted(child.name for child in path.iterdir())[:6]) or "an empty folder"
        raise CheckpointError(
            f"a whole model in {path}" if adapter else f"config.json in {path}",
            "an adapter (adapter_config.json)" if adapter else listed,
            "merge it into its base model first: merge_and_unload(), save_pretrained()"
            if adapter
            else "give the folder that save_pretrained wrote",
        )
    config = _read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"a model_type in {file}", "none", "give a config.json that transformers wrote")
    return config


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"JSON in {file}", brief_message(error), "repair the file, or fetch it again") from error


def _check_pickles(path: Path) -> None:
    """Raise ``UnsafeCheckpointError`` if all weights are pickles. No pickle is ever opened."""
    pickles = sorted(child.name for pattern in PICKLE_PATTERNS for child in path.glob(pattern))
    if pickles and not any(path.glob("*.safetensors")):
        attempt = "convert it to safetensors: model.save_pretrained(directory)"
        if HQQ_PICKLE in pickles:
            attempt = "let hqq quantize the reference in memory: --candidate=hqq:4bit"
        named = HQQ_PICKLE if HQQ_PICKLE in pickles else pickles[0]
        found = f"its weights are a pickle ({named}), which can run any code on loading"
        raise UnsafeCheckpointError(f"load {path}", found, attempt)


def _check_weights(path: Path) -> None:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"weights in {path}", "no *.safetensors file", "save the model with save_pretrained")
    wanted = [SINGLE_FILE] if (path / SINGLE_FILE).exists() else sorted(shards_of(path))
    if not wanted:
        found = f"{files[0].name}, but neither {SINGLE_FILE} nor {SHARD_INDEX}"
        raise CheckpointError(f"weights in {path}", found, "save the model with save_pretrained")
    for name in wanted:
        if not (path / name).exists():
            found = f"it lists {len(wanted)} files, of which {name} is not there"
            raise CheckpointError(f"the weights that {path / SHARD_INDEX} lists", found, "fetch the missing file")
        check_safetensors(path / name)


def shards_of(path: Path) -> set[str]:
    """Return the names of the files that the index of a sharded checkpoint lists; empty if there is no index.

    Raises ``CheckpointError`` if the index is malformed.
    """
    file = path / SHARD_INDEX
    if not file.exists():
        return set()
    index = _read_json(file)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise CheckpointError(f"a weight_map in {file}", "none", "repair the file, or fetch it again")
    return set(weight_map.values())


def check_safetensors(file: Path) -> None:
    """Raise ``CheckpointError`` unless a safetensors header is complete and the file as long as the header says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
        if length is None or length > size - 8:
            raise CheckpointError(
                f"safetensors in {file}", f"{size} bytes, cut off inside the header", "fetch the file again"
            )
        try:
            header = json.loads(stream.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            found = f"a malformed header ({brief_message(error)})"
            raise CheckpointError(f"safetensors in {file}", found, "fetch the file again") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise CheckpointError(
            f"safetensors in {file}",
            f"{size} bytes where its header says {expected}: the file is {'cut off' if size < expected else 'too long'}",
            "fetch the file again",
        )
