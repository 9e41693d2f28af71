"""What is said of a run: a red check's own words, the table at the end, and the files that are written.

Verdicts travel with the reports of tests, so that those of xdist's workers come home as well.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from swcheck.base.errors import RobustnessError, SwcheckError
from swcheck.run import options
from swcheck.run.pytest_hooks.collection import is_shipped, suite_joins
from swcheck.run.pytest_hooks.stash import SESSION, SETTINGS, TAKEN, TOLD, settings_of, specs_of

if TYPE_CHECKING:
    from swcheck.base.records import Verdict
    from swcheck.run.reports.margins import Reported
    from swcheck.run.settings import Settings

HOME: Final = Path(__file__).parents[2]
WORDED: Final = (RobustnessError, SwcheckError)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send new verdicts along with the test's report, and let a red one speak for itself."""
    report = yield
    if report.failed and call.excinfo is not None and isinstance(call.excinfo.value, WORDED):
        speak(report, call.excinfo, item)
    verdicts = verdicts_of(item, report, None if call.excinfo is None else call.excinfo.value)
    if verdicts:
        from swcheck.run.reports.verdict_json import verdict_as_json

        report.swcheck = [verdict_as_json(verdict, item.nodeid) for verdict in verdicts]  # type: ignore[attr-defined]
    return report


def speak(report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException], item: pytest.Item) -> None:
    """A traceback that ends where the test called swcheck; none in the suite, where the command to repeat follows.

    In the short summary stands the first line of the error, without its class.
    """
    seen = seen_by(excinfo, item.path)
    if is_shipped(item.path) or not seen:
        report.longrepr = briefly(excinfo, item).getrepr(style="value", chain=False)
    elif not item.config.getoption("fulltrace", False):  # without the terminal plugin there are no such options
        excinfo.traceback = seen
        asked = item.config.getoption("tbstyle", "auto")
        style = {"auto": "long"}.get(asked, asked)
        shown = {"showlocals": item.config.getoption("showlocals", False), "tbfilter": lambda info: info.traceback}
        report.longrepr = excinfo.getrepr(style=style, chain=False, **shown)
    if is_shipped(item.path):
        if not (item.config.getoption("log_level", None) or item.config.getini("log_level")):
            # nobody asked for logs, and compilers write thousands of lines into them
            report.sections = [section for section in report.sections if not section[0].startswith("Captured log")]
        settings, (spec, candidate) = item.config.stash[SETTINGS], specs_of(item)
        candidates = settings.candidates if candidate is None else (candidate,)
        words = ["pytest", *options.repeating(settings, spec or "", candidates, item.config.stash[TAKEN])]
        report.sections.append(("repeat", shlex.join([*words, "--pyargs", item.nodeid.partition("[")[0]])))
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = str(excinfo.value).splitlines()[0]


def briefly(excinfo: pytest.ExceptionInfo[BaseException], item: pytest.Item) -> pytest.ExceptionInfo[BaseException]:
    """The error of a shipped check without what another check has said of the same model or candidate already."""
    from swcheck.base.wrapping import wrapped_error as folded_error
    from swcheck.gate.verdict_message import message_rows, verdict_message

    width = shutil.get_terminal_size().columns
    error, here = excinfo.value, item.name.partition("[")[0]
    told = item.config.stash.setdefault(TOLD, {}).setdefault(specs_of(item), {})
    if not is_shipped(item.path):
        return excinfo
    if isinstance(error, RobustnessError) and str(error) == verdict_message(error.verdict):
        shown: BaseException = RobustnessError(verdict_message(error.verdict, told, width=width), error.verdict)
        rows = message_rows(error.verdict)
    else:
        rows = [("error", str(error))]
        place = told.get(rows[0])
        words = str(error) if place is None else f"{str(error).splitlines()[0]}\n  as under {place}"
        shown = pytest.fail.Exception(folded_error(words, width))
    for row in rows:
        told.setdefault(row, here)
    return pytest.ExceptionInfo.from_exc_info((type(shown), shown, excinfo.tb))


