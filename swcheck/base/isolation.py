"""Keeps the noise of other people's packages (banners, warnings, progress bars) away from the report, and their settings
out of the process.

What is caught is kept, so that it can be named; an error that leaves the block carries it as a note.
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
class Noise:
    """The lines that were caught, each once, in the order they came; filled when the block is left."""

    lines: list[str] = field(default_factory=list)


@contextmanager
def captured_output() -> Iterator[Noise]:
    """Catch stdout, stderr and warnings, and silence loggers below ``ERROR``, inside the block; all as before after it.

    A line that overwrites itself (a progress bar) is kept as it stood last. What a process of its own or a C library
    writes is not caught.
    """
    noise, said, level = Noise(), io.StringIO(), logging.root.manager.disable
    try:
        with warnings.catch_warnings(record=True) as warned, redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("always")
            logging.disable(max(level, logging.WARNING))
            try:
                yield noise
            finally:
                logging.disable(level)
                raw = [line.rsplit("\r", 1)[-1].strip() for line in said.getvalue().split("\n")]
                raw += [f"{warning.category.__name__}: {warning.message}" for warning in warned]
                noise.lines.extend(line for line in dict.fromkeys(raw) if line)
    except Exception as error:
        if noise.lines:
            error.add_note("said meanwhile: " + "\n  ".join(noise.lines[-5:]))
        raise


@contextmanager
def restored_environment(**wanted: str) -> Iterator[None]:
    """The variables of the environment as they were, after a block that may set some; ``wanted`` are set where they are not."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in wanted.items() if name not in before})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
