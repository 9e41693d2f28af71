"""Read single tensors of a checkpoint on disk without loading the model. The files are memory-mapped."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from swcheck.base.errors import brief_message
from swcheck.loading.files.safetensors_header import safetensors_files, tensor_bytes

__all__ = ["read_tensor", "tensor_bytes"]


def read_tensor(directory: Path, name: str) -> torch.Tensor | str:
    """Return the tensor ``name`` of a checkpoint, or a sentence that says why it cannot be read.

    If no tensor has that name, the leading parts of ``name`` are dropped one by one until a tensor has this name or
    ends with it. The match must be unique. A model and its files may name a tensor with different prefixes, but from
    the list of layers, or from the embedding, on the names are the same.
    """
    file_of: dict[str, Path] = {}
    try:
        for file in safetensors_files(directory):
            with safe_open(file, framework="pt") as stored:
                file_of |= dict.fromkeys(stored.keys(), file)
        for ending in _endings(name):
            found = [key for key in file_of if key == ending or key.endswith(f".{ending}")]
            if len(found) == 1:
                with safe_open(file_of[found[0]], framework="pt") as stored:
                    return stored.get_tensor(found[0])  # type: ignore[no-any-return]
            if found:
                break
    except (OSError, SafetensorError) as error:
        return f"the reference's files cannot be read ({brief_message(error)})"
    return f"the reference's files have no tensor {name}" if file_of else "the reference is not on this machine"


def _endings(name: str) -> list[str]:
    """Return the name, then the name without its first part, and so on; at least its last two parts remain."""
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(max(1, len(parts) - 1))]
