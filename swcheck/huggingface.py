"""The built-in loader: directories, hub ids and ``tiny``, through transformers.

Nothing that came with a checkpoint is run: pickles are refused, and so is remote code unless it is allowed by name. A
directory is checked before transformers sees it, so that what is wrong with it is said in one line.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck import index, tiny
from swcheck.errors import (
    ArchitectureError,
    CheckpointError,
    OptionError,
    SwcheckError,
    UnknownModelError,
    UnsafeCheckpointError,
)
from swcheck.records import Loaded

if TYPE_CHECKING:
    import torch

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
CAUSAL: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
WANTED: Final = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")


@dataclass(frozen=True)
class HuggingFace:
    """The engine of the name ``huggingface``; ``trust_remote_code`` lets a checkpoint bring its own Python."""

    name: str = "huggingface"
    trust_remote_code: bool = False

    def load(self, spec: str, *, device: str | None = None, dtype: str | None = None) -> Loaded:
        """Load ``tiny``, a known name, a hub id or a directory; see ``swcheck.load``."""
        if spec == "tiny":
            directory, text = tiny.CHECKPOINT, tiny.HELDOUT.read_text(encoding="utf-8")
        else:
            directory, text = find(spec), None
        check_directory(directory, trust_remote_code=self.trust_remote_code)
        model, tokenizer = _from_pretrained(directory, dtype or "auto", self.trust_remote_code)
        model = model.to(_device(device))
        return Loaded(model, tokenizer, _name(spec), text, str(directory))


ENGINE: Final = HuggingFace()


def check(spec: str, *, trust_remote_code: bool = False) -> None:
    """Raise a worded error for a name that leads nowhere or a directory that is no model; nothing is loaded."""
    if spec == "tiny":
        return
    path = Path(spec).expanduser()
    if path.exists():
        check_directory(path, trust_remote_code=trust_remote_code)
    else:
        repository_of(spec)


def find(spec: str) -> Path:
    """The directory that ``spec`` means: itself, or the local snapshot of a known name or hub id."""
    path = Path(spec).expanduser()
    if path.exists():
        return path
    return _snapshot(repository_of(spec))


def repository_of(spec: str) -> str:
    """The hub repository of a known name or hub id; raises ``UnknownModelError`` with the closest names."""
    known = index.find(spec)
    if known is not None:
        return known.model
    if spec.startswith((".", "/", "~")) or spec.count("/") != 1:
        close = index.closest(spec)
        raise UnknownModelError(
            f"model {spec!r}",
            "no such path, and no model of this name in the index"
            + (f"; the closest: {', '.join(close)}" if close else ""),
            "`swcheck index` lists the known names; a directory or a hub id (owner/name) works as well",
        )
    return spec


def _snapshot(repository: str) -> Path:
    """The local snapshot of a hub repository, downloaded where that is allowed, after its size was printed."""
    import huggingface_hub as hub
    from huggingface_hub import errors as hub_errors

    try:
        local = Path(hub.snapshot_download(repository, local_files_only=True, allow_patterns=list(WANTED)))
        if any(local.glob("*.safetensors")):
            return local
    except (hub_errors.LocalEntryNotFoundError, OSError):
        pass
    fetch = f"hf download {repository}"
    if hub.constants.HF_HUB_OFFLINE:
        raise UnknownModelError(
            f"hub model {repository}",
            "it is not in the local cache, and downloads are forbidden (offline)",
            f"fetch it where there is a network: {fetch}",
        )
    try:
        files = hub.HfApi().model_info(repository, files_metadata=True).siblings or []
        size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
        sys.stderr.write(f"swcheck: downloading {repository}, {size / 1e9:.1f} GB\n")
        return Path(hub.snapshot_download(repository, allow_patterns=list(WANTED)))
    except hub_errors.GatedRepoError as error:
        page = f"https://huggingface.co/{repository}"
        raise UnknownModelError(f"hub model {repository}", "it is gated", f"accept its licence at {page}") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UnknownModelError(f"hub model {repository}", "the hub knows no such model", "check its name") from error
    except (OSError, hub_errors.HfHubHTTPError, RuntimeError) as error:
        reason = f"not in the local cache, and the hub cannot be reached ({type(error).__name__})"
        raise UnknownModelError(f"hub model {repository}", reason, f"fetch it first: {fetch}") from error
    except Exception as error:  # the hub's client passes on whatever its transport raises
        reason = f"not in the local cache, and the hub cannot be reached ({type(error).__name__})"
        raise UnknownModelError(f"hub model {repository}", reason, f"fetch it first: {fetch}") from error


def check_directory(path: Path, *, trust_remote_code: bool = False) -> None:
    """Raise a worded error unless ``path`` is a causal language model in safetensors, with config and tokenizer."""
    if not path.is_dir():
        raise CheckpointError(f"model directory {path}", "a file", "give the folder that holds config.json")
    config = _config(path)
    if config.get("auto_map") and not trust_remote_code:
        raise UnsafeCheckpointError(
            f"load {path}",
            "its config names Python code of its own (auto_map), which loading would run",
            "read that code, then allow it with --swcheck-trust-remote-code",
        )
    architectures = config.get("architectures") or []
    if architectures and not any(str(name).endswith(CAUSAL) for name in architectures):
        raise ArchitectureError(
            f"a causal language model in {path}",
            f"architecture {', '.join(map(str, architectures))}",
            "super weights are a matter of models with a causal head: give a ...ForCausalLM checkpoint",
        )
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"a tokenizer in {path}",
            f"none of {', '.join(TOKENIZER_FILES)}",
            "save the tokenizer beside the model: tokenizer.save_pretrained(directory)",
        )
    _check_weights(path)


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.exists():
        listed = ", ".join(sorted(child.name for child in path.iterdir())[:6]) or "an empty folder"
        raise CheckpointError(f"config.json in {path}", listed, "give the folder that save_pretrained wrote")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"JSON in {file}", str(error), "repair the file, or fetch it again") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"a model_type in {file}", "none", "give a config.json that transformers wrote")
    return config


def _check_weights(path: Path) -> None:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(child.name for pattern in PICKLES for child in path.glob(pattern))
        if pickles:
            raise UnsafeCheckpointError(
                f"load {path}",
                f"its weights are a pickle ({pickles[0]}), which can run any code on loading",
                "convert it to safetensors: model.save_pretrained(directory)",
            )
        raise CheckpointError(f"weights in {path}", "no *.safetensors file", "save the model with save_pretrained")
    for file in files:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Raise ``CheckpointError`` unless the header of ``file`` is whole and the file as long as it says."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else None
        if length is None or length > size - 8:
            raise CheckpointError(
                f"safetensors in {file}", f"{size} bytes, cut off inside the header", "fetch the file again"
            )
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"safetensors in {file}", f"a malformed header ({error})", "fetch the file again"
            ) from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise CheckpointError(
            f"safetensors in {file}",
            f"{size} bytes where its header says {expected}: the file is {'cut off' if size < expected else 'too long'}",
            "fetch the file again",
        )


def _from_pretrained(path: Path, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            model, info = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
    except SwcheckError:
        raise
    except Exception as error:  # transformers raises nearly anything for a directory it cannot make sense of
        first = str(error).strip().splitlines()
        raise CheckpointError(
            f"load {path} with transformers",
            f"{type(error).__name__}: {first[0] if first else ''}",
            "check that weights and config.json belong together",
        ) from error
    missing = sorted(info.get("missing_keys") or ()) + [str(key) for key in info.get("mismatched_keys") or ()]
    if missing:
        raise CheckpointError(
            f"all weights of {path}",
            f"{len(missing)} missing or of another shape, first {missing[0]}",
            "check that weights and config.json belong together",
        )
    return model, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading without transformers' own progress bars and warnings; what matters is raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _device(name: str | None) -> torch.device:
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OptionError(f"device {name!r}", reason, "leave it out to use what this machine has") from error
    return device


def _name(spec: str) -> str:
    path = Path(spec).expanduser()
    return path.resolve().name if path.exists() else spec