def seen_by(excinfo: pytest.ExceptionInfo[BaseException], test: Path) -> Any:
    """The entries of a traceback from the test on that are neither pytest's nor swcheck's own."""

    def theirs(entry: Any) -> bool:
        path = Path(entry.path)
        return HOME not in path.parents and not {"_pytest", "pluggy"} & set(path.parts)

    return excinfo.traceback.cut(path=test).filter(theirs)


def verdicts_of(item: pytest.Item, report: pytest.TestReport, error: BaseException | None) -> list[Verdict]:
    """What this phase of a test has to report; a shipped check that gave no verdict gets one in words."""
    session = item.config.stash.get(SESSION, None)
    found = [] if session is None else session.take(failed=report.failed)
    marker = item.get_closest_marker("swcheck")
    red = any(verdict.red for verdict in found)
    silent = (report.failed and not red) or (report.skipped and not found)
    if silent and report.when != "teardown" and is_shipped(item.path) and marker is not None:
        found.append(unmeasured(item, report, str(marker.args[0]), error))
    return found


def unmeasured(item: pytest.Item, report: pytest.TestReport, check: str, error: BaseException | None) -> Verdict:
    """The verdict on a shipped check that broke off, or was skipped, before it could give its own."""
    from swcheck.base.records import Outcome, Verdict

    settings = settings_of(item.config)
    name, candidate = (spec if settings is None or spec is None else settings.name_of(spec) for spec in specs_of(item))
    name = name or ""
    if isinstance(error, SwcheckError):
        return Verdict(check, name, Outcome.FAILED, error.found, candidate, cause=error.asked, attempt=error.attempt)
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        words = (report.longreprtext if crash is None else crash.message).strip().splitlines() or ["broken off"]
        return Verdict(check, name, Outcome.FAILED, " ".join(map(str.strip, words[1:4])), candidate, cause=words[0])
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return Verdict(check, name, Outcome.SKIPPED, str(reason).removeprefix("Skipped: "), candidate)


def unreviewed(paths: Iterable[Path]) -> str:
    """Why a run that measured baselines anew is red, and what to do with them."""
    names = ", ".join(str(path) for path in paths)
    return f"baselines measured anew: {names}\n  review and commit them, then run without --swcheck-update"


