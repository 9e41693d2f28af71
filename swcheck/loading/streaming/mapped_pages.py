"""Memory that is a map of files: where it is, and giving its pages back to the operating system (Linux).

A tensor that transformers reads from a safetensors file on a CPU is a private map of that file. A page that is given back
is read from the file again when it is next used, mostly from the cache of the operating system. A page that was written
to is no part of the file any more, and is never given back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import CheckpointError

MAPS: Final = Path("/proc/self/maps")
PAGE_FLAGS: Final = Path("/proc/self/pagemap")
IN_MEMORY: Final = 0b11
"""Bits 63 and 62 of a page in ``pagemap``: it is in memory, or swapped out."""
OF_FILE: Final = 61
"""The bit of ``pagemap`` that is set for a page of a file, and is not once the page was written to."""
WILL_NEED, DO_NOT_NEED = 3, 4
"""``MADV_WILLNEED`` and ``MADV_DONTNEED`` of Linux."""


@dataclass(frozen=True)
class Span:
    """Addresses ``begin`` to ``end``."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin


@dataclass
class MappedPages:
    """The ``spans`` of memory, in order, that are maps of files."""

    spans: Sequence[Span]
    _begins: list[int] = field(init=False, repr=False)
    _madvise: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._begins = [span.begin for span in self.spans]
        self._madvise = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def hold(self, address: int) -> bool:
        """Return whether this address is in one of the files."""
        number = bisect_right(self._begins, address) - 1
        return number >= 0 and address < self.spans[number].end

    def read_ahead(self, span: Span) -> None:
        """Let the operating system begin to read a part of a file; nothing waits for it."""
        self._advise(span.begin // mmap.PAGESIZE, -(-span.end // mmap.PAGESIZE), WILL_NEED)

    def give_back(self, span: Span) -> int:
        """Give back all pages of ``span`` that nobody wrote to; return how many bytes of them were in memory."""
        begin, end = span.begin // mmap.PAGESIZE, -(-span.end // mmap.PAGESIZE)
        count, written = _in_memory(begin, end)
        for first, last in pairwise([begin - 1, *written, end]):
            self._advise(first + 1, last, DO_NOT_NEED)
        return (count - len(written)) * mmap.PAGESIZE

    def _advise(self, first: int, last: int, advice: int) -> None:
        if last > first:  # advice that is not taken changes nothing but the memory in use
            self._madvise(first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE, advice)


@dataclass(frozen=True)
class UnchangedFiles:
    """Mapped files with the size, the time of change and the number that they had when they were mapped."""

    stamps: Mapping[Path, tuple[int, int, int]]

    @staticmethod
    def of(files: Sequence[Path]) -> UnchangedFiles:
        """Return these files as they are now."""
        return UnchangedFiles({file: _stamp(file) for file in files})

    def check(self) -> None:
        """Raise ``CheckpointError`` for a file that was written to: to read behind its new end would end the process.

        A file that was removed, or another one put in its place, can still be read, as long as it is mapped.
        """
        for file, before in self.stamps.items():
            with suppress(FileNotFoundError):
                now = _stamp(file)
                if now != before and now[2] == before[2]:
                    change = (
                        f"{now[0]:,} bytes, {before[0]:,} when it was opened" if now[0] != before[0] else "written to"
                    )
                    raise CheckpointError(
                        f"{file} while its weights are used", f"it was changed: {change}", "fetch it again"
                    )


def _stamp(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _in_memory(begin: int, end: int) -> tuple[int, list[int]]:
    """Return how many of the pages ``begin`` to ``end`` are in memory, and which of these were written to."""
    import torch

    with PAGE_FLAGS.open("rb", buffering=0) as stream:
        data = os.pread(stream.fileno(), 8 * (end - begin), 8 * begin)
    flags = torch.frombuffer(bytearray(data), dtype=torch.int64)
    present = (flags >> (OF_FILE + 1)) & IN_MEMORY != 0
    written = present & ((flags >> OF_FILE) & 1 == 0)
    return int(present.sum()), (written.nonzero().flatten() + begin).tolist()


def can_give_back() -> bool:
    """Return whether this system shows which pages were written to."""
    return sys.platform == "linux" and os.access(MAPS, os.R_OK) and os.access(PAGE_FLAGS, os.R_OK)


def maps_of(files: Sequence[Path]) -> list[Span]:
    """Return where these files are mapped in this process, in order."""
    names = {str(file.resolve()) for file in files}
    found = []
    for line in MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, *_, name = line.split(maxsplit=5) if line.count(" ") >= 5 else (line, "")
        if name in names:
            begin, _, end = addresses.partition("-")
            found.append(Span(int(begin, 16), int(end, 16)))
    return sorted(found, key=lambda span: span.begin)
