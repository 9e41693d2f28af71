"""Open and read files that others wrote: only regular files, and never more bytes than the caller allows."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

from swcheck.base.errors import CheckpointError, brief_message

_KINDS: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def kind_of(path: Path) -> str:
    """Return in words what an existing path is: ``a file``, ``a directory``, ``a device``."""
    return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "a file")


def open_regular(file: Path, asked: str) -> BinaryIO:
    """Open a file for reading, unbuffered. Raises ``CheckpointError`` if it cannot be opened or is not a regular file.

    ``asked`` names the file in errors. A named pipe is refused without waiting for its writer.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        found = error.strerror if isinstance(error, OSError) and error.strerror else brief_message(error)
        raise CheckpointError(asked, found, "give a file that can be read") from error
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise CheckpointError(asked, _KINDS.get(kind, "no regular file"), "give a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def read_bytes(file: Path, most: int, asked: str) -> bytes:
    """Return the content of a regular file. Raises ``CheckpointError`` for more than ``most`` bytes; see ``open_regular``."""
    with open_regular(file, asked) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise CheckpointError(asked, f"{size:,} bytes, at most {most:,} are read", "give the right file")
        return read_exactly(stream, size, asked)


def read_exactly(stream: BinaryIO, size: int, asked: str) -> bytes:
    """Return the next ``size`` bytes. Raises ``CheckpointError`` if there are fewer, or they cannot be read."""
    parts, missing = [], size
    try:
        while missing and (part := stream.read(missing)):
            parts.append(part)
            missing -= len(part)
    except OSError as error:
        raise CheckpointError(asked, error.strerror or brief_message(error), "fetch the file again") from error
    if missing:
        raise CheckpointError(asked, f"it ends {missing:,} bytes early", "fetch the file again")
    return b"".join(parts)


def parsed_json(data: bytes | str, asked: str) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises ``CheckpointError`` for text that is not JSON, nests too deeply, or gives one key of an object twice: parsers
    differ in which of the two they take.
    """
    try:
        return json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"JSON in {asked}", brief_message(error), "repair the file, or fetch it again") from error


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:100]!r} is there twice")
        found[key] = value
    return found


def read_json(file: Path, most: int, asked: str) -> Any:
    """Return the value in a JSON file of at most ``most`` bytes. Raises ``CheckpointError``; ``asked`` names the file."""
    return parsed_json(read_bytes(file, most, asked), asked)
