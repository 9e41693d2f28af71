"""Isolate swcheck from other packages: capture what they print, and undo their changes to environment variables.

Banners, warnings and progress bars of other packages would disturb the report. The captured lines are kept. An
exception that leaves the block carries the last five of them as a note.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field


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
            error.add_note("said meanwhile: " + "\n  ".join(captured.lines[-5:]))
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
