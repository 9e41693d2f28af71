"""The pytest skin: options, fixtures, hooks; each hook a few lines.

Installed and unused it is silent and free: it imports neither torch nor transformers nor hypothesis. ``--model`` and
``--candidate`` are late aliases that give way where another plugin owns the name.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Generator, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from swcheck.errors import RobustnessError, SwcheckError

if TYPE_CHECKING:
    from swcheck.records import SuperWeight, Verdict
    from swcheck.session import Session, Settings
    from swcheck.subject import Subject

SUITE: Final = Path(__file__).parent / "suite"
ALIASES: Final = ("model", "candidate")
PROPERTY: Final = "swcheck"

OPTIONS: Final = (
    ("model", "SPEC", True, "model to test: tiny, a known name, a hub id or a directory; may be given more than once"),
    ("candidate", "SPEC", False, "what is about to be released, compared with --model: a directory, a hub id, ENGINE:SCHEME"),
    ("device", "NAME", False, "where the models run; an accelerator if there is one"),
    ("dtype", "NAME", False, "float32, bfloat16 or float16; the checkpoint's own if left out"),
    ("text", "FILE", False, "UTF-8 text that perplexity is measured on; a built-in one if left out"),
    ("limit", "NAME=VALUE", True, "another limit, such as perplexity=1.03 or activation=0.8..1.5"),
    ("json", "FILE", False, "write the verdicts to this file"),
)  # fmt: skip

_settings: pytest.StashKey[Settings] = pytest.StashKey()
_session: pytest.StashKey[Session] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("swcheck", "swcheck: super weights of language models")
    for name, metavar, several, words in OPTIONS:
        twin = f"ini: swcheck_{name}, environment: SWCHECK_{name.upper()}"
        group.addoption(
            f"--swcheck-{name}",
            dest=f"swcheck_{name}",
            action="append" if several else "store",
            metavar=metavar,
            default=None,
            help=f"{words} ({twin})",
        )
        if several:
            parser.addini(f"swcheck_{name}", words, type="args", default=[])
        else:
            parser.addini(f"swcheck_{name}", words, type="string", default="")
    group.addoption(
        "--swcheck-trust-remote-code",
        dest="swcheck_trust_remote_code",
        action="store_true",
        default=False,
        help="run the Python that a checkpoint brings; refused otherwise",
    )
    group.addoption(
        "--swcheck-offline",
        dest="swcheck_offline",
        action="store_true",
        default=False,
        help="never download; the same as HF_HUB_OFFLINE=1",
    )


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Offer ``--model`` and ``--candidate``, each only where it is used and nobody else has it."""
    del early_config
    for name in ALIASES:
        if not any(arg == f"--{name}" or arg.startswith(f"--{name}=") for arg in args):
            continue
        several = name == "model"
        try:
            parser.getgroup("swcheck").addoption(
                f"--{name}",
                dest=f"swcheck_{name}",
                action="append" if several else "store",
                metavar="SPEC",
                default=None,
                help=f"the same as --swcheck-{name}",
            )
        except (ValueError, argparse.ArgumentError):
            message = f"--{name} belongs to another plugin here; swcheck's own is --swcheck-{name}"
            warnings.warn(pytest.PytestConfigWarning(message), stacklevel=1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "swcheck: a check that swcheck ships")
    if config.getoption("swcheck_offline"):
        os.environ["HF_HUB_OFFLINE"] = "1"
    values, origins = _collect_values(config)
    if not any(values.values()):
        return
    try:
        config.stash[_settings] = _read_settings(config, values, origins)
    except SwcheckError as error:
        raise pytest.UsageError(str(error)) from error
    _warn_of_moved_rootdir(config)
    if origins.get("model") == "command line" and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [*config.args, str(SUITE / ("candidate" if values["candidate"] else "reference"))]


