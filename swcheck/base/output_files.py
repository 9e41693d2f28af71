"""Write output files: try the path before the run, then write the file completely or not at all.

A file is written under a temporary name in its own folder and then renamed. The name cannot be guessed and is created
anew, so that nobody can plant a file or a link there; a link in the place of the file itself is replaced, not followed.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from swcheck.base.errors import OptionError, brief_message

PREFIX, SUFFIX = ".swcheck-", ".part"
STALE_SECONDS: Final = 60
"""A temporary file that nobody has written to for so long is left from a killed process: a write takes less than a second."""


def check_writable(path: Path) -> None:
    """Raise ``OptionError`` unless a file can be written to ``path``. Call it before a long run, to lose no work.

    It is tried with an empty temporary file in the folder, or in the nearest one that exists. No folder is made.
    """
    found = None
    try:
        nearest = next((parent for parent in path.absolute().parents if parent.exists()), path)
        if path.is_dir():
            found = "a directory"
        elif not nearest.is_dir():
            found = f"{nearest} is a file"
        else:
            _check_name(path, nearest)
            _remove(_create(nearest))
    except PermissionError:
        found = f"no permission to write in {nearest}"
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        found = error.strerror if isinstance(error, OSError) and error.strerror else brief_message(error)
    if found is not None:
        raise OptionError(f"write {path}", found, "give a file in a folder that can be written to")


def _check_name(path: Path, nearest: Path) -> None:
    """Raise ``OSError`` or ``ValueError`` if a part of ``path`` below the folder ``nearest`` cannot be a name there."""
    for part in path.absolute().relative_to(nearest).parts:
        with suppress(FileNotFoundError):
            os.lstat(nearest / part)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path`` completely or not at all, creating missing folders.

    Raises ``OSError``, whose ``filename`` is ``path``.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clean(path.parent)
        _replace(path, _create(path.parent, data))
    except OSError as error:  # of the temporary file nobody has asked, and a full disk names none
        error.filename, error.filename2 = str(path), None
        raise


def _replace(path: Path, partial: Path) -> None:
    try:
        partial.replace(path)
    except BaseException:
        _remove(partial)
        raise


def _create(folder: Path, data: bytes = b"") -> Path:
    """Return a new file in ``folder`` with this content. It is gone if writing fails or is interrupted."""
    path = folder / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
    except BaseException:
        _remove(path)
        raise
    return path


def _clean(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder."""
    for file in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with suppress(OSError):
            if time.time() - file.lstat().st_mtime > STALE_SECONDS:
                _remove(file)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
