"""The text that perplexity is measured on where the user gives none: the documentation topics that come with Python."""

from __future__ import annotations

from typing import Final

from swcheck.base.errors import TextError

SHORTEST_PARAGRAPH: Final = 40
"""Paragraphs of fewer characters (titles, list marks) are left out."""


def evaluation_text() -> str:
    """Return the default evaluation text: the documentation topics of the installed Python, one paragraph a line.

    They come with Python, so nothing is downloaded or copied, and ``tiny`` was not trained on them. They change with
    the version of Python, so reports and baselines identify the text by its hash. Raises ``TextError`` if this Python
    has no ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise TextError(
            "the documentation topics of this Python, to measure on", "it has no pydoc_data", "--swcheck-text=FILE"
        ) from error
    paragraphs = [" ".join(block.split()) for name in sorted(topics) for block in topics[name].split("\n\n")]
    return "\n\n".join(paragraph for paragraph in paragraphs if len(paragraph) >= SHORTEST_PARAGRAPH) + "\n"
