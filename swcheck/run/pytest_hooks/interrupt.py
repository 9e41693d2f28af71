"""Ctrl-C ends a run within a second."""

from __future__ import annotations

import atexit
import gc
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pytest

from swcheck.run.pytest_hooks.stash import INTERRUPTED, is_worker, settings_of

WORKER_SECONDS: Final = 0.25
"""So long a run that was interrupted waits for its workers, which have nothing to write."""

MASK: pytest.StashKey[Iterable[int]] = pytest.StashKey()
"""The signals that were blocked before workers were started."""

FROZEN: pytest.StashKey[bool] = pytest.StashKey()
"""Set where an interrupt has taken all objects out of Python's search for garbage."""


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Let the search for garbage go on after the last cleanup of a run: what began it may live longer. Cleanups run backwards."""
    early_config.add_cleanup(lambda: gc.unfreeze() if early_config.stash.get(FROZEN, False) else None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Let Ctrl-C wait while xdist starts workers. They inherit that: a Python that is stopped at its start shows a traceback."""
    if settings_of(config) is not None and hasattr(signal, "pthread_sigmask"):
        config.stash[MASK] = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Iterator[None]:
    """Take a Ctrl-C that came while workers were started, and end them: xdist would wait a second for their answer."""
    try:
        return (yield)
    finally:
        if MASK in session.config.stash:
            if signal.SIGINT in signal.sigpending():
                xdist: Any = session.config.pluginmanager.get_plugin("dsession")
                xdist.nodemanager.group.terminate(timeout=0.1)
            signal.pthread_sigmask(signal.SIG_SETMASK, session.config.stash[MASK])


def pytest_configure(config: pytest.Config) -> None:
    """Take a Ctrl-C that came while this worker was started."""
    if is_worker(config) and settings_of(config) is not None and hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def end_quickly(config: pytest.Config, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Note the interrupt before the fixtures end, so that no baseline is measured after it, and leave out what takes long.

    pytest would parse the source of every frame, of torch too, to show it with ``--full-trace`` alone, and look for garbage
    among all that torch made, several times, as Python does at its end. hypothesis would be imported whole for its summary.
    """
    from swcheck.base.isolation import forget_interrupt

    config.stash[INTERRUPTED] = True
    forget_interrupt()
    atexit.register(gc.freeze)
    if not gc.get_freeze_count():
        config.stash[FROZEN] = True
        gc.freeze()
    if "hypothesis" not in sys.modules and config.pluginmanager.has_plugin("hypothesispytest"):
        config.pluginmanager.unregister(name="hypothesispytest")
    if not config.option.fulltrace:
        excinfo.value.__suppress_context__ = True
        excinfo.traceback = last_shown(excinfo)


def last_shown(excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
    """Return the traceback with its last visible entry alone, whole if none is visible."""
    whole = excinfo.traceback
    places = [place for place, entry in enumerate(whole) if not entry.ishidden(excinfo)]
    return whole[places[-1] : places[-1] + 1] if places else whole


class EarlyEnd:
    """The hooks that note the early end of a run, in a worker of xdist too: the run waits for it to end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        end_quickly(self.config, excinfo)
        xdist: Any = self.config.pluginmanager.get_plugin("dsession")
        if xdist is not None:  # it would wait 10 seconds for a worker that has lost its interrupt, before it kills it
            xdist.nodemanager.EXIT_TIMEOUT = WORKER_SECONDS

    def pytest_internalerror(self) -> None:
        """Note that pytest, or another plugin, has broken the run off."""
        self.config.stash[INTERRUPTED] = True
