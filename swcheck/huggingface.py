"""The built-in loader: directories, hub ids and the embedded models, through transformers.

Nothing that came with a checkpoint is run: pickles are refused, and so is remote code unless it is allowed by name. A
directory is checked before transformers sees it, so that what is wrong with it is said in one line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck import index, tiny
from swcheck.errors import (
    ArchitectureError,
    CheckpointError,
    EngineError,
    OptionError,
    SwcheckError,
    UnknownModelError,
    UnsafeCheckpointError,
)
from swcheck.noise import captured
from swcheck.records import Loaded
from swcheck.schemes import missing_packages, scheme_of

if TYPE_CHECKING:
    import torch

TOKENIZER_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
CAUSAL: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
WANTED: Final = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
UNWANTED: Final = ("consolidated*", "*/*")
"""What a repository has twice or for other runtimes: weights in a second layout, and every subfolder."""
LOOKED_AT: Final = 32
"""How many tensors of codes a file are held against it after the first pass: kernels repack all or none."""
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"


@dataclass(frozen=True)
class HuggingFace:
    """The engine of the name ``huggingface``.

    ``trust_remote_code`` lets a checkpoint bring its own Python, ``offline`` forbids downloads. ``device_map`` spreads
    a model over devices, main memory and disk, as accelerate does.
    """

    name: str = "huggingface"
    trust_remote_code: bool = False
    offline: bool = False
    device_map: str | Mapping[str, str] | None = None

    def load(
        self, spec: str, *, reference: str | None = None, device: str | None = None, dtype: str | None = None
    ) -> Loaded:
        """Load ``tiny``, a known name, a hub id or a directory; see ``swcheck.load``. A loader needs no reference."""
        del reference
        place = device_of(device) if self.device_map is None else None
        if spec in tiny.CHECKPOINTS:
            directory, text = tiny.CHECKPOINTS[spec], tiny.HELDOUT.read_text(encoding="utf-8")
        else:
            directory, text = find(spec, offline=self.offline), None
        check_directory(directory, trust_remote_code=self.trust_remote_code)
        with _quiet():
            config = _understood(directory, self.trust_remote_code)
            _check_method(directory, config)
            tokenizer = _tokenizer(directory, self.trust_remote_code)
            model = _model(directory, config, dtype or "auto", self.trust_remote_code, device_map=self.device_map)
            model = _settled(model if place is None else _moved(model, place, spec), directory)
            scheme = scheme_of(config.to_dict())
        return Loaded(model, tokenizer, name_of(spec), text, str(directory), scheme)


ENGINE: Final = HuggingFace()


def check(spec: str, *, trust_remote_code: bool = False, offline: bool = False) -> None:
    """Raise a worded error for a name that leads nowhere or a directory that is no model; nothing is loaded."""
    if spec in tiny.CHECKPOINTS:
        return
    path = existing(spec)
    if path is not None:
        check_directory(path, trust_remote_code=trust_remote_code)
        return
    repository = repository_of(spec)
    if _forbidden(offline) and _lacking(repository):
        raise _not_here(repository, spec)


def find(spec: str, *, offline: bool = False) -> Path:
    """The directory that ``spec`` means: itself, or the local snapshot of a known name or hub id."""
    return existing(spec) or _snapshot(repository_of(spec), spec, offline)


def existing(spec: str) -> Path | None:
    """The path of this name, ``~`` expanded, None where there is none."""
    expanded = os.path.expanduser(spec)  # noqa: PTH111 - a user that does not exist is no error here
    return Path(expanded) if os.path.exists(expanded) else None  # noqa: PTH110 - too long a name is no error here


def name_of(spec: str) -> str:
    """The name of a directory, else ``spec`` as it is.

    A directory that is called like a known model keeps its whole path: nobody said that it is that model.
    """
    path = existing(spec)
    name = spec if path is None else path.resolve().name
    return spec if index.find(name) else name


def meaning(spec: str) -> str:
    """The directory or the hub repository of ``spec``."""
    path = existing(spec)
    if path is not None:
        return str(path.resolve())
    known = index.find(spec)
    return known.model if known else spec


def repository_of(spec: str) -> str:
    """The hub repository of a known name or hub id; raises ``UnknownModelError`` with the closest names."""
    known = index.find(spec)
    if known is not None:
        return known.model
    if spec.startswith((".", "/", "~")) or spec.count("/") != 1 or not _is_repository(spec):
        close = index.closest(spec)
        raise UnknownModelError(
            f"model {spec!r}",
            "no such path, and no model of this name in the index"
            + (f"; the closest: {', '.join(close)}" if close else ""),
            "`swcheck index` lists the known names; `tiny`, a directory or a hub id (owner/name) work as well",
        )
    return spec


def _is_repository(spec: str) -> bool:
    """Whether ``spec`` may be the id of a repository, by the hub's rules."""
    return (
        bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", spec)) and len(spec) <= 96 and ".." not in spec and "--" not in spec
    )


