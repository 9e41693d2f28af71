"""Wrap lines for a terminal: prose gets a hanging indent, commands that are to be pasted are never broken."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

MAX_WIDTH: Final = 100
"""Wider lines are hard to read, however wide the terminal is."""

MIN_WIDTH: Final = 40
"""A narrower text would have no room beside its indent."""

FOUND_LABEL: Final = "  found: "

SHORT_NAME: Final = 12
"""Rows with longer names get a text column of their own, so that they do not push the texts of other rows right."""


def wrapped(text: str, width: int | None, indent: int = 0) -> list[str]:
    """Return ``text`` as lines of at most ``width`` characters, all but the first indented by ``indent``.

    ``width`` is first brought between ``MIN_WIDTH`` and ``MAX_WIDTH``. A word longer than a line is not broken. None means
    that there is no terminal: the text stays one line.
    """
    if width is None:
        return [text]
    width = max(MIN_WIDTH, min(width, MAX_WIDTH))
    hanging = " " * min(indent, width // 2)
    return textwrap.wrap(text, width, subsequent_indent=hanging, break_on_hyphens=False, break_long_words=False)


def wrapped_rows(pairs: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    """Return the lines of (name, text) pairs: names indented by two spaces, texts aligned in a column.

    Rows whose name is longer than ``SHORT_NAME`` have a second, separate column.
    """
    lines = []
    for name, text in pairs:
        column = max(len(other) for other, _ in pairs if (len(other) > SHORT_NAME) == (len(name) > SHORT_NAME))
        lines += wrapped(f"  {name:<{column}}  {text}", width, column + 4)
    return lines


def wrapped_error(text: str, width: int) -> str:
    """Return the message of a ``SwcheckError`` wrapped for a terminal. Its "try" line, maybe a command, stays whole."""
    lines = []
    for line in text.splitlines():
        if line.startswith("  try: "):
            lines.append(line)
        elif line.startswith(FOUND_LABEL):
            # The label is replaced by blanks for wrapping: before a long path it would stand alone on its line.
            first, *more = wrapped(" " * len(FOUND_LABEL) + line.removeprefix(FOUND_LABEL), width, len(FOUND_LABEL))
            lines += [FOUND_LABEL + first.removeprefix(" " * len(FOUND_LABEL)), *more]
        else:
            lines += wrapped(line, width, 2)
    return "\n".join(lines)
