"""The built-in loader: directories, hub ids and the embedded models, loaded with transformers.

``hub`` finds the directory and ``checkpoint`` validates its files before transformers reads them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import CheckpointError, EngineError, OptionError, SwcheckError, brief_message
from swcheck.base.isolation import captured_output, panics_as_errors
from swcheck.base.records import Loaded
from swcheck.base.terminal.visible import tell
from swcheck.loading import tiny
from swcheck.loading.checkpoint import check_directory, own_code_error
from swcheck.loading.files.safetensors_header import read_header, safetensors_files, tensor_bytes
from swcheck.loading.files.tokenizer_file import check_encoding, check_tokenizer
from swcheck.loading.hub import find_directory, name_of
from swcheck.loading.parallel.group import checked_launch, placement
from swcheck.loading.scheme_from_config import scheme_of
from swcheck.loading.streaming.pager import page_weights, watch_files
from swcheck.loading.streaming.streamable import StreamRequest, too_little_memory

if TYPE_CHECKING:
    import torch

COMPARED_PER_FILE: Final = 32
"""How many integer tensors (codes) of each file are compared with those in memory after the first forward pass.

A few are enough, because a kernel repacks all of them or none.
"""

OUT_OF_MEMORY: Final = ("unable to mmap", "cannot allocate memory", "not enough memory", "out of memory")
"""What torch, safetensors and the operating system say where memory, or room for a map of a file, is lacking."""

MORE_PARAMETERS: Final = 2**24
"""So many parameters more than the files have bits are allowed: 64 MB, whatever a small config says."""


@dataclass(frozen=True)
class HuggingFace:
    """The engine ``huggingface``.

    ``trust_remote_code`` lets a checkpoint run its own Python code, ``offline`` forbids downloads. ``device_map``
    spreads a model over devices, main memory and disk with accelerate. ``stream`` reads the weights from the disk when
    they are used; None does so for a model that does not fit into memory. ``tensor_parallel`` shares the weights among
    the processes of torchrun, on the accelerator of each, else on the CPU.
    """

    name: str = "huggingface"
    trust_remote_code: bool = False
    offline: bool = False
    device_map: str | Mapping[str, str] | None = None
    stream: bool | None = None
    tensor_parallel: bool = False

    def load(
        self, spec: str, *, reference: str | None = None, device: str | None = None, dtype: str | None = None
    ) -> Loaded:
        """Load ``tiny``, a known name, a hub id or a directory: see ``swcheck.load``. ``reference`` is ignored."""
        del reference
        is_placed = self.device_map is not None or (self.tensor_parallel and checked_launch().count > 1)
        target = None if is_placed else device_of("cpu" if self.stream and device is None else device)
        if spec in tiny.CHECKPOINTS:
            directory, text = tiny.CHECKPOINTS[spec], tiny.HELDOUT.read_text(encoding="utf-8")
        else:
            directory, text = find_directory(spec, offline=self.offline), None
        check_directory(directory, trust_remote_code=self.trust_remote_code)
        with _silenced_loading():
            config = _load_config(directory, self.trust_remote_code)
            _check_quantization_method(directory, config)
            _check_parameter_count(directory, config, self.trust_remote_code)
            empty = partial(model_without_weights, config, trusted=self.trust_remote_code)
            streams = StreamRequest(directory, config.to_dict(), target, dtype, self.stream).is_granted(empty)
            tokenizer = _load_tokenizer(directory, self.trust_remote_code)
            placed = placement(empty(), spec) if self.tensor_parallel else {"device_map": self.device_map}
            model, unused = _load_model(directory, config, dtype or "auto", self.trust_remote_code, **placed)
            model = _after_first_pass(model if target is None else _moved_to_device(model, target, spec), directory)
            scheme = scheme_of(config.to_dict())
        (page_weights if streams else watch_files)(model, safetensors_files(directory))
        return Loaded(model, tokenizer, name_of(spec), text, str(directory), scheme, unused)


ENGINE: Final = HuggingFace()


def tokenizer_of(path: Path, trusted: bool) -> Any:
    """Load the tokenizer of a directory without its model. ``trusted`` allows the checkpoint's own Python code."""
    with _silenced_loading():
        return _load_tokenizer(path, trusted)


