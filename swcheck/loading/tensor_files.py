"""Single tensors of a checkpoint on disk, read without its model: mapped, so that only what is used is in memory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from swcheck.base.errors import brief_message


def tensor(directory: Path, name: str) -> torch.Tensor | str:
    """The one tensor called ``name``, or, where none is, whose name ends like it; words where that is not to be had.

    Names of modules and of files differ in what comes before: the last parts, from the container of the layers or of
    the embedding on, are the same.
    """
    places: dict[str, Path] = {}
    try:
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                places |= dict.fromkeys(opened.keys(), file)
        for ending in _endings(name):
            found = [key for key in places if key == ending or key.endswith(f".{ending}")]
            if len(found) == 1:
                with safe_open(places[found[0]], framework="pt") as opened:
                    return opened.get_tensor(found[0])  # type: ignore[no-any-return]
            if found:
                break
    except (OSError, SafetensorError) as error:
        return f"the reference's files cannot be read ({brief_message(error)})"
    return f"the reference's files have no tensor {name}" if places else "the reference is not on this machine"


def size(directory: Path) -> int:
    """How many bytes the tensors of a directory take, with their headers."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _endings(name: str) -> list[str]:
    """The name, then shorter and shorter ends of it; at least its last two parts."""
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(max(1, len(parts) - 1))]
