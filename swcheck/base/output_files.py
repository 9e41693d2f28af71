"""Write output files: check the path before the run, then write the file completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from swcheck.base.errors import OptionError


def check_writable(path: Path) -> None:
    """Raise ``OptionError`` unless a file can be written to ``path``. Call it before a long run, to lose no work."""
    nearest = next((parent for parent in path.parents if parent.exists()), path)
    found = None
    if path.is_dir():
        found = "a directory"
    elif not nearest.is_dir():
        found = f"{nearest} is a file"
    elif not os.access(path if path.exists() else nearest, os.W_OK):
        found = f"no permission to write in {nearest}"
    if found is not None:
        raise OptionError(f"write {path}", found, "give a file in a folder that can be written to")


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` completely or not at all, creating missing folders. Raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
