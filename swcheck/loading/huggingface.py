"""The built-in loader: directories, hub ids and the embedded models, through transformers.

Where a model lies is the hub's to say, and what is wrong with its files the checkpoint's, before transformers sees it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import CheckpointError, EngineError, OptionError, SwcheckError, brief_message
from swcheck.base.isolation import captured_output
from swcheck.base.records import Loaded
from swcheck.loading import tiny
from swcheck.loading.checkpoint import check_directory, needs_code
from swcheck.loading.hub import find, name_of
from swcheck.loading.scheme_from_config import scheme_of

if TYPE_CHECKING:
    import torch

LOOKED_AT: Final = 32
"""How many tensors of codes a file are held against it after the first pass: kernels repack all or none."""


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
        with captured_output():  # a quantizer's package that is imported now may have a banner
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
        with captured_output(), torch.no_grad():
            model.eval()(torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    except Exception as error:  # a kernel raises whatever it likes for a dtype or a width that it does not know
        found = f"{type(error).__name__}: {brief_message(error)}"
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
    words = brief_message(error)
    if "trust_remote_code" in str(error) or "custom code" in words:
        return needs_code(path, "it brings Python code of its own (auto_map), which loading would run")
    return CheckpointError(asked, f"{type(error).__name__}: {words}", attempt)


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
        raise OptionError(f"device {name!r}", brief_message(error), attempt) from error
    if device.type == "meta":
        raise OptionError(f"device {name!r}", "it holds no numbers", attempt)
    return device


def _moved(model: Any, device: torch.device, spec: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, MemoryError) as error:
        attempt = "a smaller --swcheck-dtype, or another --swcheck-device"
        raise OptionError(f"{spec} on {device}", brief_message(error), attempt) from error


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
