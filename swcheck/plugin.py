"""The pytest skin: fixtures and hooks; each hook a few lines.

Installed and unused it is silent and free: it imports neither torch nor transformers nor hypothesis. With ``--model``
and no path the shipped suite joins the run, and of the project's own tests those that ask for a swcheck fixture.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from swcheck import options
from swcheck.errors import RobustnessError, SwcheckError

if TYPE_CHECKING:
    from swcheck.records import Limit, SuperActivation, SuperWeight, Verdict
    from swcheck.report import Reported
    from swcheck.session import Session, Settings
    from swcheck.study.setup import Setup
    from swcheck.subject import Subject

HOME: Final = Path(__file__).parent
SUITE: Final = HOME / "suite"
PAPER: Final = "swcheck_paper"
PAPERS: Final = "test_paper.py"
WORDED: Final = (RobustnessError, SwcheckError)

_settings: pytest.StashKey[Settings] = pytest.StashKey()
_session: pytest.StashKey[Session] = pytest.StashKey()
_taken: pytest.StashKey[Sequence[options.Option]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Offer ``--model`` and ``--candidate``. A taken one is no warning: its owner's run may be under -W error."""
    early_config.stash[_taken] = options.add_aliases(parser, args)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "swcheck(check): a check that swcheck ships, and the name it reports under")
    config.addinivalue_line("markers", f"{PAPER}: a claim of the paper, measured for minutes: run with -m {PAPER}")
    try:
        values, origins = options.collect(config)
        if not origins:
            return
        from swcheck.session import forbidding_downloads, read_settings

        settings = config.stash[_settings] = read_settings(values, origins)
    except SwcheckError as error:
        raise pytest.UsageError(str(error)) from error
    if settings.offline:
        config.add_cleanup(forbidding_downloads())
    if not is_worker(config):
        config.pluginmanager.register(Reporter(config, settings), "swcheck-reporter")
    moved = options.moved(config)
    if moved:
        message = f"write {moved}: after a space pytest took the path for a test, and lost its ini-file over it"
        config.issue_config_time_warning(pytest.PytestConfigWarning(message), stacklevel=2)


def pytest_report_header(config: pytest.Config) -> list[str]:
    settings, lines = config.stash.get(_settings, None), []
    if settings is not None:
        from importlib.metadata import version

        lines.append(f"swcheck: {version('swcheck')}, {options.described(settings)}, seed {settings.seed}")
        if settings.models and getattr(config.option, "numprocesses", None):
            lines.append("swcheck: each worker of xdist loads its own models")
    if config.get_verbosity() > 0:
        words = "swcheck: {0.alias} belongs to another plugin here; swcheck's own is {0.flag}"
        lines += [words.format(option) for option in config.stash.get(_taken, ())]
    return lines


# Collection


class SuiteModule(pytest.Module):
    """A module of the shipped suite: its node ids are the same wherever it lies and whatever a project calls tests."""

    @classmethod
    def of(cls, path: Path, parent: pytest.Collector) -> SuiteModule:
        module: SuiteModule = cls.from_parent(parent, path=path, nodeid=f"swcheck.suite.{path.stem}")
        return module

    def funcnamefilter(self, name: str) -> bool:
        return name.startswith("test_")


def is_shipped(path: Path) -> bool:
    """Whether ``path`` is a module of the shipped suite."""
    return path.parent == SUITE and path.name.startswith("test_")


def asks(item: pytest.Item) -> bool:
    """Whether a test, or a fixture it needs, asks for a fixture of swcheck."""
    return any(name.startswith("swcheck_") for name in getattr(item, "fixturenames", ()))