def _load_config(path: Path, trusted: bool) -> Any:
    """Return the config as transformers reads it. Raises a ``SwcheckError`` if transformers cannot read it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trusted)
    except Exception as error:  # transformers raises exceptions of many types for bad files
        attempt = "give a config.json that this version of transformers can read"
        raise _loading_error(f"the config in {path}", path, error, attempt) from error


def _check_quantization_method(path: Path, config: Any) -> None:
    """Raise ``EngineError`` for a quantization method that transformers does not know.

    Transformers would load its integer codes as if they were plain floats, or drop them.
    """
    from transformers.quantizers import AutoHfQuantizer

    quantization = getattr(config, "quantization_config", None)
    if not isinstance(quantization, Mapping) or not quantization:
        return
    method, known = quantization.get("quant_method"), False
    with suppress(ValueError):  # raised if the config names no method
        known = bool(AutoHfQuantizer.supports_quant_method(quantization))
    if not known:
        raise EngineError(
            f"load {path}, quantized by {method or 'a method without a name'}",
            "this version of transformers knows no such method and would load it as if it were not quantized",
            "the engine that made it, or take quantization_config out of config.json if its weights are plain floats",
        )


def _check_parameter_count(path: Path, config: Any, trusted: bool) -> None:
    """Raise ``CheckpointError`` for a config of more parameters than the files have bits.

    Transformers would fill what is missing with random numbers, and take the memory for it. The model is built without
    memory to count them, where a number in the config is larger than any side of a tensor.
    """
    headers = [read_header(file) for file in safetensors_files(path)]
    largest = max((side for header in headers for one in header.tensors.values() for side in one.shape), default=0)
    if max(_whole_numbers(config.to_dict()), default=0) <= largest:
        return
    count, bits = 0, 8 * tensor_bytes(path)
    with suppress(Exception):  # what cannot be built is refused, in words, when it is loaded
        count = sum(part.numel() for part in model_without_weights(config, trusted=trusted).parameters())
    if count > bits + MORE_PARAMETERS:
        found = f"its config has {count:,} parameters, and the files {bits // 8:,} bytes"
        attempt = "check that weights and config.json belong together"
        raise CheckpointError(f"the weights of {path}", found, attempt)


def model_without_weights(config: Any, *, trusted: bool) -> Any:
    """Return the model that a config describes, on the ``meta`` device, which takes no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)


def model_of_config(directory: Path) -> Any:
    """Return the model that the config in ``directory`` describes, without weights and without code of its own."""
    from transformers import AutoConfig

    return model_without_weights(AutoConfig.from_pretrained(directory, local_files_only=True), trusted=False)


def _whole_numbers(value: Any) -> Iterator[int]:
    """Yield every whole number in a config, those of its parts too."""
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    for part in parts:
        yield from _whole_numbers(part)
    if isinstance(value, int):
        yield value


def _load_tokenizer(path: Path, trusted: bool) -> Any:
    from transformers import AutoTokenizer

    check_tokenizer(path)
    try:
        with panics_as_errors():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=trusted)
            check_encoding(tokenizer)
    except Exception as error:  # as above
        raise _loading_error(f"the tokenizer in {path}", path, error, "fetch its files again") from error
    # A text is encoded whole and then cut into windows: the warning that it is longer than the context is of no use.
    getattr(tokenizer, "deprecation_warnings", {})["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _load_model(path: Path, config: Any, dtype: str, trusted: bool, **placement: Any) -> tuple[Any, tuple[str, ...]]:
    """Return the model, and the names of the tensors that it does not use.

    Raises ``CheckpointError`` if tensors are missing or have another shape.
    """
    from transformers import AutoModelForCausalLM

    attempt = "check that weights and config.json belong together"
    try:
        with captured_output():  # a package of a quantizer may print a banner when it is imported
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=trusted,
                **{name: value for name, value in placement.items() if value is not None},
            )
    except Exception as error:  # as above
        raise _loading_error(f"load {path} with transformers", path, error, attempt) from error
    missing, mismatched = sorted(info.get("missing_keys") or ()), sorted(info.get("mismatched_keys") or ())
    if missing:
        found = f"{len(missing)} of its tensors are missing, first {missing[0]}"
        raise CheckpointError(f"all weights of {path}", found, attempt)
    if mismatched:
        name, stored, expected = mismatched[0]
        found = (
            f"{len(mismatched)} of another shape, first {name}: {_format_shape(stored)} "
            f"where the config says {_format_shape(expected)}"
        )
        raise CheckpointError(f"the weights of {path}", found, attempt)
    unused = sorted(info.get("unexpected_keys") or ())
    if unused:
        tell(f"{path} has {len(unused)} tensors that the model does not use, first {unused[0]}")
    return model, tuple(unused)


