"""Noise of other packages: caught, kept, and everything as before afterwards."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import pytest

from swcheck.base.isolation import (
    REPEATED_SECONDS,
    bounded,
    captured_output,
    interrupts_kept,
    panics_as_errors,
    undisturbed,
)


def test_what_is_caught(capfd, caplog):
    """Both streams, warnings and low loggers are silent inside; the lines are kept once, a progress bar as it ended."""
    with captured_output() as noise:
        sys.stdout.write("banner\nbanner\n")
        sys.stderr.write("\r10 %\r100 %\n\n")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.getLogger("somebody").warning("careful")
        logging.getLogger("somebody").error("broken")
    assert noise.lines == ["banner", "100 %", "DeprecationWarning: old"]
    assert capfd.readouterr().out == ""
    assert [record.message for record in caplog.records] == ["broken"]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(capsys, caplog, fails):
    """Streams, filters and the level of logging are given back, also by an exception."""
    level, filters, streams = logging.root.manager.disable, list(warnings.filters), (sys.stdout, sys.stderr)
    try:
        with captured_output():
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert (logging.root.manager.disable, list(warnings.filters), (sys.stdout, sys.stderr)) == (level, filters, streams)
    sys.stdout.write("heard")
    logging.getLogger("somebody").warning("heard")
    assert capsys.readouterr().out == "heard"
    assert [record.message for record in caplog.records] == ["heard"]


def test_a_stricter_level_stays():
    """Whoever has silenced more than warnings keeps it so."""
    logging.disable(logging.CRITICAL)
    try:
        with captured_output():
            assert logging.root.manager.disable == logging.CRITICAL
        assert logging.root.manager.disable == logging.CRITICAL
    finally:
        logging.disable(logging.NOTSET)


def test_an_error_carries_what_was_said():
    """The last lines before a failure are its note, for the traceback; a silent failure has none."""
    with pytest.raises(ValueError, match="bad") as caught, captured_output():
        sys.stdout.write("".join(f"line {number}\n" for number in range(9)))
        raise ValueError("bad")
    assert caught.value.__notes__ == ["said meanwhile: line 4\n  line 5\n  line 6\n  line 7\n  line 8"]
    with pytest.raises(ValueError, match="bad") as caught, captured_output():
        raise ValueError("bad")
    assert not hasattr(caught.value, "__notes__")


def test_blocks_nest():
    """An inner block keeps its own lines from the outer."""
    with captured_output() as outer:
        sys.stdout.write("outer\n")
        with captured_output() as inner:
            sys.stdout.write("inner\n")
    assert (outer.lines, inner.lines) == (["outer"], ["inner"])


@pytest.mark.parametrize("fails", [False, True])
def test_environment_and_random_numbers_are_as_before(fails):
    """What is set, deleted or drawn inside is undone, also by an exception."""
    os.environ["SWCHECK_TEST"] = "kept"
    before, state = dict(os.environ), random.getstate()
    try:
        with undisturbed():
            os.environ["SWCHECK_OTHER"] = "1"
            del os.environ["SWCHECK_TEST"]
            random.seed(7)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert (dict(os.environ), random.getstate()) == (before, state)
    del os.environ["SWCHECK_TEST"]


def test_a_timer_of_others_goes_on():
    """A block within its bounds changes nothing, and the timer that somebody else had set still comes."""
    heard = []
    before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with bounded(5, 2**28):
        assert sum(range(10)) == 45
    assert not heard
    time.sleep(0.4)
    assert heard == [1]
    signal.signal(signal.SIGALRM, before)


def test_memory_is_bounded():
    """What needs more memory than is allowed is a memory error, and afterwards it is there again."""
    with bounded(5, 2**28), pytest.raises(MemoryError):
        bytearray(2**29)
    assert len(bytearray(2**29)) == 2**29


@pytest.mark.parametrize("block", [interrupts_kept, undisturbed])
@pytest.mark.parametrize("swallowed", [True, False])
def test_no_interrupt_is_lost(block, swallowed):
    """One that a package takes for an error of its own is raised after the block; one that is not comes out once."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    after = []
    try:
        with pytest.raises(KeyboardInterrupt), block():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                if not swallowed:
                    raise
            after.append("the package went on")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert after == ["the package went on"] * swallowed
        with block():
            pass
    finally:
        signal.signal(signal.SIGINT, handler)


def test_an_interrupt_that_is_ignored_stays_so():
    """As in a job in the background of a shell, and in a thread, where no handler can be set."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_kept():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.skipif(sys.platform == "win32", reason="no signal wakes another thread there")
def test_an_interrupt_that_is_lost_is_repeated():
    """It ends what goes on after it got lost, once; the block after it is not disturbed."""
    went_on = False
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_kept(repeated=True):
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            time.sleep(60)
            went_on = True
        time.sleep(3 * REPEATED_SECONDS)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not went_on


class PanicException(BaseException):
    """As Rust raises it."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_only_a_panic_becomes_an_error(error):
    """It is told with its words; all else stays what it is."""
    with pytest.raises(RuntimeError, match="a fault in a package: index 2"), panics_as_errors():
        raise PanicException("index 2")
    with pytest.raises(error), panics_as_errors():
        raise error


INTERRUPTED = """
from swcheck.base.isolation import forget_interrupt

try:
    exec("raise KeyboardInterrupt")
except KeyboardInterrupt:
    forget_interrupt()
raise SystemExit(2)
"""


def test_an_interrupt_that_was_caught_does_not_end_the_process(tmp_path):
    """The exit code is the one that was given, although the interrupt came while a text was executed."""
    (tmp_path / "caught.py").write_text(INTERRUPTED, encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "caught"], cwd=tmp_path, check=False)
    assert done.returncode == 2
