"""``swcheck check MODEL [--candidate ...]``: the shipped suite without pytest's words, its output and exit codes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from swcheck.run.options import CANDIDATE, MODEL, OPTIONS, REPEATABLE, Option

LEFT_OUT = ("model", "require", "update", "accept")
"""Options that the command sets itself, or that ``swcheck baseline`` is for."""


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``: its arguments are the options of the plugin by their short names."""
    parser = commands.add_parser(
        "check",
        help="check a model, or a candidate against it: the release gate",
        epilog="Exit codes: 0 all passed, 1 something is red, 2 interrupted, 4 the run could not begin.",
    )
    parser.add_argument("model", help="tiny, a known name, a hub id or a directory")
    for option in OPTIONS:
        if option.name in LEFT_OUT:
            continue
        words = option.words.removeprefix(f"short: {CANDIDATE.alias}. ").replace("%", "%%")
        if option.kind == "flag":
            parser.add_argument(_flag(option), dest=option.dest, action="store_true", help=words)
        else:
            action = "append" if option.kind in REPEATABLE else "store"
            parser.add_argument(_flag(option), dest=option.dest, action=action, metavar=option.metavar, help=words)
    parser.add_argument("-k", metavar="WORDS", help="only the checks whose name matches, as pytest's -k")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="what was ruled out, green rows, the numbers of other tools"
    )
    parser.set_defaults(run=run)


def _flag(option: Option) -> str:
    return f"--{option.name.replace('_', '-')}"


def run(options: argparse.Namespace) -> None:
    """Become the run of the suite, with its output and its exit code.

    A process that waits for another one would have to share its signals: Ctrl-C in a terminal reaches both, the signal of a
    CI system one. Where the system cannot replace a program (Windows), it waits.
    """
    words = command(options)
    if os.name == "posix":
        os.execv(words[0], words)  # noqa: S606 - Python itself, and arguments as one list
    else:
        options.code = subprocess.call(words)  # noqa: S603 - the same


def command(options: argparse.Namespace) -> list[str]:
    """Return the command line that runs the shipped suite, and nothing else, with these arguments."""
    words = [f"{MODEL.flag}={options.model}"]
    for option in OPTIONS:
        value = getattr(options, option.dest, None)
        if option.kind == "flag":
            words += [option.flag] * bool(value)
        elif value is not None:
            words += [f"{option.flag}={part}" for part in (value if isinstance(value, list) else [value])]
    selected = [*(["-k", options.k] if options.k else []), *(["-v"] if options.verbose else [])]
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    return [*pytest, *words, "--swcheck-require", *selected, "--pyargs", "swcheck.suite"]