def _after_first_pass(model: Any, path: Path) -> Any:
    """Run a first forward pass of a quantized model and return the model. Others are returned unchanged.

    Some quantized layers unpack their weights only in that pass and cannot be read before. bitsandbytes' repacking for
    CPUs with AVX-512 BF16 is switched off first: it spoils what is read or saved after a pass. If the integer codes in
    memory then differ from those on disk (GPTQModel shifts zero points on loading and repacks in the first pass), a
    saved copy would be another model, so that ``save_pretrained`` is replaced by an error.
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
    except Exception as error:  # kernels raise many types for an unsupported dtype or width
        found = f"{type(error).__name__}: {brief_message(error)}"
        attempt = "another --swcheck-dtype: some kernels know bfloat16 alone"
        raise CheckpointError(f"a first pass of {path}", found, attempt) from error
    repacked = _repacked_tensor(model, path)
    if repacked is not None:
        model.save_pretrained = _refusing_save(path, repacked)
    return model


def _repacked_tensor(model: Any, path: Path) -> str | None:
    """Return the name of the first integer tensor that differs in memory from its file, None if there is none.

    Only the first ``COMPARED_PER_FILE`` of each file are compared.
    """
    from safetensors import safe_open

    state = model.state_dict()
    for file in safetensors_files(path):
        with safe_open(file, framework="pt") as stored:
            codes: list[str] = [
                name for name in sorted(stored.keys()) if name in state and not state[name].is_floating_point()
            ]
            for name in codes[:COMPARED_PER_FILE]:
                if not state[name].cpu().equal(stored.get_tensor(name)):
                    return name
    return None


def _refusing_save(path: Path, name: str) -> Callable[..., None]:
    """Return a replacement for ``save_pretrained`` that raises ``CheckpointError``."""

    def save_pretrained(*_args: Any, **_keywords: Any) -> None:
        found = f"{name} in memory is not what the directory holds any more"
        raise CheckpointError(f"save what was loaded from {path}", found, "copy the directory: it is the checkpoint")

    return save_pretrained


def _format_shape(shape: Any) -> str:
    return " x ".join(str(size) for size in shape)


def _loading_error(asked: str, path: Path, error: Exception, attempt: str) -> SwcheckError:
    """Return the ``SwcheckError`` for an exception that transformers raised while it loaded ``path``."""
    message = brief_message(error)
    if "trust_remote_code" in str(error) or "custom code" in message:
        return own_code_error(path, "it brings Python code of its own (auto_map), which loading would run")
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
        return too_little_memory(path)
    return CheckpointError(asked, f"{type(error).__name__}: {message}", attempt)


@contextmanager
def _silenced_loading() -> Iterator[None]:
    """Suppress all warnings inside the block, and the log messages and progress bars of transformers.

    What matters is raised as an error. A pytest run with ``-W error`` must not fail for deprecations in packages that
    loading a model imports.
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
    """Return the device of this name; for None the accelerator if there is one, else the CPU.

    Raises ``OptionError`` if the device cannot be used.
    """
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


def _moved_to_device(model: Any, device: torch.device, spec: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, MemoryError) as error:
        attempt = "a smaller --swcheck-dtype, or another --swcheck-device"
        raise OptionError(f"{spec} on {device}", brief_message(error), attempt) from error
