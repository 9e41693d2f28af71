"""The ``swcheck`` command: its parser, and what an error ends with.

With ``--json`` only JSON goes to stdout; whatever other libraries print goes to stderr.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import SwcheckError
from swcheck.base.terminal.progress import end_bars
from swcheck.base.terminal.visible import is_silent, visible
from swcheck.loading.parallel.launch import ERROR_SECONDS
from swcheck.run.command_line import (
    accuracy,
    baseline,
    cache,
    check,
    history,
    index,
    init,
    locate,
    merge_experts,
    plot,
    preflight,
    study,
)

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where nothing more can be written; it names no file then."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand, and print what it returns; None is printed by the subcommand itself.

    Returns the exit code: 0 if it is done, whatever it found, unless the subcommand sets another one as ``code``; 2 for
    wrong arguments, a model that cannot be used or a file that cannot be written; 141 if the reader of the output has
    closed it. Ctrl-C comes out as ``KeyboardInterrupt``.
    """
    atexit.register(gc.freeze)  # Python would look for garbage among all that torch made, for a second and more
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], str | None] = options.run
    try:
        with redirect_stdout(sys.stderr):
            answer = _without_bars_left(run, options)
    except SwcheckError as error:
        _tell_error(str(error))
        return 2
    except OSError as error:  # a full disk, a file that went away: nothing of ours to look into
        if error.filename is None and error.errno not in NO_ROOM:
            raise
        _tell_error(visible(f"{error.filename or 'a temporary file'}: {error.strerror}"))
        return 2
    return (0 if answer is None or is_silent() else _write(answer)) or options.code


def _tell_error(words: str) -> None:
    """Write an error to stderr, of several processes in those behind the first after time for it to tell the same."""
    if is_silent():
        time.sleep(ERROR_SECONDS)
    sys.stderr.write(f"swcheck: {words}\n")


def _without_bars_left(run: Callable[[argparse.Namespace], str | None], options: argparse.Namespace) -> str | None:
    try:
        return run(options)
    finally:
        end_bars()


def _write(answer: str) -> int:
    try:
        sys.stdout.write(visible(answer) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, for example `head`, closed its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def documentation() -> Path | None:
    """Return the folder of the documentation: that of a clone, or the one that the wheel installs; None if there is neither."""
    places = (Path(__file__).parents[3] / "docs", Path(sys.prefix) / "share" / "doc" / "swcheck")
    return next((place for place in places if (place / "super-weights.md").is_file()), None)


def _parser() -> argparse.ArgumentParser:
    where = documentation()
    words = f"First steps: swcheck init, swcheck check tiny.{f' Documentation: {where}' if where else ''}"
    parser = argparse.ArgumentParser(prog="swcheck", description="Super weights of language models.", epilog=words)
    parser.set_defaults(code=0)
    parser.add_argument("--version", action="version", version=f"swcheck {version('swcheck')}")
    _add_completion(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (
        check,
        init,
        baseline,
        preflight,
        locate,
        merge_experts,
        plot,
        index,
        accuracy,
        study,
        history,
        cache,
    ):
        command.add(commands)
    return parser


class _NoCompletion(argparse.Action):
    """Takes the place of the option where the library that writes completions is not installed."""

    def __call__(self, parser: argparse.ArgumentParser, *_arguments: Any) -> None:
        parser.error("shtab is not installed: pip install 'swcheck[completion]'")


def _add_completion(parser: argparse.ArgumentParser) -> None:
    words = 'print a completion script for this shell: eval "$(swcheck --completion bash)"'
    try:
        import shtab
    except ImportError:
        parser.add_argument("--completion", action=_NoCompletion, metavar="SHELL", help=words)
    else:
        shtab.add_argument_to(parser, ["--completion"], help=words)
