"""Reports a run: the text of a red check, the summary at the end, and the files that are written.

Verdicts are attached to the reports of tests, because pytest-xdist sends those from its workers to the controller.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swcheck.base.errors import SwcheckError
from swcheck.base.terminal.visible import visible, visible_line
from swcheck.run.pytest_hooks.collection import is_shipped, suite_is_included
from swcheck.run.pytest_hooks.failure_text import SWCHECK_ERRORS, format_failure, make_room_for_causes
from swcheck.run.pytest_hooks.run_errors import log_run_error, unreviewed_message
from swcheck.run.pytest_hooks.stash import INTERRUPTED, SESSION, TAKEN_ALIASES, settings_of, specs_of

if TYPE_CHECKING:
    from swcheck.base.records import Verdict
    from swcheck.run.reports.margins import Reported
    from swcheck.run.settings import Settings


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the new verdicts to the report of the test, and show a swcheck error by its own text."""
    report = yield
    if report.failed and call.excinfo is not None and isinstance(call.excinfo.value, SWCHECK_ERRORS):
        format_failure(report, call.excinfo, item)
    verdicts = verdicts_of(item, report, None if call.excinfo is None else call.excinfo.value)
    if verdicts:
        from swcheck.run.reports.junit import junit_properties
        from swcheck.run.reports.verdict_json import verdict_as_json

        item.user_properties += junit_properties(verdicts)  # JUnit XML has those of the report of the teardown

        report.swcheck = [verdict_as_json(verdict, item.nodeid) for verdict in verdicts]  # type: ignore[attr-defined]
    return report


def verdicts_of(item: pytest.Item, report: pytest.TestReport, error: BaseException | None) -> list[Verdict]:
    """Return the verdicts of this phase of a test. A shipped test that fails or is skipped without one gets one."""
    session = item.config.stash.get(SESSION, None)
    found = [] if session is None else session.take_verdicts(failed=report.failed)
    marker = item.get_closest_marker("swcheck")
    red = any(verdict.red for verdict in found)
    lacks_verdict = (report.failed and not red) or (report.skipped and not found)
    if lacks_verdict and report.when != "teardown" and is_shipped(item.path) and marker is not None:
        found.append(verdict_without_measurement(item, report, str(marker.args[0]), error))
    return found


def verdict_without_measurement(
    item: pytest.Item, report: pytest.TestReport, check: str, error: BaseException | None
) -> Verdict:
    """Return a verdict without a number, for a shipped test that stopped with an error or a skip before it gave one."""
    from swcheck.base.records import Outcome, Verdict

    settings = settings_of(item.config)
    name, candidate = (spec if settings is None or spec is None else settings.name_of(spec) for spec in specs_of(item))
    name = name or ""
    failed = Verdict(check, name, Outcome.FAILED, "", candidate, facts={"phase": report.when})
    if isinstance(error, SwcheckError):
        return replace(failed, summary=error.found, cause=error.asked, attempt=error.attempt)
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        words = (report.longreprtext if crash is None else crash.message).strip().splitlines() or ["broken off"]
        return replace(failed, summary=" ".join(map(str.strip, words[1:4])), cause=words[0])
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return Verdict(check, name, Outcome.SKIPPED, str(reason).removeprefix("Skipped: "), candidate)


