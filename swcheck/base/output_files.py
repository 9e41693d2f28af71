"""Files that a run writes: tried before the work, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from swcheck.base.errors import OptionError


def check_writable(path: Path) -> None:
    """Raise ``OptionError`` where a file cannot be written to ``path``, before hours of work are lost to it."""
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
    """Write ``text`` whole or not at all; raises ``OSError``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
