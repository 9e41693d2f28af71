"""Read the header of a GGUF file: what it says about its model, and the name, type, shape and place of every tensor.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The gguf package
believes every count in a file, and reads on beyond its end without an error: a list of 2**60 numbers in a file of 100
bytes takes all memory. So an engine calls ``read_gguf_header`` first.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from swcheck.base.errors import CheckpointError
from swcheck.base.reading.bounded import open_regular

LARGEST_HEADER: Final = 2**26
"""The largest header that is read, in bytes: the vocabulary of 262,144 tokens of Gemma 3 takes about 16 MB."""
MOST_VALUES: Final = 2**21
"""The most values in all lists together: tokens, scores, types and merges of Gemma 3 are 1.3 million."""
MOST_FACTS: Final = 2**12
MOST_TENSORS: Final = 200_000
MOST_SIDES: Final = 4
LONGEST_NAME: Final = 1024

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
ALIGNMENT: Final = 32
LARGEST_ALIGNMENT: Final = 2**16

NUMBERS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""The format of each type of number, by its code."""
TEXT, LIST = 8, 9

TYPES: Final = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""The name of each type of tensor by its code, the weights of a block, and its bytes."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file: the name of its type, its shape (the innermost side first), its bytes counted from the data."""

    type: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What a file says. ``facts`` are its numbers and texts by key, lists as their length; ``start`` is where the data begins."""

    facts: Mapping[str, float | str]
    tensors: Mapping[str, GgufTensor]
    start: int


def read_gguf_header(file: Path) -> GgufHeader:
    """Return the header of a GGUF file.

    Raises ``CheckpointError`` unless the file is a regular one, its header is complete, consistent and of a plausible
    size, and every tensor lies in the file, aligned, beside the others.
    """
    asked = f"GGUF in {file}"
    try:
        with open_regular(file, asked) as raw, io.BufferedReader(cast("io.RawIOBase", raw)) as stream:
            size = os.fstat(stream.fileno()).st_size
            return _header(_Cursor(stream, min(size, LARGEST_HEADER), size))
    except _FormatError as error:
        raise CheckpointError(asked, str(error), "fetch the file again") from error
    except OSError as error:
        raise CheckpointError(asked, error.strerror or str(error), "fetch the file again") from error


class _FormatError(ValueError):
    """The bytes are no header of GGUF; the message says why."""


@dataclass
class _Cursor:
    """Reads values from the front of a file, ``most`` bytes and ``MOST_VALUES`` values of lists at the most."""

    stream: BinaryIO
    most: int
    size: int
    place: int = 0
    values_left: int = field(default=MOST_VALUES)

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        if count > self.most - self.place:
            found = f"{self.size:,} bytes, cut off inside the header" if self.most == self.size else "more than"
            limit = (
                "" if self.most == self.size else f" {self.most:,} bytes of header, which are the most that are read"
            )
            raise _FormatError(f"{found}{limit}")
        data = self.stream.read(count)
        if len(data) != count:
            raise _FormatError("it became shorter while it was read")
        self.place += count
        return data

    def number(self, form: str) -> Any:
        """Return the next number of a format of ``struct``."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, what: str, longest: int = LARGEST_HEADER) -> str:
        """Return the next text: its length, then UTF-8. Bytes that are none become replacement characters."""
        length = self.number("<Q")
        if length > longest:
            raise _FormatError(f"{what} of {length:,} bytes, at most {longest:,} are read")
        return self.take(length).decode("utf-8", errors="replace")

    def count(self, what: str, most: int) -> int:
        """Return the next count of something, at most ``most``."""
        count = int(self.number("<Q"))
        if count > most:
            raise _FormatError(f"{count:,} {what}, at most {most:,} are read")
        return count


def _header(cursor: _Cursor) -> GgufHeader:
    if cursor.take(4) != MAGIC:
        raise _FormatError("it does not begin with GGUF")
    version = cursor.number("<I")
    if version not in VERSIONS:
        raise _FormatError(f"version {version}, known are {' and '.join(map(str, VERSIONS))}, little-endian")
    tensor_count, fact_count = cursor.count("tensors", MOST_TENSORS), cursor.count("facts", MOST_FACTS)
    facts: dict[str, float | str] = {}
    for _ in range(fact_count):
        key = cursor.text("a key", LONGEST_NAME)
        if key in facts:
            raise _FormatError(f"the key {key[:100]!r} is there twice")
        facts[key] = _value(cursor, cursor.number("<I"), key)
    alignment = facts.get("general.alignment", ALIGNMENT)
    if not (isinstance(alignment, int) and 0 < alignment <= LARGEST_ALIGNMENT and alignment.bit_count() == 1):
        raise _FormatError(f"general.alignment is {alignment!r:.40}, no power of two up to {LARGEST_ALIGNMENT:,}")
    tensors: dict[str, GgufTensor] = {}
    for _ in range(tensor_count):
        name, tensor = _tensor(cursor)
        if name in tensors:
            raise _FormatError(f"the tensor {name[:100]!r} is there twice")
        tensors[name] = tensor
    start = -(-cursor.place // alignment) * alignment
    _check_places(tensors, cursor.size - start, alignment)
    return GgufHeader(facts, tensors, start)


def _value(cursor: _Cursor, kind: int, key: str) -> float | str:
    """Return the number or text of a fact; of a list, which is read past, its length."""
    if kind in NUMBERS:
        return cursor.number(NUMBERS[kind])  # type: ignore[no-any-return]
    if kind == TEXT:
        return cursor.text("a text")
    if kind != LIST:
        raise _FormatError(f"{key[:100]!r} has the type {kind}, which is not known")
    inner, length = cursor.number("<I"), cursor.count(f"values of {key[:100]!r}", cursor.values_left)
    cursor.values_left -= length
    if inner in NUMBERS:
        cursor.take(length * struct.calcsize(NUMBERS[inner]))
    elif inner == TEXT:
        for _ in range(length):
            cursor.text("a text")
    else:
        raise _FormatError(f"{key[:100]!r} is a list of the type {inner}, which is not known")
    return length


def _tensor(cursor: _Cursor) -> tuple[str, GgufTensor]:
    name = cursor.text("a name", LONGEST_NAME)
    sides = cursor.number("<I")
    if sides > MOST_SIDES:
        raise _FormatError(f"{name[:100]} has {sides:,} dimensions, at most {MOST_SIDES} are known")
    shape = tuple(cursor.number("<Q") for _ in range(sides))
    code, begin = cursor.number("<I"), cursor.number("<Q")
    if code not in TYPES:
        raise _FormatError(f"{name[:100]} has the type {code}, which is not known")
    kind, block, size = TYPES[code]
    if (shape[0] if shape else 1) % block:
        raise _FormatError(f"{name[:100]} in {kind} has rows of {shape[0] if shape else 1}, no multiple of {block}")
    return name, GgufTensor(kind, shape, begin, begin + math.prod(shape) // block * size)


def _check_places(tensors: Mapping[str, GgufTensor], room: int, alignment: int) -> None:
    """Raise unless all tensors lie in ``room`` bytes, at multiples of ``alignment``, and none on another."""
    last = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.end > room:
            shape = " x ".join(map(str, tensor.shape))
            raise _FormatError(
                f"{name[:100]} of {shape} in {tensor.type} ends {tensor.end - room:,} bytes behind the file"
            )
        if tensor.begin % alignment or tensor.begin < last:
            raise _FormatError(f"{name[:100]} begins at byte {tensor.begin:,}, inside another or not aligned")
        last = tensor.end
