"""Shows the bars of long work on the terminal of a run, past pytest's capture of stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from swcheck.base.terminal.progress import Terminal, end_bars, shown_on
from swcheck.base.terminal.visible import is_silent


def show_bars(config: pytest.Config) -> Callable[[], None]:
    """Show bars below the line that pytest writes, if stderr is a terminal, until the function that is returned is called."""
    stack = ExitStack()
    if sys.stderr is not None and sys.stderr.isatty() and not is_silent():
        copy = os.dup(sys.stderr.fileno())  # of what pytest will replace while a test runs
        stream = stack.enter_context(os.fdopen(copy, "w", encoding=sys.stderr.encoding, errors="replace"))
        is_shared = sys.stdout is not None and sys.stdout.isatty()
        stack.enter_context(shown_on(Terminal(stream, (lambda: written_on_line(config)) if is_shared else int)))
    return stack.close


def written_on_line(config: pytest.Config) -> int:
    """Return how many characters stand on the line that pytest is writing."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    return 0 if reporter is None else config.get_terminal_writer().width_of_current_line


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Iterator[Any]:
    """End the bars of what an error has broken off, before pytest writes of it."""
    end_bars()
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt() -> None:
    """End the bars of what was broken off."""
    end_bars()
