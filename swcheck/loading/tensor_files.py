"""Read single tensors of a checkpoint on disk without loading the model. The files are memory-mapped.

Of a tensor that transformers renames, or makes of several ones (the experts of a layer in one), transformers itself
knows by the type of the model how it is made.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from swcheck.base.errors import brief_message
from swcheck.loading.files.safetensors_header import safetensors_files, tensor_bytes

__all__ = ["Recipe", "read_converted", "read_tensor", "recipes", "tensor_bytes"]


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
    found = recipes(directory, model).get(name)
    return None if found is None else found.make().get(name)


@dataclass
class Recipe:
    """How a parameter of a model is made of the tensors in the files of a checkpoint.

    ``parts`` are the file, the name and the pattern of each tensor; ``converter`` is what transformers makes one of them
    by, None for a tensor that is taken as it is stored.
    """

    name: str
    model: Any
    converter: Any = None
    parts: list[tuple[Path, str, str]] = field(default_factory=list)

    def make(self) -> dict[str, torch.Tensor]:
        """Return the parameter by its name; with others, where the same tensors are cut into several."""
        if self.converter is None:
            file, key, _ = self.parts[0]
            return {self.name: _read(file, key)}
        converter = copy.deepcopy(self.converter)
        for file, key, pattern in self.parts:
            converter.add_tensor(self.name, key, pattern, partial(_read, file, key))
        made = converter.convert(self.name, model=self.model, config=self.model.config)
        tensors: dict[str, torch.Tensor] = made[0] if isinstance(made, tuple) else made  # with errors, from older ones
        return tensors


def recipes(directory: Path, model: Any) -> dict[str, Recipe]:
    """Return by name how the parameters of ``model`` are made, as transformers does for its type when it loads it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key

    file_of, own = _file_of_each_tensor(directory), set(model.state_dict())
    transforms = [copy.deepcopy(one) for one in get_model_conversion_mapping(model)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    found: dict[str, Recipe] = {}
    for key in sorted(file_of, key=dot_natural_key):  # by number, as experts are put together
        renamed = key
        for one in transforms:
            renamed = renamed if one in converters else one.rename_source_key(renamed)[0]
        if renamed in own:
            found[renamed] = Recipe(renamed, model, None, [(file_of[key], key, "")])
            continue
        for one in converters:
            target, pattern = one.rename_source_key(renamed)
            if pattern is not None:
                found.setdefault(target, Recipe(target, model, one)).parts.append((file_of[key], key, pattern))
                break
    return found


def _read(file: Path, key: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as stored:
        return stored.get_tensor(key)  # type: ignore[no-any-return]
