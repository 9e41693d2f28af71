"""Makes text safe for a terminal: what files and other libraries say may hold control characters.

Escape sequences in the name of a tensor or a directory could rewrite what stands on the screen, or the clipboard; marks of
the writing direction could turn a line around. All text for people passes through ``visible``.
"""

from __future__ import annotations

import os
import sys


def visible(text: str) -> str:
    """Return ``text`` with every character that cannot be printed as an escape, as Python writes it; line ends stay."""
    return text if text.isprintable() else "\n".join(map(visible_line, text.split("\n")))


def visible_line(text: str) -> str:
    """Return ``text`` as one line: line ends are escapes too. For names, which must not look like lines of a report."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def is_silent() -> bool:
    """Return whether this is a process of torchrun, and another one of them, the first, speaks for it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0"


def tell(line: str, *, by_all: bool = False) -> None:
    """Write one line to stderr, with the name of swcheck before it; of several processes the first one, unless ``by_all`` do."""
    if by_all or not is_silent():
        sys.stderr.write(f"swcheck: {visible_line(line)}\n")
