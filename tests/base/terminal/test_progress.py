"""Bars stand on a terminal alone, never for what is done at once, and leave what is written there as it was."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest

from swcheck.base.terminal import progress
from swcheck.base.terminal.progress import Bar, Terminal, end_bars, shown_on, with_bar


class Screen(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 0


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "TICK", 0.01)


def shown(stream):
    """Wait until something is drawn, a second at most."""
    end = time.monotonic() + 1
    while not stream.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("stream", "delay", "is_shown"), [(Screen, 0.0, True), (Screen, 60.0, False), (io.StringIO, 0.0, False)]
)
def test_where_a_bar_is_shown(monkeypatch, stream, delay, is_shown):
    """On a terminal, after the delay; it is wiped away at the end."""
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(progress, "DELAY", delay)
    found = []
    for item in with_bar([1, 2], "scoring tokens", 2):
        time.sleep(0.05)
        found.append(item)
    assert found == [1, 2]
    assert ("swcheck: scoring tokens" in sys.stderr.getvalue()) == is_shown
    assert sys.stderr.getvalue().rpartition("\r")[2] == ""


def test_a_bar_of_bytes(monkeypatch):
    """It counts in units that people read."""
    monkeypatch.setattr(sys, "stderr", Screen())
    with Bar("reading weights", 2 * 10**9, "B") as bar:
        bar.done = 10**9
        time.sleep(0.1)
    assert "1.00G/2.00G" in sys.stderr.getvalue()


@pytest.mark.parametrize("total", [None, 1])
def test_work_of_one_step_shows_the_time_alone(monkeypatch, total):
    """A share of one step says nothing: words and a clock that goes on."""
    monkeypatch.setattr(sys, "stderr", Screen())
    with Bar("loading tiny", total):
        assert "%" not in shown(sys.stderr)
    assert "swcheck: loading tiny  00:00" in sys.stderr.getvalue()


@pytest.mark.parametrize(("column", "before", "after"), [(7, "\n", "\x1b[A\x1b[8G"), (0, "", "\r")])
def test_a_bar_stands_below_the_line_that_is_written(column, before, after):
    """A line that has begun stays, and writing goes on at its end; an empty one is used."""
    stream = Screen()
    with shown_on(Terminal(stream, lambda: column)), Bar("loading tiny"):
        shown(stream)
    assert stream.getvalue().startswith(f"{before}\r")
    assert stream.getvalue().endswith(after)


def test_a_bar_inside_another_goes_back_once():
    """Only the last one that ends leaves the lines of the bars."""
    stream = Screen()
    with shown_on(Terminal(stream, lambda: 3)), Bar("looking for the cause", 4):
        shown(stream)
        with Bar("scoring tokens", 4):
            time.sleep(0.05)
        assert "scoring tokens" in stream.getvalue()
        assert "\x1b[4G" not in stream.getvalue()
    assert stream.getvalue().count("\x1b[4G") == 1


def test_what_an_error_breaks_off_is_wiped_away():
    """A traceback keeps the loop alive; the bar does not go on in it."""
    stream = Screen()

    def work():
        for _ in with_bar(range(3), "scoring tokens", 3):
            shown(stream)
            raise OSError

    with shown_on(Terminal(stream)), pytest.raises(OSError) as caught:
        work()
    end_bars()
    assert caught.value.__traceback__ is not None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("swcheck:")]
    assert stream.getvalue().rpartition("\r")[2] == ""
