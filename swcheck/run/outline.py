"""What can be seen of a checkpoint without loading it: the shapes of its tensors, its config, its dtype.

They are in the headers of its safetensors files. Where only ``config.json`` is there, as before a download of a hundred
gigabytes, they are those of the model that the config describes, built without memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import CheckpointError
from swcheck.loading.files.checkpoint_size import checkpoint_size
from swcheck.loading.files.config_file import CONFIG, LAYER_COUNTS, read_config
from swcheck.loading.files.safetensors_header import read_header, safetensors_files

MOST_LAYERS: Final = 1024
"""The most layers that are built of a config alone: transformers makes a list of as many, whatever the config says."""


@dataclass(frozen=True)
class Outline:
    """A checkpoint without its weights.

    ``shapes`` are those of its tensors by name, ``dtype`` is the one it is loaded in. ``config`` is empty where there is none.
    ``size`` is that of its files in bytes, None where only the config is there.
    """

    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, Any]
    dtype: str
    size: int | None

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(map(math.prod, self.shapes.values()))


def outline_of(directory: Path) -> Outline:
    """Return the outline of a checkpoint.

    Raises ``CheckpointError`` for a file that is no safetensors, and for a directory with neither safetensors nor a config
    that transformers can build.
    """
    config: Mapping[str, Any] = {}
    with suppress(CheckpointError):
        config = read_config(directory)
    headers = [read_header(file) for file in safetensors_files(directory)]
    shapes = {name: tensor.shape for header in headers for name, tensor in header.tensors.items()}
    if shapes:
        stored = checkpoint_size(directory)
        dtype, size = ("float32", None) if stored is None else (stored.dtype, stored.size)
        return Outline(shapes, config, dtype, size)
    named = config.get("dtype") or config.get("torch_dtype")
    return Outline(built_shapes(directory), config, named if isinstance(named, str) else "float32", None)


def built_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of the model that transformers builds for the config in ``directory``, by name.

    Code that the checkpoint brings is not run. Raises ``CheckpointError`` where nothing can be built.
    """
    asked = f"the headers of {directory}"
    if not (directory / CONFIG).is_file():
        raise CheckpointError(asked, "no safetensors file", "a directory in the transformers format")
    config = read_config(directory)
    counts = (part.get(name) for part in (config, config.get("text_config") or {}) for name in LAYER_COUNTS)
    if any(isinstance(count, int) and count > MOST_LAYERS for count in counts):
        raise CheckpointError(asked, f"more than {MOST_LAYERS:,} layers in {CONFIG}", "check that file")
    from swcheck.loading.huggingface import model_of_config

    try:
        model = model_of_config(directory)
    except Exception as error:
        found = f"no safetensors file, and a {CONFIG} that is not built: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(asked, found, "fetch the weights as well") from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
