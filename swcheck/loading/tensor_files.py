"""Read single tensors of a checkpoint on disk without loading the model. The files are memory-mapped.

Of a tensor that transformers renames, or makes of several ones (the experts of a layer in one), transformers itself
knows by the type of the model how it is made.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from swcheck.base.errors import brief_message
from swcheck.loading.files.safetensors_header import safetensors_files, tensor_bytes

__all__ = ["read_converted", "read_tensor", "tensor_bytes"]


def read_tensor(directory: Path, name: str) -> torch.Tensor | str:
    """Return the tensor ``name`` of a checkpoint, or a sentence that says why it cannot be read.

    If no tensor has that name, the leading parts of ``name`` are dropped one by one until a tensor has this name or
    ends with it. The match must be unique. A model and its files may name a tensor with different prefixes, but from
    the list of layers, or from the embedding, on the names are the same.
    """
    try:
        file_of = _file_of_each_tensor(directory)
        for ending in _endings(name):
            found = [key for key in file_of if key == ending or key.endswith(f".{ending}")]
            if len(found) == 1:
                return _read(file_of[found[0]], found[0])
            if found:
                break
    except (OSError, SafetensorError) as error:
        return f"the reference's files cannot be read ({brief_message(error)})"
    return f"the reference's files have no tensor {name}" if file_of else "the reference is not on this machine"


def _endings(name: str) -> list[str]:
    """Return the name, then the name without its first part, and so on; at least its last two parts remain."""
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(max(1, len(parts) - 1))]


def _file_of_each_tensor(directory: Path) -> dict[str, Path]:
    file_of: dict[str, Path] = {}
    for file in safetensors_files(directory):
        with safe_open(file, framework="pt") as stored:
            file_of |= dict.fromkeys(stored.keys(), file)
    return file_of


def read_converted(directory: Path, name: str, model: Any) -> torch.Tensor | str:
    """Return the parameter ``name`` of ``model`` as its type makes it of the tensors in a directory, or words why not."""
    try:
        found = _converted(directory, name, model)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError, SafetensorError):
        return f"the reference's files do not show {name}"  # another version of transformers, or damaged files
    return f"the reference's files have no {name}" if found is None else found


def _converted(directory: Path, name: str, model: Any) -> torch.Tensor | None:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key

    file_of = _file_of_each_tensor(directory)
    transforms = [copy.deepcopy(one) for one in get_model_conversion_mapping(model)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    for key in sorted(file_of, key=dot_natural_key):  # by number, as experts are put together
        renamed = key
        for one in transforms:
            renamed = renamed if one in converters else one.rename_source_key(renamed)[0]
        if renamed == name:
            return _read(file_of[key], key)
        for one in converters:
            target, pattern = one.rename_source_key(renamed)
            if pattern is not None and target == name:
                one.add_tensor(name, key, pattern, partial(_read, file_of[key], key))
    chosen = next((one for one in converters if one.collected_tensors), None)
    made: torch.Tensor | None = (
        None if chosen is None else chosen.convert(name, model=model, config=model.config).get(name)
    )
    return made


def _read(file: Path, key: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as stored:
        return stored.get_tensor(key)  # type: ignore[no-any-return]