class Reporter:
    """Collects verdicts and baselines, those of xdist's workers too; prints and writes them at the end of the run.

    It is registered in the process that writes: under xdist in the controller, else in the only one.
    """

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config, self.settings = config, settings
        self.placed_verdicts: list[tuple[tuple[str, int], Reported]] = []
        self.loading: tuple[str, ...] = ()
        self.baseline_texts: dict[Path, list[str]] = {}
        self.written: list[Path] = []
        self.write_errors: list[str] = []

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Print the models that a test has to load and the estimated time before it: a large model takes a while.

        The estimate imports torch. It is made outside the hooks of other plugins: the time that pytest-timeout allows a
        test must not end in here, where pytest takes its exception for an internal error.
        """
        needs, (spec, candidate) = getattr(item, "fixturenames", ()), specs_of(item)
        pairs = ((spec, "swcheck_model"), (candidate, "swcheck_candidate"))
        wanted = [name for name, fixture in pairs if name and fixture in needs]
        new = [name for name in wanted if name not in self.loading]
        self.loading = tuple(wanted) if spec in new else (*self.loading, *new)
        if new:
            self._announce("loading", spec or "", new)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Under xdist, print before the tests what each worker loads; after the tests, report errors of the run itself.

        Such errors are new baselines, which want a review, and a required check that did not run.
        """
        announces = getattr(self.config.option, "numprocesses", None) and suite_is_included(session.config)
        for spec in self.settings.models if announces and not self.config.option.collectonly else ():
            self._announce("each worker loads", spec, [spec, *self.settings.candidates])
        result = yield
        if self.baseline_texts and not self.settings.accept:
            log_run_error(self.config, "swcheck::baselines", unreviewed_message(self.baseline_texts))
        if self.settings.require and not self.config.option.collectonly:
            words = self.unjudged()
            if words:
                log_run_error(self.config, "swcheck::require", words)
        return result

    def _announce(self, verb: str, spec: str, wanted: Sequence[str]) -> None:
        """Print the models that are loaded and the estimate, unless the run is quiet. ``spec`` is the reference."""
        from swcheck.run.settings import cost_estimate_words

        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or self.config.get_verbosity() < 0:
            return
        terminal.write("" if getattr(terminal, "currentfspath", None) else "\n")
        terminal.ensure_newline()
        names, new = names_with_sizes(self.settings, spec, wanted)
        terminal.write(visible_line(f"swcheck: {verb} {names}"), flush=True)  # before the estimate, which imports torch
        words = cost_estimate_words(self.settings, spec, new)
        terminal.write_line(f"; {words}" if words else "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from swcheck.run.reports.verdict_json import verdict_from_json

        if str(report.outcome) != "rerun":  # set by plugins that run a failed test again, whose next report counts
            place = (report.location[0], report.location[1] or 0)
            self.placed_verdicts += [(place, verdict_from_json(record)) for record in getattr(report, "swcheck", ())]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Collect the baselines that a worker of xdist measured; called when it ends."""
        for path, text in getattr(node, "workeroutput", {}).get("swcheck", {}).items():
            self.baseline_texts.setdefault(Path(path), []).append(text)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.config.option.collectonly or exitstatus == pytest.ExitCode.USAGE_ERROR:
            return
        from swcheck.base.output_files import write_atomically
        from swcheck.run.reports.report_files import append_step_summary, report_texts

        # Several workers may have measured the same reference; the longest text has the most measurements.
        files = {path: max(texts, key=lambda text: (len(text), text)) for path, texts in self.baseline_texts.items()}
        reported, warning = self.worst_verdicts(), self.unjudged().partition("\n")[0]
        given, broken = self.config.invocation_params.args, self.config.stash.get(INTERRUPTED, False)
        files |= report_texts(self.settings, reported, given, warning=warning, interrupted=broken)
        for path, text in files.items():
            try:
                write_atomically(path, text)
            except OSError as error:
                self.write_errors.append(f"swcheck: {path} cannot be written: {error.strerror or error}")
                if exitstatus == pytest.ExitCode.OK:
                    session.exitstatus = pytest.ExitCode.USAGE_ERROR
            else:
                self.written.append(path)
        if not self.settings.no_step_summary:
            with suppress(OSError):  # a courtesy: the run does not depend on it
                append_step_summary(reported, warning)
        print_causes(self.config, reported)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        from swcheck.run.reports.summary import summary

        columns, verbosity = shutil.get_terminal_size().columns, self.config.get_verbosity()
        lines = summary(self.worst_verdicts() if verbosity >= -1 else [], columns, verbose=verbosity > 0)
        if lines:
            terminalreporter.write_sep("=", "swcheck")
        for line in lines:
            terminalreporter.write_line(visible(line), **colour_of(line))
        for line in [*(unused_limits(self.settings) if lines else ()), *self.unjudged_lines()]:
            terminalreporter.write_line(visible(line), yellow=True, bold=True)
        for line in self.write_errors:
            terminalreporter.write_line(visible_line(line), red=True)
        for path in self.written if lines else ():
            terminalreporter.write_line(visible_line(f"written: {path}"))
        for line in () if self.settings.no_step_summary else self.annotations():
            terminalreporter.write_line(visible_line(line))
        make_room_for_causes(terminalreporter)

    def annotations(self) -> list[str]:
        """Return the annotations of GitHub Actions for the red checks and for what was not judged."""
        from swcheck.run.reports.report_files import annotation_lines

        reported, places = self.worst_verdicts(), {test: place for place, (test, _) in self.placed_verdicts}
        return annotation_lines(reported, [places[test] for test, _ in reported], self.unjudged().partition("\n")[0])

    def unjudged(self) -> str:
        """Return a sentence, and the command to run, if what this run names was judged by no check; empty otherwise."""
        from swcheck.run.reports.judged import gate_command, unjudged

        words = unjudged(self.settings, [reported for _, reported in self.placed_verdicts])
        command = gate_command(self.settings, self.config.stash[TAKEN_ALIASES])
        return f"{words}\n  try: {command}" if words else ""

    def unjudged_lines(self) -> list[str]:
        """Return the lines of this warning; none where ``--swcheck-require`` has made it an error."""
        from swcheck.base.terminal.wrapping import wrapped_error as folded_error

        words = "" if self.settings.require or self.config.option.collectonly else self.unjudged()
        return folded_error(f"swcheck: {words}", shutil.get_terminal_size().columns).splitlines() if words else []

    def worst_verdicts(self) -> Sequence[Reported]:
        """Return the worst verdict of each test and check, ordered by model, candidate and place of the test."""
        from swcheck.run.reports.margins import worst_of_each

        return worst_of_each(in_order(self.settings, self.placed_verdicts))


def print_causes(config: pytest.Config, reported: Sequence[Reported]) -> None:
    """Print the causes of several red candidates in one table, before pytest prints the details of each failure."""
    from swcheck.run.reports.causes_table import causes_table

    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or config.get_verbosity() < -1:
        return
    lines = causes_table(reported, shutil.get_terminal_size().columns)
    if lines:
        terminal.ensure_newline()
        terminal.section("causes")
    for line in lines:
        terminal.write_line(visible(line))


def in_order(settings: Settings, placed: Sequence[tuple[tuple[str, int], Reported]]) -> list[Reported]:
    """Return verdicts, given with the places of their tests, ordered by model, candidate and place; skipped ones last."""
    models, candidates = (
        [settings.name_of(spec) for spec in specs] for specs in (settings.models, settings.candidates)
    )

    def order(entry: tuple[tuple[str, int], Reported]) -> tuple[int, bool, int, bool, tuple[str, int]]:
        place, (_, verdict) = entry
        model = models.index(verdict.model) if verdict.model in models else len(models)
        name = verdict.candidate
        number = candidates.index(name) if name in candidates else len(candidates)
        return model, name is not None, number, verdict.outcome == "skipped", place

    return [reported for _, reported in sorted(placed, key=order)]


def names_with_sizes(settings: Settings, reference: str, wanted: Sequence[str]) -> tuple[str, list[str]]:
    """Return words for the models of a run, and those that are loaded: not a reference that an earlier run measured."""
    from swcheck.run.reference_cache import is_kept
    from swcheck.run.settings import name_with_size

    kept = [name for name in wanted if name == reference and is_kept(settings, reference)]
    names = (f"{name} as measured before" if name in kept else name_with_size(settings, name) for name in wanted)
    return " and ".join(names), [name for name in wanted if name not in kept]


def unused_limits(settings: Settings) -> list[str]:
    """Return a warning about limits for models that this run does not have: a mistyped name would limit nothing."""
    from swcheck.base.terminal.wrapping import wrapped
    from swcheck.run.limit_overrides import unused_overrides

    found = unused_overrides(settings.overrides, settings.models, settings.candidates)
    names = ", ".join(dict.fromkeys(f"{one.model}:{one.name} ({one.origin})" for one in found))
    words = f"limits for no model of this run: {names}"
    return wrapped(words, shutil.get_terminal_size().columns, 2) if found else []


def colour_of(line: str) -> dict[str, bool]:
    """Return the colour of a line of the summary: that of the outcome at its end."""
    colours = {"FAILED": "red", "ERROR": "red", "inconclusive": "red", "near": "yellow"}
    return {colour: True for word, colour in colours.items() if line.endswith(f"  {word}")}
