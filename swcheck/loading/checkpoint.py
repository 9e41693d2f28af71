"""Validate a model's directory before transformers reads it, with errors that name the problem.

No code that comes with a checkpoint is run: pickles are refused, and so is Python code, unless the user trusts it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import ArchitectureError, CheckpointError, EngineError, UnsafeCheckpointError, brief_message
from swcheck.base.reading.bounded import kind_of, open_regular
from swcheck.loading.files.config_file import CONFIG, check_counts, read_config
from swcheck.loading.files.safetensors_header import Header, read_header
from swcheck.loading.files.shard_index import SHARD_INDEX, shards_of
from swcheck.loading.scheme_from_config import missing_packages

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLE_PATTERNS: Final = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
HQQ_PICKLE: Final = "qmodel.pt"
"""The pickle that hqq's own ``save_quantized`` writes."""

CAUSAL_HEADS: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
SINGLE_FILE: Final = "model.safetensors"

LARGEST_FILES: Final = {
    ".json": 2**28,
    ".jinja": 2**20,
    ".txt": 2**28,
    ".model": 2**28,
    ".safetensors": 2**63,
}
"""The most bytes of a file by its suffix. Transformers reads all but the weights whole.

The largest tokenizers that are published have 33 MB (Gemma), the largest chat templates 50 kB.
"""


def check_directory(path: Path, *, trust_remote_code: bool = False) -> None:
    """Raise a ``SwcheckError`` unless ``path`` holds a causal language model: config, tokenizer, safetensors weights.

    ``trust_remote_code`` allows a model that only the checkpoint's own Python code can build.
    """
    if not path.is_dir():
        raise CheckpointError(f"model directory {path}", kind_of(path), "give the folder that holds config.json")
    try:
        _check_files(path)
    except OSError as error:
        found = error.strerror or brief_message(error)
        raise CheckpointError(f"model directory {path}", found, "give a folder that can be read") from error
    config = _read_model_config(path)
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
    _check_weights(path, config)


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
    if re.fullmatch(r"\w+", folder) is None:  # no path out of the folder of models
        return False
    return bool(spec and spec.origin and (Path(spec.origin).parent / "models" / folder).is_dir())


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


def _read_model_config(path: Path) -> dict[str, Any]:
    adapter = (path / "adapter_config.json").exists()
    if adapter or not (path / CONFIG).exists():
        listed = ", ".join(sorted(child.name for child in path.iterdir())[:6]) or "an empty folder"
        raise CheckpointError(
            f"a whole model in {path}" if adapter else f"config.json in {path}",
            "an adapter (adapter_config.json)" if adapter else listed,
            "merge it into its base model first: merge_and_unload(), save_pretrained()"
            if adapter
            else "give the folder that save_pretrained wrote",
        )
    return read_config(path)


def _check_files(path: Path) -> None:
    """Raise ``CheckpointError`` unless all that transformers may read is a regular file of a plausible size.

    Symbolic links are followed, wherever they lead: the cache of the hub is made of them.
    """
    for child in sorted(path.iterdir()):
        most = LARGEST_FILES.get(child.suffix)
        if most is not None:
            with open_regular(child, str(child)) as stream:
                size = os.fstat(stream.fileno()).st_size
            if size > most:
                raise CheckpointError(str(child), f"{size:,} bytes, at most {most:,} are read", "give the right file")


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


def _check_weights(path: Path, config: Mapping[str, Any]) -> None:
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
    headers = [read_header(path / name) for name in wanted]
    _check_once(path, dict(zip(wanted, headers, strict=True)))
    check_counts(config, [tensor for header in headers for tensor in header.tensors.values()], path / CONFIG)


def _check_once(path: Path, headers: Mapping[str, Header]) -> None:
    """Raise ``CheckpointError`` for a tensor that is in two files: which of the two is read would be chance."""
    seen: dict[str, str] = {}
    for file, header in headers.items():
        for name in header.tensors:
            if seen.setdefault(name, file) != file:
                found = f"{name} is in {seen[name]} and in {file}"
                raise CheckpointError(f"each tensor of {path} once", found, "save the model anew, or fetch it again")
