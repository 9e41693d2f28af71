"""Read the text that a user gives to measure on."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from swcheck.base.errors import CheckpointError, TextError
from swcheck.base.reading.bounded import read_bytes

LARGEST_TEXT: Final = 2**24
"""The largest text that is read, in bytes: the full tier takes 65,536 tokens of it, and the text is encoded whole."""


def read_text(path: Path) -> str:
    """Return the text of a file. Raises ``TextError`` if it is missing, no regular file, too large, empty or not UTF-8."""
    try:
        text = read_bytes(path, LARGEST_TEXT, f"text {path}").decode("utf-8")
    except CheckpointError as error:
        raise TextError(error.asked, error.found, "give an existing UTF-8 file") from error
    except UnicodeDecodeError as error:
        raise TextError(f"text {path} in UTF-8", str(error), "convert the file to UTF-8") from error
    if not text.strip():
        raise TextError(f"text {path}", "an empty file", "give a text of some thousand words")
    return text.replace("\r\n", "\n").replace("\r", "\n")