def _forbidden(offline: bool) -> bool:
    """Whether downloads are forbidden, by option or by the hub's own variable."""
    from huggingface_hub import constants

    return offline or bool(constants.HF_HUB_OFFLINE)


def _snapshot(repository: str, spec: str, offline: bool) -> Path:
    """The local snapshot of a hub repository, downloaded where that is allowed, after its size was printed."""
    import huggingface_hub as hub
    from huggingface_hub import errors as hub_errors

    local = _cached(repository)
    if local is not None and not _lacking(repository):
        return local
    if _forbidden(offline):
        raise _not_here(repository, spec)
    asked = _asked(repository, spec)
    try:
        files = hub.HfApi().model_info(repository, files_metadata=True).siblings or []
        wanted = [file for file in files if _is_wanted(file.rfilename)]
        if not any(file.rfilename.endswith(".safetensors") for file in wanted):
            raise UnsafeCheckpointError(asked, "its weights are no safetensors", "convert it, and give the directory")
        sys.stderr.write(f"swcheck: downloading {repository}, {sum(file.size or 0 for file in wanted) / 1e9:.1f} GB\n")
        patterns = list(WANTED), list(UNWANTED)
        return Path(hub.snapshot_download(repository, allow_patterns=patterns[0], ignore_patterns=patterns[1]))
    except SwcheckError:
        raise
    except hub_errors.GatedRepoError as error:
        page = f"https://huggingface.co/{repository}"
        raise UnknownModelError(
            asked, "it is gated", f"accept its licence at {page}, then log in: hf auth login"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UnknownModelError(asked, "no such path, and the hub knows no such model", "check its name") from error
    except Exception as error:  # the hub's client passes on whatever its transport raises
        found = f"not in the local cache, and the hub cannot be reached ({type(error).__name__}: {_first_words(error)})"
        raise UnknownModelError(asked, found, f"fetch it where there is a network: {_fetch(repository)}") from error


def _is_wanted(name: str) -> bool:
    """Whether a file of a repository is downloaded."""
    return any(fnmatch(name, part) for part in WANTED) and not any(fnmatch(name, part) for part in UNWANTED)


def _asked(repository: str, spec: str) -> str:
    return f"hub model {repository}" + ("" if spec == repository else f" ({spec})")


def _fetch(repository: str) -> str:
    return f"hf download {repository}"


def _not_here(repository: str, spec: str) -> UnknownModelError:
    return UnknownModelError(
        _asked(repository, spec),
        f"{_lacking(repository)} not in the local cache, and downloads are forbidden (offline)",
        f"fetch it where there is a network: {_fetch(repository)}",
    )


def _cached(repository: str) -> Path | None:
    """Where the local cache keeps a repository, as far as it has it; nobody is asked whether there is a newer one."""
    import huggingface_hub as hub

    config = hub.try_to_load_from_cache(repository, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _lacking(repository: str) -> str:
    """The files of a repository that the local cache lacks, in words; empty where it has all that is needed."""
    local = _cached(repository)
    if local is None:
        return "it is"
    shards = [SINGLE] if (local / SINGLE).exists() else sorted(_shards(local))
    missing = [shard for shard in shards if not (local / shard).exists()]
    if missing or not shards:
        return f"{', '.join(missing[:4]) or 'its weights (*.safetensors)'} {'is' if len(missing) == 1 else 'are'}"
    return "" if any((local / name).exists() for name in TOKENIZER_FILES) else "its tokenizer is"


def check_directory(path: Path, *, trust_remote_code: bool = False) -> None:
    """Raise a worded error unless ``path`` is a causal language model in safetensors, with config and tokenizer."""
    if not path.is_dir():
        raise CheckpointError(f"model directory {path}", "a file", "give the folder that holds config.json")
    config = _config(path)
    _check_code(path, config, trust_remote_code)
    _check_causal(path, config)
    _check_packages(path, config)
    if not any((path / name).exists() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"a tokenizer in {path}",
            f"none of {', '.join(TOKENIZER_FILES)}",
            "save the tokenizer beside the model: tokenizer.save_pretrained(directory)",
        )
    _check_weights(path)


def _check_code(path: Path, config: Mapping[str, Any], trusted: bool) -> None:
    """Refuse a model that only its own Python can build; where transformers knows the type, that Python is not run."""
    if config.get("auto_map") and not trusted and not _is_native(str(config["model_type"])):
        raise _needs_code(path, "its config names Python code of its own (auto_map), which loading would run")


def _needs_code(path: Path, found: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f"load {path}", found, "read that code, then allow it with --swcheck-trust-remote-code"
    )


def _is_native(model_type: str) -> bool:
    """Whether transformers has a folder for this type; it is looked for without importing transformers."""
    spec = find_spec("transformers")
    folder = model_type.replace("-", "_")
    return bool(spec and spec.origin and folder and (Path(spec.origin).parent / "models" / folder).is_dir())


def _check_causal(path: Path, config: Mapping[str, Any]) -> None:
    architectures = [str(name) for name in config.get("architectures") or []]
    two_sided = config.get("is_encoder_decoder") is True
    if two_sided or (architectures and not any(name.endswith(CAUSAL) for name in architectures)):
        named = ", ".join(architectures) or str(config["model_type"])
        raise ArchitectureError(
            f"a causal language model in {path}",
            f"{named}, {'an encoder with a decoder' if two_sided else 'without a causal head'}",
            "give the checkpoint of a decoder with its head, as LlamaForCausalLM",
        )


def _check_packages(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a quantized checkpoint whose packages are not here, with the line that installs them."""
    method, wanted = missing_packages(config)
    if wanted:
        line = f"pip install {shlex.join(requirement for _, requirement in wanted)}"
        names = ", ".join(module for module, _ in wanted)
        raise EngineError(f"load {path}, quantized by {method}", f"not installed: {names}", line)


def _config(path: Path) -> dict[str, Any]:
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
    config = _json(file)
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"a model_type in {file}", "none", "give a config.json that transformers wrote")
    return config


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"JSON in {file}", _first_words(error), "repair the file, or fetch it again") from error


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
    wanted = [SINGLE] if (path / SINGLE).exists() else sorted(_shards(path))
    if not wanted:
        found = f"{files[0].name}, but neither {SINGLE} nor {INDEX}"
        raise CheckpointError(f"weights in {path}", found, "save the model with save_pretrained")
    for name in wanted:
        if not (path / name).exists():
            there = f"it lists {len(wanted)} files, of which {name} is not there"
            raise CheckpointError(f"the weights that {path / INDEX} lists", there, "fetch the missing file")
        check_safetensors(path / name)


def _shards(path: Path) -> set[str]:
    """The files that the index of a sharded checkpoint names; none where there is no index."""
    file = path / INDEX
    if not file.exists():
        return set()
    listed = _json(file)
    places = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"a weight_map in {file}", "none", "repair the file, or fetch it again")
    return set(places.values())


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
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            found = f"a malformed header ({_first_words(error)})"
            raise CheckpointError(f"safetensors in {file}", found, "fetch the file again") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise CheckpointError(
            f"safetensors in {file}",
            f"{size} bytes where its header says {expected}: the file is {'cut off' if size < expected else 'too long'}",
            "fetch the file again",
        )


def tokenizer_of(path: Path, trusted: bool) -> Any:
    """The tokenizer of a directory, without its model."""
    with _quiet():
        return _tokenizer(path, trusted)


def _understood(path: Path, trusted: bool) -> Any:
    """The config as transformers reads it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # transformers raises nearly anything for files it cannot make sense of
        attempt = "give a config.json that this version of transformers can read"
        raise _unloadable(f"the config in {path}", path, error, attempt) from error


def _check_method(path: Path, config: Any) -> None:
    """Refuse a quantization that transformers does not know: it would take the codes for plain floats, or drop them."""
    from transformers.quantizers import AutoHfQuantizer

    found = getattr(config, "quantization_config", None)
    if not isinstance(found, Mapping) or not found:
        return
    method, known = found.get("quant_method"), False
    with suppress(ValueError):  # raised where the config names no method
        known = bool(AutoHfQuantizer.supports_quant_method(found))
    if not known:
        raise EngineError(
            f"load {path}, quantized by {method or 'a method without a name'}",
            "this version of transformers knows no such method and would load it as if it were not quantized",
            "the engine that made it, or take quantization_config out of config.json if its weights are plain floats",
        )


def _tokenizer(path: Path, trusted: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # as above
        raise _unloadable(f"the tokenizer in {path}", path, error, "fetch its files again") from error
    # A text is encoded whole and cut into windows; that it is longer than one is no news.
    getattr(tokenizer, "deprecation_warnings", {})["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _model(path: Path, config: Any, dtype: str, trusted: bool, **placing: Any) -> Any:
    from transformers import AutoModelForCausalLM

    together = "check that weights and config.json belong together"
    try:
        with captured():  # a quantizer's package that is imported now may have a banner
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=trusted,
                **{name: wish for name, wish in placing.items() if wish is not None},
            )
    except Exception as error:  # as above
        raise _unloadable(f"load {path} with transformers", path, error, together) from error
    missing, other = sorted(info.get("missing_keys") or ()), sorted(info.get("mismatched_keys") or ())
    if missing:
        found = f"{len(missing)} of its tensors are missing, first {missing[0]}"
        raise CheckpointError(f"all weights of {path}", found, together)
    if other:
        name, here, wanted = other[0]
        found = f"{len(other)} of another shape, first {name}: {_by(here)} where the config says {_by(wanted)}"
        raise CheckpointError(f"the weights of {path}", found, together)
    spare = sorted(info.get("unexpected_keys") or ())
    if spare:
        sys.stderr.write(f"swcheck: {path} has {len(spare)} tensors that the model does not use, first {spare[0]}\n")
    return model


def _settled(model: Any, path: Path) -> Any:
    """A quantized model after its first pass: some unpack only there, and cannot be read before.

    bitsandbytes' repacking for one kind of CPU is switched off first: it spoils what is read or saved after a pass.
    Where the codes in memory are not those of the directory any more (GPTQModel moves zero points on loading and repacks
    in the first pass), a save would be another model: it is refused.
    """
    import torch

    if getattr(model, "hf_quantizer", None) is None:
        return model
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    try:
        with captured(), torch.no_grad():
            model.eval()(torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    except Exception as error:  # a kernel raises whatever it likes for a dtype or a width that it does not know
        found = f"{type(error).__name__}: {_first_words(error)}"
        attempt = "another --swcheck-dtype: some kernels know bfloat16 alone"
        raise CheckpointError(f"a first pass of {path}", found, attempt) from error
    repacked = _repacked(model, path)
    if repacked is not None:
        model.save_pretrained = _refusal(path, repacked)
    return model


def _repacked(model: Any, path: Path) -> str | None:
    """The first tensor of codes that is in memory another one than in the directory, as far as a few layers tell."""
    from safetensors import safe_open

    state = model.state_dict()
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            codes: list[str] = [
                name for name in sorted(stored.keys()) if name in state and not state[name].is_floating_point()
            ]
            for name in codes[:LOOKED_AT]:
                if not state[name].cpu().equal(stored.get_tensor(name)):
                    return name
    return None


def _refusal(path: Path, name: str) -> Callable[..., None]:
    def save_pretrained(*_args: Any, **_keywords: Any) -> None:
        found = f"{name} in memory is not what the directory holds any more"
        raise CheckpointError(f"save what was loaded from {path}", found, "copy the directory: it is the checkpoint")

    return save_pretrained


def _by(shape: Any) -> str:
    return " x ".join(str(size) for size in shape)


def _unloadable(asked: str, path: Path, error: Exception, attempt: str) -> SwcheckError:
    words = _first_words(error)
    if "trust_remote_code" in str(error) or "custom code" in words:
        return _needs_code(path, "it brings Python code of its own (auto_map), which loading would run")
    return CheckpointError(asked, f"{type(error).__name__}: {words}", attempt)


def _first_words(error: BaseException) -> str:
    """The first lines of an error, as one line of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = " ".join(lines[:2])
    return words if len(words) <= 200 else f"{words[:197]}..."


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading without transformers' own progress bars and warnings, and without those of what it imports.

    What matters is raised; a run under ``-W error`` is not ended by the deprecations of packages that merely stand by.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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


def device_of(name: str | None) -> torch.device:
    """The device of this name, or an accelerator if there is one; raises ``OptionError`` where it cannot be used."""
    import torch

    if name is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    attempt = "leave it out to use what this machine has"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {name!r}", _first_words(error), attempt) from error
    if device.type == "meta":
        raise OptionError(f"device {name!r}", "it holds no numbers", attempt)
    return device


def _moved(model: Any, device: torch.device, spec: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, MemoryError) as error:
        attempt = "a smaller --swcheck-dtype, or another --swcheck-device"
        raise OptionError(f"{spec} on {device}", _first_words(error), attempt) from error


def kv_cache(model: Any) -> Callable[[], Any]:
    """What makes a new key-value cache as the checkpoint's generation config asks for: quantized, else a plain one.

    Raises ``OptionError`` where what quantizes it is not installed.
    """
    from transformers.cache_utils import DynamicCache, QuantizedCache

    config, generation = model.config.get_text_config(decoder=True), getattr(model, "generation_config", None)
    if getattr(generation, "cache_implementation", None) != "quantized":
        return lambda: DynamicCache(config=config)
    asked: Any = getattr(generation, "cache_config", None) or {}
    options = {**(asked if isinstance(asked, Mapping) else asked.to_dict())}
    options.pop("config", None)
    backend = str(options.pop("backend", "quanto"))
    try:
        QuantizedCache(backend, config, **options)
    except (ImportError, TypeError, ValueError) as error:
        found = " ".join(str(error).split())
        raise OptionError(f"the {backend} cache of this checkpoint", found, f"pip install {backend.lower()}") from error
    return lambda: QuantizedCache(backend, config, **options)
