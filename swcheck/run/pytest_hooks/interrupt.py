"""Ctrl-C ends a run within a second."""

from __future__ import annotations

import atexit
import gc
from typing import Any

import pytest

from swcheck.run.pytest_hooks.stash import INTERRUPTED


def end_quickly(config: pytest.Config, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Note the interrupt before the fixtures end, so that no baseline is measured after it, and leave out what takes long.

    pytest would parse the source of every frame, of torch too, to show it with ``--full-trace`` alone, and Python would
    look for garbage among all that torch made.
    """
    config.stash[INTERRUPTED] = True
    atexit.register(gc.freeze)
    if not config.option.fulltrace:
        excinfo.value.__suppress_context__ = True
        excinfo.traceback = last_shown(excinfo)


def last_shown(excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
    """Return the traceback with its last visible entry alone, whole if none is visible."""
    whole = excinfo.traceback
    places = [place for place, entry in enumerate(whole) if not entry.ishidden(excinfo)]
    return whole[places[-1] : places[-1] + 1] if places else whole
