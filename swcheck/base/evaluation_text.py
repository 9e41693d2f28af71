"""The text that perplexity is measured on: a file that was given, else what every Python brings."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from swcheck.base.errors import TextError

SHORTEST_PARAGRAPH: Final = 40
"""Paragraphs of fewer characters, titles and list marks, are left out."""


def evaluation_text() -> str:
    """The evaluation text: the installed Python's own documentation topics, a paragraph a line.

    Every Python brings them, nothing is downloaded or copied, and `tiny` was not trained on them. They change with the
    version of Python: reports and baselines name the text by its hash. Raises ``TextError`` where a Python lacks them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TextError(
            "the documentation topics of this Python, to measure on", "it has no pydoc_data", "--swcheck-text=FILE"
        ) from error
    paragraphs = [" ".join(part.split()) for name in sorted(topics) for part in topics[name].split("\n\n")]
    return "\n\n".join(paragraph for paragraph in paragraphs if len(paragraph) >= SHORTEST_PARAGRAPH) + "\n"


def read_text(path: Path) -> str:
    """The text to measure on. Raises ``TextError`` where the file is missing, empty or not UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TextError(f"text {path}", error.strerror or str(error), "give an existing UTF-8 file") from error
    except UnicodeDecodeError as error:
        raise TextError(f"text {path} in UTF-8", str(error), "convert the file to UTF-8") from error
    if not text.strip():
        raise TextError(f"text {path}", "an empty file", "give a text of some thousand words")
    return text
