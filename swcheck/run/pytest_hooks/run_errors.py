"""Errors of a run as a whole, which no test is to blame for: pytest counts and shows each under a name of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest

from swcheck.base.terminal.visible import visible_line

REMEMBERING: Final = ("lfplugin", "nfplugin", "stepwiseplugin")
"""The plugins that remember failed tests for a later run, in which these names would never pass."""


def log_run_error(config: pytest.Config, name: str, words: str) -> None:
    """Report an error called ``name`` that belongs to no test, to the terminal and to reports such as JUnit XML.

    ``name`` looks like a node id (``swcheck::baselines``). The exit code becomes 1.
    """
    report = pytest.TestReport(name, (name, None, name), {}, "failed", _shown(words), "teardown")
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    # The terminal would count it as one more test of the progress, which then exceeds 100 %.
    left_out = [terminal, *(config.pluginmanager.get_plugin(plugin) for plugin in REMEMBERING)]
    logreport = config.pluginmanager.subset_hook_caller("pytest_runtest_logreport", filter(None, left_out))
    logreport(report=report)
    if terminal is not None:
        terminal.stats.setdefault("error", []).append(report)


def _shown(words: str) -> Any:
    """Return what pytest shows of a failure with this text: all of it, and its first line in the short summary."""
    try:
        pytest.fail(words, pytrace=False)
    except pytest.fail.Exception as error:
        shown = pytest.ExceptionInfo.from_exception(error).getrepr(style="value", chain=False)
    crash = shown.reprcrash
    if crash is not None:
        crash.message = words.splitlines()[0]
    return shown


def unreviewed_message(paths: Iterable[Path]) -> str:
    """Return the message of a run that fails because it has measured new baselines, which have to be reviewed."""
    names = ", ".join(visible_line(_shortest(path)) for path in paths)
    return (
        f"baselines measured anew: {names}\n  review and commit them, then run without --swcheck-update"
        "\n  (--swcheck-accept lets the run that writes them pass)"
    )


def _shortest(path: Path) -> str:
    """Return a path relative to the working directory if it lies below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
