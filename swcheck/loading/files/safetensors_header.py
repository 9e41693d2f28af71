"""Read the header of a safetensors file: the name, dtype, shape and place of every tensor.

The format is that of https://huggingface.co/docs/safetensors: eight bytes with the length of the header, the header as
JSON, then the bytes of the tensors without gaps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import CheckpointError
from swcheck.base.reading import schema
from swcheck.base.reading.bounded import open_regular, parsed_json, read_exactly

LARGEST_HEADER: Final = 2**25
"""The largest header that is read, in bytes: 200,000 tensors, many times more than any published file has.

safetensors itself allows 100 MB, which would take gigabytes of memory to parse.
"""
MOST_SIDES: Final = 16
"""A tensor has at most this many dimensions; no model has more than 5."""

BITS: Final = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""The bits of an element of each dtype. Of a dtype that is not listed the length of a tensor is not checked."""

_ENTRY: Final = schema.record(
    {
        "dtype": schema.text(32),
        "shape": schema.items(schema.whole(), most=MOST_SIDES),
        "data_offsets": schema.items(schema.whole(), fewest=2, most=2),
    }
)
_HEADER: Final = schema.table(_ENTRY)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its safetensors dtype, its shape, and the bytes ``begin`` to ``end`` counted from the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The header of a file. ``start`` is where the bytes of the tensors begin; ``tensors`` are in the order of the file."""

    start: int
    tensors: Mapping[str, StoredTensor]


def read_header(file: Path) -> Header:
    """Return the header of a safetensors file.

    Raises ``CheckpointError`` unless the file is a regular one, its header is complete and consistent, and the file as
    long as the header says.
    """
    asked = f"safetensors in {file}"
    with open_regular(file, asked) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(read_exactly(stream, 8, asked), "little") if size >= 8 else size
        if length > size - 8:
            raise CheckpointError(asked, f"{size} bytes, cut off inside the header", "fetch the file again")
        if length > LARGEST_HEADER:
            found = f"a header of {length:,} bytes, at most {LARGEST_HEADER:,} are read"
            raise CheckpointError(asked, found, "give a file that safetensors wrote")
        entries = parsed_json(read_exactly(stream, length, asked), asked)
    tensors = _tensors(entries, asked)
    _check_places(tensors, size - 8 - length, size, asked)
    return Header(8 + length, tensors)


def _tensors(entries: Any, asked: str) -> dict[str, StoredTensor]:
    """Return the tensors of a parsed header; ``__metadata__`` has texts of its writer, which are not read."""
    if isinstance(entries, dict):
        entries = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    schema.checked(entries, _HEADER, asked, "fetch the file again")
    return {
        name: StoredTensor(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        for name, entry in entries.items()
    }


def _check_places(tensors: Mapping[str, StoredTensor], room: int, size: int, asked: str) -> None:
    """Raise ``CheckpointError`` unless the tensors fill ``room`` bytes without gaps, each as long as its shape says."""
    expected = max((tensor.end for tensor in tensors.values()), default=0)
    if room != expected:
        kind = "cut off" if room < expected else "too long"
        found = f"{size} bytes where its header says {size - room + expected}: the file is {kind}"
        raise CheckpointError(asked, found, "fetch the file again")
    for name, tensor in tensors.items():
        bits = BITS.get(tensor.dtype)
        if tensor.end < tensor.begin or (bits and tensor.count * bits != 8 * (tensor.end - tensor.begin)):
            shape = " x ".join(map(str, tensor.shape)) or "a scalar"
            found = f"{name} of {shape} in {tensor.dtype} at bytes {tensor.begin} to {tensor.end}"
            raise CheckpointError(asked, found, "fetch the file again")
    places = sorted((tensor.begin, tensor.end) for tensor in tensors.values())
    if any(end != begin for (_, end), (begin, _) in pairwise([(0, 0), *places])):
        raise CheckpointError(asked, "its tensors overlap, or leave bytes between them", "fetch the file again")


def safetensors_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a directory in order. What is no regular file is left out."""
    return sorted(file for file in directory.glob("*.safetensors") if file.is_file())


def tensor_bytes(directory: Path) -> int:
    """Return the size in bytes of the safetensors files of a directory."""
    return sum(file.stat().st_size for file in safetensors_files(directory))
