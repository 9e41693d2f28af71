"""Which checkpoints are streamed: those that do not fit into memory, if transformers uses their tensors as they are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import CheckpointError, OptionError
from swcheck.base.formatting import format_size
from swcheck.base.terminal.visible import tell
from swcheck.loading.files.safetensors_header import StoredTensor, read_header, safetensors_files, tensor_bytes
from swcheck.loading.streaming.free_memory import free_addresses, free_memory
from swcheck.loading.streaming.mapped_pages import can_give_back

if TYPE_CHECKING:
    import torch
    from torch import nn

BESIDE: Final = 2**30
"""So many bytes are kept free for torch, transformers and what passes through a model."""
MOST_COPIED: Final = 0.1
"""At most this share of the bytes may be copied when a streamed model is loaded, such as norms in another dtype."""
STORED: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class StreamRequest:
    """A checkpoint that may be streamed.

    ``config`` are its fields. ``device`` is where the model is to be, None for several devices; ``dtype`` how it is to be
    loaded, None for as the config says. ``wanted`` says whether to stream it; None if it does not fit into memory.
    """

    directory: Path
    config: Mapping[str, Any]
    device: torch.device | None
    dtype: str | None
    wanted: bool | None

    def is_granted(self, model: Callable[[], nn.Module]) -> bool:
        """Return whether to stream; ``model`` makes what the config describes, on the ``meta`` device.

        A checkpoint that is too large and cannot be streamed is told of. Raises ``OptionError`` where streaming is wanted
        and not possible.
        """
        on_cpu = self.device is not None and self.device.type == "cpu"
        reason = "" if self.wanted or not on_cpu else too_large(self.directory)
        if self.wanted is False or not (self.wanted or reason):
            return False
        found, attempt = self._obstacle(model) if on_cpu else ("it runs on the CPU alone", "--device=cpu")
        if found and self.wanted:
            raise OptionError(f"stream {self.directory}", found, attempt)
        if not reason:
            return True
        what = (
            f"cannot be streamed: {found}{f'; try {attempt}' if attempt else ''}"
            if found
            else "its weights are read from the disk when they are used"
        )
        tell(f"{self.directory} does not fit into memory ({reason}); {what}")
        return not found

    def _obstacle(self, model: Callable[[], nn.Module]) -> tuple[str, str]:
        if not can_give_back():
            return "this system does not show which pages of memory are those of files; Linux does", ""
        dtype = self.dtype or str(self.config.get("dtype") or "float32").removeprefix("torch.")
        return why_whole(self.directory, self.config, model(), dtype)


def too_large(directory: Path) -> str:
    """Return in words why a checkpoint does not fit into the memory that is free; empty where it does, or it is not known."""
    free, size = free_memory(), tensor_bytes(directory)
    if free is None or size + BESIDE <= free.size:
        return ""
    return f"{format_size(size)}, and {format_size(free.size)} are free: {free.source}"


def too_little_memory(directory: Path) -> CheckpointError:
    """Return the error for a checkpoint that memory, or room for the maps of its files, was lacking for."""
    size = tensor_bytes(directory)
    bounds = [bound for bound in (free_memory(), free_addresses()) if bound is not None]
    least = min(bounds, key=lambda bound: bound.size, default=None)
    found = f"its files have {format_size(size)}" + (
        "" if least is None else f", and {format_size(least.size)} are left by {least.source}"
    )
    attempt = "more memory, or swcheck locate --stream (--swcheck-stream), which reads the weights as they are used"
    if least is not None and "address" in least.source:
        attempt = "ulimit -v unlimited: the files are mapped, which takes addresses and no memory"
    elif least is not None and size <= least.size:
        attempt += (
            "; Linux maps no file larger than all memory unless vm.overcommit_memory is 1: save it in smaller shards"
        )
    return CheckpointError(f"load {directory}: memory ran out", found, attempt)


def why_whole(directory: Path, config: Mapping[str, Any], model: nn.Module, dtype: str) -> tuple[str, str]:
    """Return in words why a checkpoint can be loaded only whole, and what to try; two empty texts where it can be streamed.

    ``model`` is the model that the config describes, on the ``meta`` device; ``dtype`` is how it is to be loaded.
    """
    quantization = config.get("quantization_config") or config.get("compression_config")
    if quantization:
        method = quantization.get("quant_method") or "a quantizer"
        return f"its weights are packed by {method}, and transformers loads those whole", ""
    stored: dict[str, StoredTensor] = {}
    for file in safetensors_files(directory):
        stored |= read_header(file).tensors
    total = sum(one.end - one.begin for one in stored.values())
    others = [one for one in stored.values() if one.dtype != STORED.get(dtype)]
    if sum(one.end - one.begin for one in others) > MOST_COPIED * total:
        kept = next((name for name, short in STORED.items() if short == others[0].dtype), "")
        found = f"its tensors are stored as {others[0].dtype} and loaded as {dtype}: they would be converted whole"
        return found, f"--dtype={kept}" if kept else ""
    shapes = {tail_of(name): tuple(one.shape) for name, one in model.named_parameters()}
    merged = [name for name, one in stored.items() if shapes.get(tail_of(name)) != one.shape]
    if sum(stored[name].end - stored[name].begin for name in merged) > MOST_COPIED * total:
        found = f"transformers makes other tensors of its own when it loads them whole, first {min(merged)}"
        return found, f"swcheck merge-experts {directory} OUT, once, and OUT in its place"
    return "", ""


def tail_of(name: str) -> str:
    """Return the name of a tensor from the number of its layer on, or its last two parts: a prefix may differ."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[-2:] if number is None else parts[number - 1 :])
