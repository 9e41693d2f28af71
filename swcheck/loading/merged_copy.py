"""Writes a copy of a checkpoint in which the experts of a layer are one tensor, as transformers computes with them.

Most mixtures are stored with a matrix for each expert, and transformers puts them together in memory when it loads them.
The copy needs nothing but to be mapped, so that it can be streamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import CheckpointError, OptionError
from swcheck.base.formatting import format_size
from swcheck.base.output_files import check_writable
from swcheck.base.terminal.progress import Bar
from swcheck.loading.files.config_file import read_config
from swcheck.loading.huggingface import model_of_config
from swcheck.loading.tensor_files import Recipe, recipes, tensor_bytes

if TYPE_CHECKING:
    import torch

SHARD: Final = 2**29
"""A file of the copy has at most so many bytes, or one tensor; they are in memory while it is written."""
LEFT_OUT: Final = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")
"""Files of the source that hold weights, which the copy has in files of its own."""


@dataclass(frozen=True)
class Written:
    """What was written: the tensors that were put together, of how many, and the bytes of all."""

    merged: int
    parts: int
    size: int


def write_merged(directory: Path, target: Path) -> Written:
    """Write the copy of the checkpoint in ``directory`` to a new folder ``target``, complete or not at all.

    Raises ``OptionError`` for a folder that is there or cannot be written, a disk without room and a packed checkpoint;
    ``CheckpointError`` where a parameter of the model cannot be made of the files.
    """
    size, partial = tensor_bytes(directory), target.with_name(f"{target.name}.part")
    _check(directory, target, size)
    model = model_of_config(directory)
    found = recipes(directory, model)
    chosen = list(_in_order(directory, model, found))
    try:
        partial.mkdir(parents=True)
    except FileExistsError as error:
        words = f"{partial} is there: another run writes it, or was ended"
        raise OptionError(f"write {target}", words, "wait for it, or remove that folder") from error
    try:
        shutil.copytree(directory, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        with Bar("writing tensors", size, "B") as bar:
            _write_shards(partial, chosen, bar)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    made = [one for one in chosen if one.converter is not None]
    return Written(len(made), sum(len(one.parts) for one in made), tensor_bytes(target))


def _check(directory: Path, target: Path, size: int) -> None:
    if target.exists() or target.is_symlink():
        raise OptionError(f"write {target}", "it is there", "give a new folder")
    check_writable(target)
    packed = read_config(directory).get("quantization_config")
    if packed:
        found = "a packed checkpoint: transformers unpacks it when it loads it whole"
        raise OptionError(f"merge the experts of {directory}", found, "the model before quantization")
    nearest = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(nearest).free
    if free < size + SHARD:
        found = f"{format_size(size)} are needed, and {format_size(free)} are free"
        raise OptionError(f"write {target}", found, "another disk")


def _in_order(directory: Path, model: Any, found: dict[str, Recipe]) -> Iterator[Recipe]:
    """Yield the recipes in the order of the model's parameters, which is that of a pass."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    done: set[str] = set()
    for name in model.state_dict():
        recipe = found.get(name)
        if recipe is None and name not in tied:
            words = f"no tensors of the files make {name}"
            raise CheckpointError(
                f"merge the experts of {directory}", words, "check that weights and config.json belong"
            )
        if recipe is not None and name not in done:
            done.add(name)
            yield recipe


def _write_shards(folder: Path, chosen: list[Recipe], bar: Bar) -> None:
    """Write the tensors of ``chosen``, file by file, and the index."""
    from safetensors.torch import save_file

    places: dict[str, str] = {}
    waiting: dict[str, torch.Tensor] = {}

    def write() -> None:
        file = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(waiting, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(waiting, file))
        waiting.clear()

    for recipe in chosen:
        made = {name: tensor.contiguous() for name, tensor in recipe.make().items()}
        size = sum(one.numel() * one.element_size() for one in made.values())
        if waiting and size + sum(one.numel() * one.element_size() for one in waiting.values()) > SHARD:
            write()
        waiting |= made
        bar.done += size
    write()
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
