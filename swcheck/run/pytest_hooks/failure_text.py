"""How pytest shows the failure of a test: the text of a swcheck error, folded to the terminal, and how to repeat it."""

from __future__ import annotations

import copy
import os
import shlex
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from swcheck.base.errors import RobustnessError, SwcheckError
from swcheck.base.terminal.visible import visible
from swcheck.run import options
from swcheck.run.pytest_hooks import processes
from swcheck.run.pytest_hooks.collection import is_shipped
from swcheck.run.pytest_hooks.stash import SETTINGS, SHOWN_ROWS, TAKEN_ALIASES, specs_of

PACKAGE: Final = Path(__file__).parents[2]
"""The folder of the package, whose frames are left out of tracebacks."""

SWCHECK_ERRORS: Final = (RobustnessError, SwcheckError)
"""The errors whose own text explains the failure."""

MARK: Final = "E       "
CLASS_NAME: Final = f"{RobustnessError.__module__}.{RobustnessError.__name__}: "
"""What pytest writes before each line, and before the first line, of the error of a user's test."""


def format_failure(report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException], item: pytest.Item) -> None:
    """Set how a failure is shown.

    A user's own test gets a traceback without the frames of swcheck and pytest. A test of the shipped suite gets no
    traceback, but the command that repeats it. With ``--tb=line`` both get the one line that pytest makes of the first
    line of the error. The short summary gets that line, too, without the name of the error's class.
    """
    frames = user_frames(excinfo, item.path)
    given = item.config.getoption("tbstyle", "auto")  # the defaults are for runs without the terminal plugin
    shown = without_shown_rows(excinfo, item)
    if is_shipped(item.path) or not frames:
        report.longrepr = shown.getrepr(style="value", chain=False)
    elif not item.config.getoption("fulltrace", False):
        shown.traceback = frames
        style = {"auto": "long"}.get(given, given)
        kwargs = {"showlocals": item.config.getoption("showlocals", False), "tbfilter": lambda info: info.traceback}
        report.longrepr = shown.getrepr(style=style, chain=False, **kwargs)
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = str(excinfo.value).splitlines()[0]
        if given == "line":
            report.longrepr.reprtraceback.reprentries = []  # type: ignore[union-attr]
    if is_shipped(item.path):
        set_sections(report, item, repeats=given != "line")


def set_sections(report: pytest.TestReport, item: pytest.Item, *, repeats: bool) -> None:
    """Leave out the log of a shipped test, unless the user asked for logs; add the command that repeats the test.

    Compilers write thousands of lines into the log.
    """
    if not (item.config.getoption("log_level", None) or item.config.getini("log_level")):
        report.sections = [section for section in report.sections if not section[0].startswith("Captured log")]
    if repeats:
        settings, (spec, candidate) = item.config.stash[SETTINGS], specs_of(item)
        candidates = settings.candidates if candidate is None else (candidate,)
        words = options.repeat_arguments(settings, spec or "", candidates, item.config.stash[TAKEN_ALIASES])
        command = shlex.join([*processes.command(settings), *words, "--pyargs", item.nodeid.partition("[")[0]])
        report.sections.append(("repeat", visible(command)))


def without_shown_rows(
    excinfo: pytest.ExceptionInfo[BaseException], item: pytest.Item
) -> pytest.ExceptionInfo[BaseException]:
    """Return the error of a check folded to the terminal, without the rows that another check of its models has shown.

    The rows of this error are remembered as shown. An error whose text is not its verdict's, which a user's own test
    raises, is returned unchanged.
    """
    from swcheck.base.terminal.wrapping import wrapped_error as folded_error
    from swcheck.gate.verdict_message import message_rows, verdict_message

    error, test = excinfo.value, item.name.partition("[")[0]
    shipped = is_shipped(item.path)
    width = shutil.get_terminal_size().columns - (0 if shipped else len(MARK))
    shown = item.config.stash.setdefault(SHOWN_ROWS, {}).setdefault(specs_of(item), {})
    if isinstance(error, RobustnessError) and str(error) == verdict_message(error.verdict):
        words = verdict_message(error.verdict, shown, width=width, brief=item.config.get_verbosity() < 1)
        first = words.partition("\n")[0]
        # pytest writes the name of the class before the first line of a user's test
        tight = not shipped and len(first) + len(CLASS_NAME) > width
        brief: BaseException = RobustnessError("\n" * tight + words, error.verdict)
        rows = message_rows(error.verdict)
    elif shipped:
        rows = [("error", str(error))]
        place = shown.get(rows[0])
        words = str(error) if place is None else f"{str(error).splitlines()[0]}\n  as under {place}"
        brief = pytest.fail.Exception(folded_error(words, width))
    else:
        return excinfo
    for row in rows:
        shown.setdefault(row, test)
    return pytest.ExceptionInfo.from_exc_info((type(brief), brief, excinfo.tb))


def make_room_for_causes(terminalreporter: Any) -> None:
    """Let the short summary name a shipped test without its module, where the cause would be cut off behind its whole id.

    The command that repeats the test stands under its failure. In CI pytest cuts nothing.
    """
    if any(os.environ.get(name) for name in ("CI", "BUILD_NUMBER")):
        return
    width = shutil.get_terminal_size().columns
    for outcome, word in (("failed", "FAILED"), ("error", "ERROR")):
        reports = terminalreporter.stats.get(outcome, [])
        reports[:] = [_with_brief_name(report, width - len(f"{word}  - ")) for report in reports]


def _with_brief_name(report: Any, room: int) -> Any:
    from swcheck.run.reports.summary import SUITE

    crash = getattr(getattr(report, "longrepr", None), "reprcrash", None)
    if crash is None or not report.nodeid.startswith(SUITE) or len(report.nodeid) + len(crash.message) <= room:
        return report
    brief = copy.copy(report)
    brief.nodeid = report.nodeid.partition("::")[2]
    return brief


def user_frames(excinfo: pytest.ExceptionInfo[BaseException], test: Path) -> Any:
    """Return the traceback from the test file on, without the frames of pytest and of swcheck."""

    def is_users(entry: Any) -> bool:
        path = Path(entry.path)
        return PACKAGE not in path.parents and not {"_pytest", "pluggy"} & set(path.parts)

    return excinfo.traceback.cut(path=test).filter(is_users)
