"""Read the size of a checkpoint from the headers of its safetensors files, without loading it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import CheckpointError
from swcheck.loading.files.config_file import read_config
from swcheck.loading.files.safetensors_header import read_header, safetensors_files

BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The bytes that a parameter takes, by the dtype that it is loaded in."""


@dataclass(frozen=True)
class CheckpointSize:
    """The size of a checkpoint: ``size`` in bytes, the number of parameters, the shape of the largest matrix.

    ``dtype`` is the dtype in which it is loaded: the config's, else that of the largest matrix. ``context`` is its
    context length in tokens, None if the config does not give it.
    """

    size: int
    parameters: int
    largest: tuple[int, int]
    dtype: str
    context: int | None = None


def checkpoint_size(directory: Path) -> CheckpointSize | None:
    """Return the size of a checkpoint, read from the headers of its safetensors files; None if it has none.

    Raises ``CheckpointError`` for a file that is no safetensors. A config that cannot be read is left out.
    """
    files = safetensors_files(directory)
    tensors = [tensor for file in files for tensor in read_header(file).tensors.values()]
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    if not matrices:
        return None
    largest = max(matrices, key=lambda tensor: tensor.count)
    total, size = sum(tensor.count for tensor in tensors), sum(file.stat().st_size for file in files)
    stored = {"BF16": "bfloat16", "F16": "float16"}.get(largest.dtype, "float32")
    config: dict[str, Any] = {}
    with suppress(CheckpointError):
        config = read_config(directory)
    named = config.get("dtype") or config.get("torch_dtype")
    return CheckpointSize(
        size,
        total,
        (largest.shape[0], largest.shape[1]),
        named if isinstance(named, str) else stored,
        config.get("max_position_embeddings") or None,
    )
