"""Read the index of a sharded checkpoint: which file of the directory has which tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from swcheck.base.reading import schema
from swcheck.base.reading.bounded import read_json

SHARD_INDEX: Final = "model.safetensors.index.json"
LARGEST_INDEX: Final = 2**26
"""The largest index that is read, in bytes: 500,000 tensors."""


def _file_name(value: Any, place: str) -> None:
    """Check the name of a shard: a file of the directory itself, so that no index makes a file outside be loaded."""
    if not (isinstance(value, str) and value.endswith(".safetensors") and len(value.encode(errors="replace")) <= 255):
        raise schema.MismatchError(place, "the name of a safetensors file", value)
    if value.startswith(".") or any(char in "/\\:" or not char.isprintable() for char in value):
        raise schema.MismatchError(place, "a file of this directory", value)


_SCHEMA: Final = schema.record({"weight_map": schema.table(_file_name, fewest=1)})


def shards_of(directory: Path) -> set[str]:
    """Return the names of the files that the index of a sharded checkpoint lists; empty if there is no index.

    Raises ``CheckpointError`` for a malformed index, and for one that names a file outside of the directory.
    """
    file = directory / SHARD_INDEX
    if not file.exists():
        return set()
    index = schema.checked(read_json(file, LARGEST_INDEX, str(file)), _SCHEMA, f"a weight_map in {file}")
    return set(index["weight_map"].values())