def suite_joins(config: pytest.Config) -> bool:
    """Whether this run was asked for a model and for no path: then the shipped suite is part of it."""
    settings = config.stash.get(_settings, None)
    asked = settings is not None and settings.origins.get("model") == "command line"
    return asked and config.args_source is not pytest.Config.ArgsSource.ARGS


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The claims of the paper take minutes: they are collected where their marker or their own name is asked for."""
    return True if collection_path == SUITE / PAPERS and not paper_is_asked(config) else None


def paper_is_asked(config: pytest.Config) -> bool:
    """Whether the run's marker expression speaks of the claims of the paper."""
    return PAPER in config.option.markexpr


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return SuiteModule.of(module_path, parent) if is_shipped(module_path) else None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect the shipped suite, where its path is given, also if the project calls its own test files otherwise."""
    if not is_shipped(file_path) or parent.session.isinitpath(file_path):
        return None
    if any(fnmatch(file_path.name, pattern) for pattern in parent.config.getini("python_files")):
        return None
    return SuiteModule.of(file_path, parent)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that cannot be collected and never speaks of swcheck does not stop the shipped suite."""
    report = yield
    if report.failed and isinstance(collector, pytest.Module) and suite_joins(collector.config):
        if "swcheck" in collector.path.read_text(encoding="utf-8", errors="replace"):
            return report
        message = f"{report.nodeid} cannot be collected; it does not speak of swcheck and is left out"
        try:
            warnings.warn(pytest.PytestCollectionWarning(message), stacklevel=1)
        except pytest.PytestCollectionWarning:  # under -W error it stays an error
            return report
        report.outcome, report.longrepr, report.result = "passed", None, []
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash.get(_settings, None)
    if "swcheck_spec" in metafunc.fixturenames and settings is not None and settings.models:
        names = [settings.name_of(spec) for spec in settings.models]
        metafunc.parametrize("swcheck_spec", settings.models, ids=names, scope="session")
    if "swcheck_candidate_spec" in metafunc.fixturenames and settings is not None and settings.candidates:
        names = [settings.name_of(spec) for spec in settings.candidates]
        metafunc.parametrize("swcheck_candidate_spec", settings.candidates, ids=names, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where no path is given the shipped suite joins, and of the project's tests those that ask for its fixtures."""
    if suite_joins(config):
        if not any(is_shipped(item.path) for item in items):
            items[:0] = suite_items(session)
        others = [item for item in items if not asks(item)]
        if others:
            items[:] = [item for item in items if asks(item)]
            config.hook.pytest_deselected(items=others)
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            asked = [part for part in specs_of(item) if part is not None]
            if asked:
                item.add_marker(pytest.mark.xdist_group("-".join(asked)))


def specs_of(item: pytest.Item) -> tuple[str | None, str | None]:
    """The model and the candidate that a test is about, as they were asked for; None where it is about none."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return params.get("swcheck_spec"), params.get("swcheck_candidate_spec")


def suite_items(session: pytest.Session) -> list[pytest.Item]:
    """The shipped checks, collected beside the arguments: no ini-file, conftest or environment swallows them."""
    before = list(sys.path)
    try:
        names = ["test_model.py", "test_candidate.py", *[PAPERS] * paper_is_asked(session.config)]
        modules = [SuiteModule.of(SUITE / name, session) for name in names]
        items = [item for module in modules for item in session.genitems(module)]
    finally:
        sys.path[:] = before  # importing a module by its path puts site-packages before the project
    if not items:
        raise pytest.UsageError(f"no check of swcheck was collected from {SUITE}: its installation is not whole")
    return items


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Download what is missing before the first test: it is seen, and where it fails it is said once."""
    config = session.config
    settings = config.stash.get(_settings, None)
    if settings is None or config.option.collectonly or is_worker(config):
        return
    if suite_joins(config) or any(asks(item) for item in session.items):
        from swcheck.session import fetch

        try:
            with uncaptured(config):
                fetch(settings)
        except SwcheckError as error:
            raise pytest.UsageError(str(error)) from error


# Fixtures


@pytest.fixture(scope="session")
def swcheck_spec() -> str:
    """The model under test as it was asked for; a test that needs it runs once per ``--model``."""
    pytest.skip("no model given: pytest --model=tiny")


@pytest.fixture(scope="session")
def swcheck_session(pytestconfig: pytest.Config) -> Iterator[Session]:
    """The models and verdicts of this run."""
    from swcheck.session import Session, Settings

    session = pytestconfig.stash[_session] = Session(pytestconfig.stash.get(_settings, Settings()))
    yield session
    session.free()
    deliver(pytestconfig, session.baselines)
    if session.baselines and not session.settings.accept:
        names = ", ".join(str(path) for path in session.baselines)
        words = f"baselines measured anew: {names}\n  review and commit them, then run without --swcheck-update"
        pytest.fail(words, pytrace=False)


def deliver(config: pytest.Config, baselines: Mapping[Path, str]) -> None:
    """Hand baselines to the process that writes: from a worker of xdist they travel home when it ends."""
    if is_worker(config):
        config.workeroutput["swcheck"] = {str(path): text for path, text in baselines.items()}  # type: ignore[attr-defined]
    else:
        reporter: Any = config.pluginmanager.get_plugin("swcheck-reporter")
        for path, text in baselines.items():
            reporter.gathered.setdefault(path, []).append(text)


@pytest.fixture(scope="session")
def swcheck_model(swcheck_session: Session, swcheck_spec: str, pytestconfig: pytest.Config) -> Subject:
    """The model under test, the reference of a comparison: ``.model``, ``.tokenizer``, ``.name``."""
    with uncaptured(pytestconfig):
        return swcheck_session.reference(swcheck_spec)


@pytest.fixture(scope="session")
def swcheck_reference(swcheck_model: Subject) -> Subject:
    """``swcheck_model``, by the name it has in a comparison."""
    return swcheck_model


@pytest.fixture(scope="session")
def swcheck_candidate_spec() -> str:
    """The candidate as it was asked for; a test that needs it runs once per ``--candidate``."""
    pytest.skip("no candidate given: pytest --model=REFERENCE --candidate=CANDIDATE")


@pytest.fixture(scope="session")
def swcheck_candidate(
    request: pytest.FixtureRequest, swcheck_session: Session, swcheck_candidate_spec: str, pytestconfig: pytest.Config
) -> Subject:
    """What is about to be released, given by ``--candidate``: ``.model``, ``.tokenizer``, ``.name``.

    One is in memory at a time, and the reference, if the test asks for it as well, is measured and freed before.
    """
    if "swcheck_model" in request.fixturenames:
        request.getfixturevalue("swcheck_model")
    with uncaptured(pytestconfig):
        return swcheck_session.candidate(swcheck_candidate_spec)


@pytest.fixture(scope="session")
def swcheck_study_setup(swcheck_model: Subject, swcheck_session: Session) -> Setup:
    """What the studies of the paper share for the model under test; skips a model without super weights."""
    from swcheck.study.setup import setup_of, zero_shot

    if not swcheck_model.located().super_weights:
        pytest.skip(f"no super weight: {swcheck_model.located().reason}")
    scorer, unscored = zero_shot()
    return setup_of(swcheck_model, seed=swcheck_session.settings.seed, scorer=scorer, unscored=unscored)


@pytest.fixture(scope="session")
def swcheck_super_weights(swcheck_model: Subject) -> tuple[SuperWeight, ...]:
    """The super weights of the model under test: published ones completed by what is located."""
    return swcheck_model.located().super_weights


@pytest.fixture(scope="session")
def swcheck_super_activations(swcheck_model: Subject) -> tuple[SuperActivation, ...]:
    """The super activations of the model under test, as located."""
    return swcheck_model.located().activations


@pytest.fixture(scope="session")
def super_weights(swcheck_super_weights: tuple[SuperWeight, ...]) -> tuple[SuperWeight, ...]:
    """``swcheck_super_weights`` by a shorter name."""
    return swcheck_super_weights


@pytest.fixture(scope="session")
def super_activations(swcheck_super_activations: tuple[SuperActivation, ...]) -> tuple[SuperActivation, ...]:
    """``swcheck_super_activations`` by a shorter name."""
    return swcheck_super_activations


@pytest.fixture(scope="session")
def swcheck_text(swcheck_session: Session, swcheck_model: Subject) -> str:
    """The text that perplexity is measured on."""
    return swcheck_session.text(swcheck_model)


@pytest.fixture(scope="session")
def swcheck_limits(swcheck_session: Session, swcheck_spec: str) -> dict[str, Limit]:
    """The limits of this run for the model under test by name, each with ``.low`` and ``.high``."""
    return dict(swcheck_session.settings.limits_for(swcheck_spec))


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers, which write nothing."""
    return hasattr(config, "workerinput")


@contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let what is written meanwhile be seen: a download may take an hour."""
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is None or is_worker(config):
        yield
    else:
        with capture.global_and_fixture_disabled():
            yield


# Reports


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send new verdicts along with the test's report, and let a red one speak for itself."""
    report = yield
    if report.failed and call.excinfo is not None and isinstance(call.excinfo.value, WORDED):
        speak(report, call.excinfo, item)
    verdicts = verdicts_of(item, report)
    if verdicts:
        from swcheck.report import as_json

        report.swcheck = [as_json(verdict, item.nodeid) for verdict in verdicts]  # type: ignore[attr-defined]
    return report


def speak(report: pytest.TestReport, excinfo: pytest.ExceptionInfo[BaseException], item: pytest.Item) -> None:
    """A traceback that ends where the test called swcheck; none in the suite, where the command to repeat follows.

    In the short summary stands the first line of the error, without its class.
    """
    seen = seen_by(excinfo, item.path)
    if is_shipped(item.path) or not seen:
        report.longrepr = excinfo.getrepr(style="value", chain=False)
    elif not item.config.option.fulltrace:
        excinfo.traceback = seen
        style = {"auto": "long"}.get(item.config.option.tbstyle, item.config.option.tbstyle)
        shown = {"showlocals": item.config.option.showlocals, "tbfilter": lambda info: info.traceback}
        report.longrepr = excinfo.getrepr(style=style, chain=False, **shown)
    if is_shipped(item.path):
        settings, (spec, candidate) = item.config.stash[_settings], specs_of(item)
        candidates = settings.candidates if candidate is None else (candidate,)
        words = ["pytest", *options.repeating(settings, spec or "", candidates, item.config.stash[_taken])]
        report.sections.append(("repeat", shlex.join([*words, "--pyargs", item.nodeid.partition("[")[0]])))
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = str(excinfo.value).splitlines()[0]


def seen_by(excinfo: pytest.ExceptionInfo[BaseException], test: Path) -> Any:
    """The entries of a traceback from the test on that are neither pytest's nor swcheck's own."""

    def theirs(entry: Any) -> bool:
        path = Path(entry.path)
        return HOME not in path.parents and not {"_pytest", "pluggy"} & set(path.parts)

    return excinfo.traceback.cut(path=test).filter(theirs)


def verdicts_of(item: pytest.Item, report: pytest.TestReport) -> list[Verdict]:
    """What this phase of a test has to report; a shipped check that gave no verdict gets one in words."""
    session = item.config.stash.get(_session, None)
    found = [] if session is None else session.take(failed=report.failed)
    marker = item.get_closest_marker("swcheck")
    red = any(verdict.red for verdict in found)
    silent = (report.failed and not red) or (report.skipped and not found)
    if silent and is_shipped(item.path) and marker is not None:
        found.append(unmeasured(item, report, str(marker.args[0])))
    return found


def unmeasured(item: pytest.Item, report: pytest.TestReport, check: str) -> Verdict:
    """The verdict on a shipped check that broke off, or was skipped, before it could give its own."""
    from swcheck.records import Outcome, Verdict

    settings = item.config.stash.get(_settings, None)
    name, candidate = (spec if settings is None or spec is None else settings.name_of(spec) for spec in specs_of(item))
    name = name or ""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        words = (report.longreprtext if crash is None else crash.message).strip().splitlines() or ["broken off"]
        return Verdict(check, name, Outcome.FAILED, " ".join(map(str.strip, words[1:4])), candidate, cause=words[0])
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return Verdict(check, name, Outcome.SKIPPED, str(reason).removeprefix("Skipped: "), candidate)


class Reporter:
    """Gathers what the reports of tests bring, from workers too; at the end it is shown and written."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config, self.settings = config, settings
        self.brought: list[tuple[tuple[str, int], Reported]] = []
        self.loading: tuple[str, ...] = ()
        self.gathered: dict[Path, list[str]] = {}
        self.written: list[Path] = []
        self.unwritten: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Say what a test has to load, and what that will cost, before it starts: a large model takes a while."""
        from swcheck.session import estimate, sized

        needs = getattr(item, "fixturenames", ())
        spec, candidate = specs_of(item)
        wanted = [spec] if spec and "swcheck_model" in needs else []
        wanted += [candidate] if candidate and "swcheck_candidate" in needs else []
        new = [name for name in wanted if name not in self.loading]
        self.loading = tuple(wanted) if spec in new else (*self.loading, *new)
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if new and terminal is not None and self.config.get_verbosity() >= 0:
            terminal.write("" if getattr(terminal, "currentfspath", None) else "\n")
            terminal.ensure_newline()
            names = " and ".join(sized(self.settings, name) for name in new)
            terminal.write(f"swcheck: loading {names}", flush=True)  # at once: what follows imports torch
            words = estimate(self.settings, spec or "", new)
            terminal.write_line(f"; {words}" if words else "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from swcheck.report import from_json

        if str(report.outcome) != "rerun":  # the word of plugins that try again
            place = (report.location[0], report.location[1] or 0)
            self.brought += [(place, from_json(record)) for record in getattr(report, "swcheck", ())]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of xdist has ended, and sends the baselines it measured."""
        for path, text in getattr(node, "workeroutput", {}).get("swcheck", {}).items():
            self.gathered.setdefault(Path(path), []).append(text)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.config.option.collectonly or exitstatus == pytest.ExitCode.USAGE_ERROR:
            return
        from swcheck.report import document, dumps
        from swcheck.session import write_atomically

        # Workers may have measured the same reference, one of them more of it.
        files = {path: max(texts, key=lambda text: (len(text), text)) for path, texts in self.gathered.items()}
        if self.settings.json is not None:
            files[self.settings.json] = dumps(document(self.worst())) + "\n"
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
        from swcheck.report import summary

        lines = summary(self.worst(), shutil.get_terminal_size().columns)
        if lines:
            terminalreporter.ensure_newline()
            terminalreporter.section("swcheck")
        for line in lines:
            terminalreporter.write_line(line, **markup(line))
        for line in self.unwritten:
            terminalreporter.write_line(line, red=True)
        for path in self.written if lines else ():
            terminalreporter.write_line(f"written: {path}")

    def worst(self) -> Sequence[Reported]:
        """One verdict per test and check, in the order of the models, the candidates, then of the tests; workers report in any."""
        from swcheck.report import worst_of_each

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
