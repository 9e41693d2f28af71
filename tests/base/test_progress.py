"""Bars stand on a terminal alone, and never for what is done at once."""

from __future__ import annotations

import io
import sys

import pytest

from swcheck.base import terminal
from swcheck.base.terminal import bar, with_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "delay", "shown"), [(Terminal, 0.0, True), (Terminal, 60.0, False), (io.StringIO, 0.0, False)]
)
def test_where_a_bar_is_shown(monkeypatch, stream, delay, shown):
    """On a terminal, after the delay; it is wiped away at the end."""
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(terminal, "DELAY", delay)
    assert list(with_bar([1, 2], "scoring tokens", 2)) == [1, 2]
    assert ("swcheck: scoring tokens" in sys.stderr.getvalue()) == shown
    assert not sys.stderr.getvalue().endswith("%")


def test_a_bar_of_bytes(monkeypatch):
    """It counts in units that people read."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(terminal, "DELAY", 0.0)
    shown = bar("reading weights", 2 * 10**9, "B")
    shown.n = 10**9
    shown.refresh()
    shown.close()
    assert "1.00G/2.00G" in sys.stderr.getvalue()
