"""What is shown of an interrupt."""

from __future__ import annotations

import pytest

from swcheck.run.pytest_hooks.interrupt import last_shown


def interrupted(depth):
    if depth == 0:
        raise KeyboardInterrupt
    interrupted(depth - 1)


def hidden():
    __tracebackhide__ = True
    interrupted(0)


def test_an_interrupt_is_shown_by_its_last_entry():
    """The source of one frame is parsed, not that of every frame down to torch."""
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted(30)
    shown = last_shown(caught)
    assert [entry.name for entry in shown] == ["interrupted"]
    assert shown[0].lineno == caught.traceback[-1].lineno
    assert len(caught.traceback) == 32


def test_an_entry_that_is_hidden_is_not_shown():
    """As pytest shows no entry that hides itself; where all do, the traceback stays whole."""
    with pytest.raises(KeyboardInterrupt) as caught:
        hidden()
    caught.traceback = caught.traceback[:2]
    assert [entry.name for entry in last_shown(caught)] == ["test_an_entry_that_is_hidden_is_not_shown"]
    caught.traceback = caught.traceback[1:]
    assert [entry.name for entry in last_shown(caught)] == ["hidden"]
