"""Isolate swcheck from other packages: capture what they print, undo what they change, bound what they take.

Banners, warnings and progress bars of other packages would disturb the report. The captured lines are kept. An
exception that leaves the block carries the last five of them as a note.
"""

from __future__ import annotations

import io
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from swcheck.base.terminal.visible import visible


@dataclass
class CapturedOutput:
    """The captured lines, in order and without duplicates. ``lines`` is filled when the block ends."""

    lines: list[str] = field(default_factory=list)


@contextmanager
def captured_output() -> Iterator[CapturedOutput]:
    """Capture stdout, stderr and warnings, and silence loggers below ``ERROR``; restore all after the block.

    Of a line that overwrites itself (a progress bar) only the last state is kept. Output of subprocesses and of C
    libraries is not captured.
    """
    captured, stream, level = CapturedOutput(), io.StringIO(), logging.root.manager.disable
    try:
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(stream), redirect_stderr(stream):
            warnings.simplefilter("always")
            logging.disable(max(level, logging.WARNING))
            try:
                yield captured
            finally:
                logging.disable(level)
                lines = [line.rsplit("\r", 1)[-1].strip() for line in stream.getvalue().split("\n")]
                lines += [f"{warning.category.__name__}: {warning.message}" for warning in caught]
                captured.lines.extend(line for line in dict.fromkeys(lines) if line)
    except Exception as error:
        if captured.lines:
            error.add_note(visible("said meanwhile: " + "\n  ".join(captured.lines[-5:])))
        raise


@contextmanager
def restored_environment(**wanted: str) -> Iterator[None]:
    """Restore all environment variables after the block, whatever the block sets.

    Inside the block the variables in ``wanted`` are set, unless they have a value already.
    """
    before = dict(os.environ)
    os.environ.update({name: value for name, value in wanted.items() if name not in before})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore environment variables and the state of Python's ``random`` after the block, and lose no Ctrl-C in it.

    Packages change both when they are imported: torch's compiler sets ``TORCHINDUCTOR_CACHE_DIR``, rich draws a number.
    """
    state = random.getstate()
    try:
        with restored_environment(), interrupts_kept():
            yield
    finally:
        random.setstate(state)


REPEATED_SECONDS: Final = 0.1
"""So often an interrupt that got lost is repeated."""


@contextmanager
def interrupts_kept(*, repeated: bool = False) -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` after the block where one was raised in it and got lost.

    A package in C that is being imported takes it for a part that is missing; torch does. Where it is to be ``repeated``, it
    is raised again and again until the block ends: for blocks that have nothing to clean up.
    """
    handler, lost, ended = signal.getsignal(signal.SIGINT), False, threading.Event()
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def repeat() -> None:
        while not ended.wait(REPEATED_SECONDS):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]

    repeating = threading.Thread(target=repeat, daemon=True)

    def note(number: int, frame: Any) -> None:
        nonlocal lost
        if repeated and not lost and hasattr(signal, "pthread_kill"):
            repeating.start()
        lost = True
        if not ended.is_set():
            handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        try:
            yield
        finally:
            ended.set()
    finally:
        ended.set()
        if repeating.ident is not None:  # what it has sent is taken by ``note``, which raises nothing any more
            repeating.join()
        signal.signal(signal.SIGINT, handler)
        if lost:
            raise KeyboardInterrupt


def forget_interrupt() -> None:
    """After a Ctrl-C that was caught, let Python end with its exit code: it would end itself by the signal.

    CPython notes an interrupt of a text that is executed, as an import does that makes classes, until the next such text.
    """
    exec("")  # noqa: S102 - the next text


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise a ``RuntimeError`` where a package that is written in Rust panics: its exception is no ``Exception``."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"a fault in a package: {error}") from error


class _ExpiredError(BaseException):
    """Raised inside a block whose time is over. No ``Exception``, so that no library takes it for an error of its own."""


@contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Raise ``TimeoutError`` in the block after ``seconds``, and ``MemoryError`` where it needs ``memory`` more bytes.

    The block may run Python code that others wrote. In the main thread of a POSIX system any computation is stopped, in
    other threads and elsewhere a single call into C is not. The memory is bounded on Linux only.
    """
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    stop = _alarm(seconds) if in_main else _tracer(seconds)
    lift = _memory_limit(memory)
    try:
        yield
    except _ExpiredError as error:
        raise TimeoutError(f"more than {seconds:g} s") from error
    finally:
        stop()
        lift()


def _alarm(seconds: float) -> Callable[[], None]:
    """Raise ``_ExpiredError`` here after ``seconds``; return a function that stops that. Another timer goes on afterwards."""

    def expire(_signal: int, _frame: Any) -> None:
        raise _ExpiredError

    handler = signal.signal(signal.SIGALRM, expire)
    earlier = signal.setitimer(signal.ITIMER_REAL, seconds)

    def stop() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if earlier[0]:
            signal.setitimer(signal.ITIMER_REAL, *earlier)

    return stop


def _tracer(seconds: float) -> Callable[[], None]:
    """Raise ``_ExpiredError`` at the next line of Python in this thread after ``seconds``; return a function that stops that.

    A trace function, not ``PyThreadState_SetAsyncExc``: to take such an exception back sends CPython 3.11 into an
    endless loop where another tracer (coverage) is at work.
    """
    end, earlier = time.monotonic() + seconds, sys.gettrace()

    def trace(_frame: Any, _event: str, _argument: Any) -> Any:
        if time.monotonic() > end:
            raise _ExpiredError
        return trace

    sys.settrace(trace)
    return lambda: sys.settrace(earlier)


def _memory_limit(memory: int) -> Callable[[], None]:
    """Allow this process ``memory`` more bytes of address space; return a function that lifts the limit again."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return lambda: None
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize() + memory
    soft = wanted if before[0] == resource.RLIM_INFINITY else min(wanted, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (soft, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_AS, before)
