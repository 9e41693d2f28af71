"""What will go wrong, seen from a config and the headers of safetensors files alone, before anything is loaded.

A quantizer that meets a width which its groups do not divide says so after its calibration, and one that knows linear
layers alone skips fused experts without a word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swcheck.base.errors import CheckpointError, SwcheckError
from swcheck.base.formatting import format_size
from swcheck.loading import engines
from swcheck.loading.checkpoint_size import checkpoint_size
from swcheck.loading.files.config_file import read_config
from swcheck.loading.files.safetensors_header import StoredTensor, read_header, safetensors_files
from swcheck.run.settings import Settings

GROUP: Final = re.compile(r"(?:^|[^a-z])(?:group(?:[_-]?size)?|block|gs|g)[=_-]?(\d+)", re.IGNORECASE)
FORMATS: Final[Mapping[str, int]] = {
    r"(?:^|\W)(?:i?q[2-6]_k|iq\w+)": 256,
    r"(?:^|\W)q[4-8]_[01]": 32,
    "nvfp4": 16,
    "mxfp4|mxfp8": 32,
}
"""Formats whose groups have a size of their own, as patterns: the super-blocks of k-quants, the blocks of fp4."""

LAYER: Final = re.compile(r"\.\d+\.")
OUTSIDE: Final = ("embed", "wte", "wpe", "lm_head", "shared.weight", "norm", "router", "gate.weight")
"""Matrices with such names are usually not quantized."""

BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
LARGEST_HALF: Final = 65_504
MOST_NAMED: Final = 4


@dataclass(frozen=True)
class Remark:
    """One thing that was seen: ``blocks`` if a quantizer will fail over it, or skip weights without a word."""

    what: str
    words: str
    attempt: str = ""
    blocks: bool = True

    def __str__(self) -> str:
        return f"{self.what}: {self.words}" + (f"; {self.attempt}" if self.attempt else "")


def group_size(scheme: str) -> int | None:
    """Return the number of weights that share a scale, as a scheme says it; None if it does not."""
    found = GROUP.search(scheme)
    if found:
        return int(found[1]) or None
    return next((size for words, size in FORMATS.items() if re.search(words, scheme.lower())), None)


def remarks(directory: Path, scheme: str = "", dtype: str | None = None) -> list[Remark]:
    """Return what can be seen of a checkpoint in ``directory``, to be quantized by ``scheme`` or loaded as ``dtype``.

    Raises ``CheckpointError`` for a file that is no safetensors, or a directory without any.
    """
    files = safetensors_files(directory)
    tensors = {name: tensor for file in files for name, tensor in read_header(file).tensors.items()}
    if not tensors:
        raise CheckpointError(
            f"the headers of {directory}", "no safetensors file", "a directory in the transformers format"
        )
    size = group_size(scheme)
    return [
        *(_widths(tensors, size) if size else ()),
        *(_experts(tensors) if scheme else ()),
        *_range(directory, dtype),
        *_memory(directory, dtype),
    ]


def _widths(tensors: Mapping[str, StoredTensor], size: int) -> Iterator[Remark]:
    """Yield a remark for each width (input channels) of a layer's matrices that groups of ``size`` do not divide."""
    by_width: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        outside = any(word in name.lower() for word in OUTSIDE) or not LAYER.search(name)
        if len(tensor.shape) == 2 and not outside and tensor.shape[1] % size:
            by_width.setdefault(tensor.shape[1], []).append(name)
    for width, names in by_width.items():
        best = next(group for group in (128, 64, 32, 16, 8, 4, 2, 1) if group < size and width % group == 0)
        words = f"{width:,} input channels are no multiple of {size}: {_named(names)}"
        yield Remark("group size", words, f"groups of {best}, or leave these matrices out")


def _experts(tensors: Mapping[str, StoredTensor]) -> Iterator[Remark]:
    fused = [name for name, tensor in tensors.items() if len(tensor.shape) == 3 and "expert" in name.lower()]
    if fused:
        share = sum(tensors[name].count for name in fused) / sum(tensor.count for tensor in tensors.values())
        words = f"{share:.0%} of the parameters are experts in one tensor a layer, no nn.Linear: {_named(fused)}"
        yield Remark(
            "fused experts", words, "a quantizer that replaces nn.Linear skips them; check that yours unpacks them"
        )


def _range(directory: Path, dtype: str | None) -> Iterator[Remark]:
    stored = checkpoint_size(directory)
    if dtype == "float16" and stored is not None and stored.dtype == "bfloat16":
        words = f"float16 ends at {LARGEST_HALF:,}, and this checkpoint was made in bfloat16, which does not"
        yield Remark("range", words, "look at the super activation first: swcheck locate", blocks=False)


def _memory(directory: Path, dtype: str | None) -> Iterator[Remark]:
    stored, memory = checkpoint_size(directory), machine_memory()
    if stored is None or memory is None:
        return
    needed = stored.parameters * BYTES.get(dtype or stored.dtype, 4)
    if needed > memory:
        words = f"{format_size(needed)} of weights, and this machine has {format_size(memory)}"
        yield Remark("memory", words, "they are read from their files again in every pass", blocks=False)


def gate_lines(settings: Settings) -> list[str]:
    """Return what the quantizers of a gate will stumble over; nothing about candidates that are read from files.

    The built-in quantizer cuts blocks across rows, and stumbles over no width.
    """
    lines = []
    for spec in settings.candidates:
        if engines.needs_reference(spec) and not spec.startswith("rtn:"):
            with suppress(SwcheckError, OSError):  # an error is reported when the model is loaded
                directory = engines.directory_of(settings.models[0])
                found = [] if directory is None else remarks(directory, spec)
                lines += [f"{spec}: {remark}" for remark in found if remark.blocks]
    return lines


def machine_memory() -> int | None:
    """Return the main memory of this machine in bytes; None where the system does not say."""
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _named(names: Sequence[str]) -> str:
    """Return names without the number of their layer, each once, with how many there are."""
    short = list(dict.fromkeys(LAYER.sub(".*.", name).removesuffix(".weight") for name in names))
    more = f" and {len(short) - MOST_NAMED} more" if len(short) > MOST_NAMED else ""
    return f"{', '.join(short[:MOST_NAMED])}{more} ({len(names)} tensor{'s' * (len(names) > 1)})"


def quantization_of(directory: Path) -> str:
    """Return words for the scheme that a checkpoint says it has already; empty if it says none."""
    with suppress(CheckpointError):
        found = read_config(directory).get("quantization_config")
        if isinstance(found, Mapping):
            return f"already quantized: {found.get('quant_method', 'by an unnamed method')}"
    return ""
