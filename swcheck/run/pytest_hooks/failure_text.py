"""How pytest shows the failure of a test: the text of a swcheck error, folded to the terminal, and how to repeat it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from swcheck.base.errors import RobustnessError, SwcheckError
from swcheck.run import options
from swcheck.run.pytest_hooks.collection import is_shipped
from swcheck.run.pytest_hooks.stash import SETTINGS, SHOWN_ROWS, TAKEN_ALIASES, specs_of

PACKAGE: Final = Path(__file__).parents[2]
"""The folder of the package, whose frames are left out of tracebacks."""

SWCHECK_ERRORS: Final = (RobustnessError, SwcheckError)
"""The errors whose own text explains the failure."""


def format_failure(report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException], item: pytest.Item) -> None:
    """Set how a failure is shown.

    A user's own test gets a traceback without the frames of swcheck and pytest. A test of the shipped suite gets no
    traceback, but the command that repeats it. The short summary gets the first line of the error without the name of
    its class.
    """
    frames = user_frames(excinfo, item.path)
    if is_shipped(item.path) or not frames:
        report.longrepr = without_shown_rows(excinfo, item).getrepr(style="value", chain=False)
    elif not item.config.getoption("fulltrace", False):  # the defaults are for runs without the terminal plugin
        excinfo.traceback = frames
        given = item.config.getoption("tbstyle", "auto")
        style = {"auto": "long"}.get(given, given)
        kwargs = {"showlocals": item.config.getoption("showlocals", False), "tbfilter": lambda info: info.traceback}
        report.longrepr = excinfo.getrepr(style=style, chain=False, **kwargs)
    if is_shipped(item.path):
        if not (item.config.getoption("log_level", None) or item.config.getini("log_level")):
            # the user asked for no logs, and compilers write thousands of lines into them
            report.sections = [section for section in report.sections if not section[0].startswith("Captured log")]
        settings, (spec, candidate) = item.config.stash[SETTINGS], specs_of(item)
        candidates = settings.candidates if candidate is None else (candidate,)
        words = [
            "pytest",
            *options.repeat_arguments(settings, spec or "", candidates, item.config.stash[TAKEN_ALIASES]),
        ]
        report.sections.append(("repeat", shlex.join([*words, "--pyargs", item.nodeid.partition("[")[0]])))
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = str(excinfo.value).splitlines()[0]


def without_shown_rows(
    excinfo: pytest.ExceptionInfo[BaseException], item: pytest.Item
) -> pytest.ExceptionInfo[BaseException]:
    """Return the error of a shipped check without the rows that another check of the same models has shown already.

    The rows of this error are remembered as shown. The error of a user's own test is returned unchanged.
    """
    from swcheck.base.wrapping import wrapped_error as folded_error
    from swcheck.gate.verdict_message import message_rows, verdict_message

    width = shutil.get_terminal_size().columns
    error, test = excinfo.value, item.name.partition("[")[0]
    shown = item.config.stash.setdefault(SHOWN_ROWS, {}).setdefault(specs_of(item), {})
    if not is_shipped(item.path):
        return excinfo
    if isinstance(error, RobustnessError) and str(error) == verdict_message(error.verdict):
        brief: BaseException = RobustnessError(verdict_message(error.verdict, shown, width=width), error.verdict)
        rows = message_rows(error.verdict)
    else:
        rows = [("error", str(error))]
        place = shown.get(rows[0])
        words = str(error) if place is None else f"{str(error).splitlines()[0]}\n  as under {place}"
        brief = pytest.fail.Exception(folded_error(words, width))
    for row in rows:
        shown.setdefault(row, test)
    return pytest.ExceptionInfo.from_exc_info((type(brief), brief, excinfo.tb))


def user_frames(excinfo: pytest.ExceptionInfo[BaseException], test: Path) -> Any:
    """Return the traceback from the test file on, without the frames of pytest and of swcheck."""

    def is_users(entry: Any) -> bool:
        path = Path(entry.path)
        return PACKAGE not in path.parents and not {"_pytest", "pluggy"} & set(path.parts)

    return excinfo.traceback.cut(path=test).filter(is_users)