class Reporter:
    """Gathers what the reports of tests bring, from workers too; at the end it is shown and written."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config, self.settings = config, settings
        self.brought: list[tuple[tuple[str, int], Reported]] = []
        self.loading: tuple[str, ...] = ()
        self.gathered: dict[Path, list[str]] = {}
        self.came_home = False
        self.last: pytest.TestReport | None = None
        self.written: list[Path] = []
        self.unwritten: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Say what a test has to load, and what that will cost, before it starts: a large model takes a while."""
        needs = getattr(item, "fixturenames", ())
        spec, candidate = specs_of(item)
        wanted = [spec] if spec and "swcheck_model" in needs else []
        wanted += [candidate] if candidate and "swcheck_candidate" in needs else []
        new = [name for name in wanted if name not in self.loading]
        self.loading = tuple(wanted) if spec in new else (*self.loading, *new)
        if new:
            self._announce("loading", spec or "", new)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Before the tests: under xdist they run elsewhere, so say here, once, what every worker loads and what that
        will cost. After them: baselines that came home from workers want a review, and are one error, as without xdist
        one at the end of the last test.
        """
        spread = getattr(self.config.option, "numprocesses", None) and suite_joins(session.config)
        for spec in self.settings.models if spread and not self.config.option.collectonly else ():
            self._announce("each worker loads", spec, [spec, *self.settings.candidates])
        done = yield
        if self.came_home and self.last is not None and not self.settings.accept:
            words = unreviewed(self.gathered)
            report = pytest.TestReport(self.last.nodeid, self.last.location, {}, "failed", words, "teardown")
            self.config.hook.pytest_runtest_logreport(report=report)
        return done

    def _announce(self, does: str, spec: str, wanted: Sequence[str]) -> None:
        """Write what is loaded beside the reference ``spec``, and the estimate, where anybody is told anything."""
        from swcheck.run.settings import estimate, sized

        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or self.config.get_verbosity() < 0:
            return
        terminal.write("" if getattr(terminal, "currentfspath", None) else "\n")
        terminal.ensure_newline()
        names = " and ".join(sized(self.settings, name) for name in wanted)
        terminal.write(f"swcheck: {does} {names}", flush=True)  # at once: what follows imports torch
        words = estimate(self.settings, spec, wanted)
        terminal.write_line(f"; {words}" if words else "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from swcheck.run.reports.verdict_json import verdict_from_json

        self.last = report
        if str(report.outcome) != "rerun":  # the word of plugins that try again
            place = (report.location[0], report.location[1] or 0)
            self.brought += [(place, verdict_from_json(record)) for record in getattr(report, "swcheck", ())]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of xdist has ended, and sends the baselines it measured."""
        for path, text in getattr(node, "workeroutput", {}).get("swcheck", {}).items():
            self.gathered.setdefault(Path(path), []).append(text)
            self.came_home = True

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.config.option.collectonly or exitstatus == pytest.ExitCode.USAGE_ERROR:
            return
        from swcheck.base.json_text import json_text
        from swcheck.base.output_files import write_atomically
        from swcheck.run.reports.verdict_json import document

        # Workers may have measured the same reference, one of them more of it.
        files = {path: max(texts, key=lambda text: (len(text), text)) for path, texts in self.gathered.items()}
        if self.settings.json is not None:
            files[self.settings.json] = json_text(document(self.worst())) + "\n"
        for path, text in files.items():
            try:
                write_atomically(path, text)
            except OSError as error:
                self.unwritten.append(f"swcheck: {path} cannot be written: {error.strerror or error}")
                if exitstatus == pytest.ExitCode.OK:
                    session.exitstatus = pytest.ExitCode.USAGE_ERROR
            else:
                self.written.append(path)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        from swcheck.run.reports.summary import summary

        lines = summary(self.worst(), shutil.get_terminal_size().columns)
        if lines:
            terminalreporter.ensure_newline()
            terminalreporter.section("swcheck")
        for line in lines:
            terminalreporter.write_line(line, **markup(line))
        for line in self.idle() if lines else ():
            terminalreporter.write_line(line, yellow=True)
        for line in self.unwritten:
            terminalreporter.write_line(line, red=True)
        for path in self.written if lines else ():
            terminalreporter.write_line(f"written: {path}")

    def idle(self) -> list[str]:
        """What was asked of models that this run does not have: a name with a slip in it would gate nothing."""
        from swcheck.base.wrapping import wrapped
        from swcheck.run.limit_overrides import idle

        found = idle(self.settings.overrides, self.settings.models, self.settings.candidates)
        names = ", ".join(dict.fromkeys(f"{one.model}:{one.name} ({one.origin})" for one in found))
        words = f"limits for no model of this run: {names}"
        return wrapped(words, shutil.get_terminal_size().columns, 2) if found else []

    def worst(self) -> Sequence[Reported]:
        """One verdict per test and check, in the order of the models, the candidates, then of the tests; workers report in any."""
        from swcheck.run.reports.margins import worst_of_each

        models, candidates = (
            [self.settings.name_of(spec) for spec in specs]
            for specs in (self.settings.models, self.settings.candidates)
        )

        def order(entry: tuple[tuple[str, int], Reported]) -> tuple[int, bool, int, bool, tuple[str, int]]:
            place, (_, verdict) = entry
            model = models.index(verdict.model) if verdict.model in models else len(models)
            name = verdict.candidate
            number = candidates.index(name) if name in candidates else len(candidates)
            return model, name is not None, number, verdict.outcome == "skipped", place

        return worst_of_each(reported for _, reported in sorted(self.brought, key=order))


def markup(line: str) -> dict[str, bool]:
    """Colour for a row of the table, by its outcome."""
    colours = {"FAILED": "red", "inconclusive": "red", "near": "yellow"}
    return {colour: True for word, colour in colours.items() if line.endswith(f"  {word}")}
