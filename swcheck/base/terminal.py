"""Makes text safe for a terminal: what files and other libraries say may hold control characters. Bars of long work.

Escape sequences in the name of a tensor or a directory could rewrite what stands on the screen, or the clipboard; marks of
the writing direction could turn a line around. All text for people passes through ``visible``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

Item = TypeVar("Item")

DELAY: Final = 1.0
"""A bar is shown after so many seconds: shorter work needs none."""


def visible(text: str) -> str:
    """Return ``text`` with every character that cannot be printed as an escape, as Python writes it; line ends stay."""
    return text if text.isprintable() else "\n".join(map(visible_line, text.split("\n")))


def visible_line(text: str) -> str:
    """Return ``text`` as one line: line ends are escapes too. For names, which must not look like lines of a report."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def tell(line: str) -> None:
    """Write one line to stderr, with the name of swcheck before it."""
    sys.stderr.write(f"swcheck: {visible_line(line)}\n")


def bar(words: str, total: int, unit: str) -> Any:
    """Return a bar of tqdm for ``total`` units of the work that ``words`` name; ``update(count)`` moves it, ``close()`` ends it."""
    from tqdm import tqdm

    shown = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(
        desc=f"swcheck: {words}", total=total, unit=unit, unit_scale=unit == "B", delay=DELAY, leave=False, file=sys.stderr, disable=not shown
    )  # fmt: skip


def with_bar(items: Iterable[Item], words: str, total: int) -> Iterator[Item]:
    """Yield ``items``, ``total`` of them, and show how far it is."""
    shown = bar(words, total, " batches")
    try:
        for item in items:
            yield item
            shown.update(1)
    finally:
        shown.close()
