"""Shows long work on a terminal: what is done, how far, how long yet. It appears after a second, and is wiped away.

Where stderr is no terminal nothing is shown. A run of pytest captures stderr, so the plugin tells with ``shown_on`` which
terminal there is. Bars are drawn by tqdm; a clock moves them while a single step takes long.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Self, TextIO, TypeVar
from weakref import WeakSet

from swcheck.base.terminal.visible import is_silent

Item = TypeVar("Item")

DELAY: Final = 1.0
"""A bar is shown after so many seconds: shorter work needs none."""

TICK: Final = 0.25
"""A bar is drawn again after so many seconds."""

STEPS_FOR_A_BAR: Final = 2
"""With fewer steps the words and the clock alone are shown."""


class Terminal:
    """A terminal that bars are drawn on: on the line below what is written, from whose end writing goes on.

    ``column`` tells how many characters stand on the line that is being written.
    """

    def __init__(self, stream: TextIO, column: Callable[[], int] = lambda: 0) -> None:
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "ascii"
        self._column, self._open, self._is_below = column, 0, False

    def write(self, text: str) -> None:
        """Draw a part of a bar; the first one begins a new line if something stands on the current one."""
        if not self._is_below and self._column():
            self._is_below = True
            self.stream.write("\n")
        self.stream.write(text)

    def flush(self) -> None:
        """Show what was drawn."""
        self.stream.flush()

    def fileno(self) -> int:
        """Return the descriptor by which tqdm asks for the width."""
        return self.stream.fileno()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw a bar inside the block; after the last one, go back to the end of the line above."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if self._is_below and not self._open:
                self.stream.write(f"\x1b[A\x1b[{self._column() + 1}G")
                self.stream.flush()
                self._is_below = False


_TERMINALS: Final[list[Terminal]] = []
"""The terminals of the runs that are going on, the innermost last."""


@contextmanager
def shown_on(terminal: Terminal) -> Iterator[None]:
    """Draw the bars of the block on ``terminal`` instead of stderr."""
    _TERMINALS.append(terminal)
    try:
        yield
    finally:
        _TERMINALS.remove(terminal)


class Bar:
    """A bar for ``total`` units of the work that ``words`` name, None if that is not known. A context manager.

    ``done`` is how many units are done. A thread draws it, so that its clock goes on while a single unit takes long.
    """

    def __init__(self, words: str, total: int | None = None, unit: str = "step") -> None:
        self.done = 0
        self._words, self._total, self._unit, self._start = words, total, unit, time.time()
        self._terminal, self._ended = _TERMINALS[-1] if _TERMINALS else _stderr(), threading.Event()
        self._thread = threading.Thread(target=self._draw, name=f"swcheck: {words}", daemon=True)

    def __enter__(self) -> Self:
        if self._terminal is not None:
            _OPEN.add(self)
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()

    def end(self) -> None:
        """Wipe the bar away; a second time does nothing."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        _OPEN.discard(self)

    def _draw(self) -> None:
        """Draw the bar until the work has ended; nothing, if it ends at once."""
        if self._terminal is None or self._ended.wait(DELAY):
            return
        from tqdm import tqdm

        without_monitor = type("tqdm", (tqdm,), {"monitor_interval": 0})  # a thread of its own that never ends
        shape = None if self._total is not None and self._total >= STEPS_FOR_A_BAR else "{desc}  {elapsed}"
        with self._terminal.drawing():
            bar = without_monitor(
                desc=f"swcheck: {self._words}", total=self._total, unit=self._unit, unit_scale=self._unit == "B",
                bar_format=shape, leave=False, file=self._terminal,
            )  # fmt: skip
            bar.start_t = self._start
            while not self._ended.wait(TICK):
                bar.n = self.done
                bar.refresh()
            bar.close()


_OPEN: Final[WeakSet[Bar]] = WeakSet()


def end_bars() -> None:
    """Wipe away the bars of work that an error has broken off: its traceback may keep a loop alive that would draw on."""
    for bar in tuple(_OPEN):
        bar.end()


def with_bar(items: Iterable[Item], words: str, total: int) -> Iterator[Item]:
    """Yield ``items``, ``total`` of them, and show how far it is."""
    with Bar(words, total) as bar:
        for item in items:
            yield item
            bar.done += 1


def _stderr() -> Terminal | None:
    shown = sys.stderr is not None and sys.stderr.isatty() and not is_silent()
    return Terminal(sys.stderr) if shown else None
