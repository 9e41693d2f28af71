"""Read the size of a checkpoint from the headers of its safetensors files, without loading it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    """Return the size of a checkpoint, read from the headers of its safetensors files; None if it has none."""
    files = sorted(directory.glob("*.safetensors"))
    tensors = [entry for file in files for name, entry in _read_header(file).items() if name != "__metadata__"]
    counted = [(_element_count(entry["shape"]), entry) for entry in tensors]
    matrices = [(count, entry) for count, entry in counted if len(entry["shape"]) == 2]
    if not matrices:
        return None
    _, largest = max(matrices, key=lambda pair: pair[0])
    total, size = sum(count for count, _ in counted), sum(file.stat().st_size for file in files)
    stored = {"BF16": "bfloat16", "F16": "float16"}.get(str(largest["dtype"]), "float32")
    config = _read_config(directory)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or stored)
    return CheckpointSize(
        size, total, (largest["shape"][0], largest["shape"][1]), dtype, config.get("max_position_embeddings")
    )


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _read_header(file: Path) -> dict[str, dict[str, list[int]]]:
    with file.open("rb") as stream:
        return json.loads(stream.read(int.from_bytes(stream.read(8), "little")))  # type: ignore[no-any-return]


def _element_count(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
