"""Lines for a terminal: prose folded with a hanging indent, what is there to be pasted never broken."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

WIDEST: Final = 100
"""Wider lines are hard to read, however wide the terminal is."""

NARROWEST: Final = 40
"""Folding to less would leave nothing beside the indents."""

FOUND: Final = "  found: "

SHORT: Final = 12
"""A longer name before a text does not push the texts of shorter ones to the right."""


def wrapped(text: str, width: int | None, indent: int = 0) -> list[str]:
    """``text`` in lines of ``width`` characters at most, from the second on ``indent`` deep; a longer word stays whole.

    None is no terminal: then it stays one line.
    """
    if width is None:
        return [text]
    width = max(NARROWEST, min(width, WIDEST))
    hanging = " " * min(indent, width // 2)
    return textwrap.wrap(text, width, subsequent_indent=hanging, break_on_hyphens=False, break_long_words=False)


def wrapped_rows(pairs: Sequence[tuple[str, str]], width: int | None) -> list[str]:
    """(name, text) pairs, two deep, the texts in a column of their own; those of long names have another one."""
    lines = []
    for name, text in pairs:
        column = max(len(other) for other, _ in pairs if (len(other) > SHORT) == (len(name) > SHORT))
        lines += wrapped(f"  {name:<{column}}  {text}", width, column + 4)
    return lines


def wrapped_error(text: str, width: int) -> str:
    """A worded error as it is shown: its lines folded, but for what it says to try, which may be a command."""
    lines = []
    for line in text.splitlines():
        if line.startswith("  try: "):
            lines.append(line)
        elif line.startswith(FOUND):  # folded without its label, which a long path would else leave alone in a line
            first, *more = wrapped(" " * len(FOUND) + line.removeprefix(FOUND), width, len(FOUND))
            lines += [FOUND + first.removeprefix(" " * len(FOUND)), *more]
        else:
            lines += wrapped(line, width, 2)
    return "\n".join(lines)