def _collect_values(config: pytest.Config) -> tuple[dict[str, Any], dict[str, str]]:
    """Every option's value and where it came from: command line, environment, ini, in this order."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, _metavar, several, _words in OPTIONS:
        given = config.getoption(f"swcheck_{name}")
        environment = os.environ.get(f"SWCHECK_{name.upper()}")
        ini = config.getini(f"swcheck_{name}")
        values[name] = None
        if given is not None:
            values[name], origins[name] = given, "command line"
        elif environment:
            values[name], origins[name] = environment.split(",") if several else environment, "environment"
        elif ini:
            values[name], origins[name] = ini, "ini"
    return values, origins


def _read_settings(config: pytest.Config, values: dict[str, Any], origins: dict[str, str]) -> Settings:
    """Settings out of raw values, every name checked before anything is loaded."""
    from swcheck import engines, session
    from swcheck.errors import OptionError
    from swcheck.limits import with_overrides

    models = tuple(values["model"] or ())
    trusted = bool(config.getoption("swcheck_trust_remote_code"))
    if len(set(models)) < len(models):
        raise OptionError("--swcheck-model", f"a name given twice: {', '.join(models)}", "give each model once")
    if values["candidate"] is not None and len(models) != 1:
        found = f"{len(models)} models" if models else "no model"
        raise OptionError("a candidate with one reference", found, "pytest --model=REFERENCE --candidate=CANDIDATE")
    for spec in (*models, *(() if values["candidate"] is None else (values["candidate"],))):
        engines.check(spec, trust_remote_code=trusted)
    if values["dtype"]:
        engines.check_dtype(values["dtype"])
    if values["text"]:
        session.read_text(Path(values["text"]))
    return session.Settings(
        models=models,
        candidate=values["candidate"],
        device=values["device"],
        dtype=values["dtype"],
        text=Path(values["text"]) if values["text"] else None,
        limits=with_overrides(values["limit"] or ()),
        json=Path(values["json"]) if values["json"] else None,
        trust_remote_code=trusted,
        origins=origins,
    )


def _warn_of_moved_rootdir(config: pytest.Config) -> None:
    """An existing path after a space is taken for a test path by pytest, and moves its rootdir."""
    arguments = config.invocation_params.args
    for name in ALIASES:
        for option in (f"--{name}", f"--swcheck-{name}"):
            for flag, value in zip(arguments, arguments[1:], strict=False):
                if flag == option and Path(str(value)).exists() and config.inipath is None:
                    message = f"write {option}={value}: after a space pytest takes the path for its rootdir"
                    config.issue_config_time_warning(pytest.PytestConfigWarning(message), stacklevel=2)


def pytest_report_header(config: pytest.Config) -> str | None:
    settings = config.stash.get(_settings, None)
    if settings is None:
        return None
    from importlib.metadata import version

    parts = [f"model {', '.join(settings.models)} ({settings.origins.get('model', 'default')})"]
    for name in ("candidate", "device", "dtype", "text", "limit"):
        if name in settings.origins:
            shown = config.getoption("swcheck_limit") if name == "limit" else getattr(settings, name)
            parts.append(f"{name} {shown} ({settings.origins[name]})")
    return f"swcheck: {version('swcheck')}, {', '.join(parts)}"


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect the shipped suite also where the project calls its own test files otherwise."""
    if SUITE not in file_path.parents or not file_path.name.startswith("test_"):
        return None
    if any(fnmatch(file_path.name, pattern) for pattern in parent.config.getini("python_files")):
        return None
    module: pytest.Module = pytest.Module.from_parent(parent, path=file_path)
    return module


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = metafunc.config.stash.get(_settings, None)
    if "swcheck_spec" in metafunc.fixturenames and settings is not None and settings.models:
        metafunc.parametrize("swcheck_spec", settings.models, ids=settings.models, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With the shipped suite only those tests of the project run that ask for a swcheck fixture."""
    settings = config.stash.get(_settings, None)
    if settings is None or not any(str(SUITE) in argument for argument in config.args):
        return
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        asks = any(name.startswith("swcheck_") for name in getattr(item, "fixturenames", ()))
        (chosen if asks or SUITE in item.path.parents else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen


@pytest.fixture(scope="session")
def swcheck_spec() -> str:
    """The name of the model under test; a test that asks for it runs once per ``--model``."""
    pytest.skip("no model given: pytest --model=tiny")


@pytest.fixture(scope="session")
def swcheck_session(request: pytest.FixtureRequest) -> Session:
    """The models and verdicts of this run."""
    from swcheck.session import Session, Settings

    config = request.config
    if _session not in config.stash:
        config.stash[_session] = Session(config.stash.get(_settings, Settings()), _teller(config))
    return config.stash[_session]


@pytest.fixture(scope="session")
def swcheck_model(swcheck_session: Session, swcheck_spec: str) -> Subject:
    """The model under test, the reference of a comparison: ``.model``, ``.tokenizer``, ``.name``."""
    return _worded(lambda: swcheck_session.reference(swcheck_spec))  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def swcheck_candidate(swcheck_session: Session, swcheck_model: Subject) -> Subject:
    """What is about to be released, given by ``--candidate``: ``.model``, ``.tokenizer``, ``.name``."""
    del swcheck_model
    if swcheck_session.settings.candidate is None:
        pytest.skip("no candidate given: pytest --model=REFERENCE --candidate=CANDIDATE")
    return _worded(swcheck_session.candidate)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def swcheck_super_weights(swcheck_model: Subject) -> tuple[SuperWeight, ...]:
    """The super weights of the model under test: published ones completed by what is located."""
    return _worded(lambda: swcheck_model.located().super_weights)  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def swcheck_limits(swcheck_session: Session) -> dict[str, Any]:
    """The limits of this run by name, each with ``.low`` and ``.high``."""
    return dict(swcheck_session.settings.limits)


def _worded(compute: Any) -> Any:
    """``compute()``; a worded error becomes a failure without a traceback."""
    try:
        return compute()
    except SwcheckError as error:
        pytest.fail(str(error), pytrace=False)


def _teller(config: pytest.Config) -> Any:
    """A function that writes one line to the terminal, past capturing, when there is a terminal to read it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")

    def tell(line: str) -> None:
        if reporter is None or capture is None or config.get_verbosity() < 1:
            return
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(line)

    return tell


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Send new verdicts along with the test's report, and let a red one speak for itself."""
    session = item.config.stash.get(_session, None)
    if session is not None and session.verdicts:
        from swcheck.report import as_json

        found = [(PROPERTY, json.dumps(as_json(verdict))) for verdict in session.verdicts]
        item.user_properties.extend(found)
        session.verdicts.clear()
    outcome = yield
    report = outcome.get_result()
    error = None if call.excinfo is None else call.excinfo.value
    if isinstance(error, (RobustnessError, SwcheckError)) and SUITE in item.path.parents and call.excinfo:
        report.longrepr = call.excinfo.getrepr(style="value")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    from swcheck.report import summary, worst_of_each

    verdicts = worst_of_each(_reported(terminalreporter))
    settings = config.stash.get(_settings, None)
    if settings is not None and settings.json is not None and not hasattr(config, "workerinput"):
        from swcheck.report import document, dumps

        write_atomically(settings.json, dumps(document(verdicts)) + "\n")
    if verdicts:
        terminalreporter.section("swcheck")
        for line in summary(verdicts):
            terminalreporter.write_line(line)


def _reported(terminalreporter: Any) -> Iterable[Verdict]:
    from swcheck.report import from_json

    seen: set[tuple[str, str]] = set()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY and (report.nodeid, value) not in seen:
                    seen.add((report.nodeid, value))
                    yield from_json(json.loads(value))


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
