"""The pytest plugin: fixtures, and short hooks; the longer ones are in ``run/pytest_hooks``.

Without an option of swcheck it prints nothing and imports neither torch nor transformers nor hypothesis. With
``--model`` or ``--candidate`` and no path, a run has the shipped suite and those of the project's tests that use a
swcheck fixture.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swcheck.base.errors import SwcheckError
from swcheck.base.terminal.visible import visible_line
from swcheck.run import options
from swcheck.run.pytest_hooks import collection, interrupt, processes, reporter, workers
from swcheck.run.pytest_hooks.stash import (
    INTERRUPTED,
    SESSION,
    SETTINGS,
    TAKEN_ALIASES,
    is_worker,
    settings_of,
    uncaptured,
)

if TYPE_CHECKING:
    from swcheck.base.records import Limit, SuperActivation, SuperWeight
    from swcheck.run.session import Session
    from swcheck.run.settings import Settings
    from swcheck.study.common.setup import Setup
    from swcheck.superweights.subject.subject import Subject


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the options, and register the hooks of ``collection``, ``interrupt``, ``reporter`` and ``workers`` as plugins."""
    options.add(parser)
    pluginmanager.register(collection, "swcheck-collection")
    pluginmanager.register(reporter, "swcheck-reports")
    pluginmanager.register(workers, "swcheck-workers")
    pluginmanager.register(interrupt, "swcheck-interrupt")


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Add ``--model`` and ``--candidate``, except one that another plugin has.

    The header mentions that one with ``-v``. There is no warning, since the other plugin may run with ``-W error``.
    """
    early_config.stash[TAKEN_ALIASES] = options.add_aliases(parser, args)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "swcheck(check): a check that swcheck ships, and the name it reports under")
    config.addinivalue_line(
        "markers",
        f"{collection.PAPER_MARKER}: a claim of the paper, measured for minutes: run with -m {collection.PAPER_MARKER}",
    )
    collection.find_suite_ids(config)
    try:
        values, origins = options.read_values(config)
        if not origins:
            return
        from swcheck.run.settings import forbid_downloads, read_settings

        settings = config.stash[SETTINGS] = read_settings(values, origins)
        processes.join(config, settings)
    except SwcheckError as error:
        raise usage_error(error) from error
    if settings.offline:
        config.add_cleanup(forbid_downloads())
    if getattr(config.option, "numprocesses", None) and not is_worker(config):
        from swcheck.run.reference_cache import shared_by_workers

        cleanup = ExitStack()
        cleanup.enter_context(shared_by_workers())
        config.add_cleanup(cleanup.close)
    config.pluginmanager.register(interrupt.EarlyEnd(config), "swcheck-early-end")
    if not is_worker(config):
        config.pluginmanager.register(reporter.Reporter(config, settings), "swcheck-reporter")
        from swcheck.run.pytest_hooks import bars

        config.pluginmanager.register(bars, "swcheck-bars")
        config.add_cleanup(bars.show_bars(config))
    argument = options.argument_that_hid_ini_file(config)
    if argument:
        message = f"write {argument}: after a space pytest took the path for a test, and lost its ini-file over it"
        config.issue_config_time_warning(pytest.PytestConfigWarning(message), stacklevel=2)


def pytest_report_header(config: pytest.Config) -> list[str]:
    settings, lines = settings_of(config), []
    if settings is not None:
        from importlib.metadata import version

        lines.append(
            f"swcheck: {version('swcheck')}, {visible_line(options.describe_settings(settings))}, seed {settings.seed}"
        )
        if settings.models and getattr(config.option, "numprocesses", None):
            lines.append("swcheck: one worker of xdist measures a reference for all, and one judges a candidate")
    if config.get_verbosity() > 0:
        words = "swcheck: {0.alias} belongs to another plugin here; swcheck's own is {0.flag}"
        lines += [words.format(option) for option in config.stash.get(TAKEN_ALIASES, ())]
    if not lines:
        return lines
    from swcheck.base.terminal.wrapping import wrapped

    width, whole = shutil.get_terminal_size().columns, "\N{NO-BREAK SPACE}"  # a value stays beside its place
    if settings is not None:
        lines[0] = ", ".join(part.replace(" ", whole) for part in lines[0].split(", "))
    return [part.replace(whole, " ") for line in lines for part in wrapped(line, width, len("swcheck: "))]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Download missing models before the first test, so that progress is visible and an error is reported once."""
    config = session.config
    settings = settings_of(config)
    if settings is None or config.option.collectonly:
        return
    if not is_worker(config):
        prepare_models(session, settings)
    others = processes.of(config)
    if others is not None:
        others.compare_tests(session.items)


def prepare_models(session: pytest.Session, settings: Settings) -> None:
    """Download what is missing, and say before the first test what is known to stand in its way.

    Raises ``pytest.UsageError`` where a model cannot be had, or the models of all workers do not fit into memory.
    """
    config = session.config
    if collection.suite_is_included(config) or any(collection.uses_swcheck(item) for item in session.items):
        from swcheck.run.preflight import gate_lines
        from swcheck.run.settings import fetch

        try:
            with uncaptured(config):
                fetch(settings)
            if workers := getattr(config.option, "numprocesses", None):
                from swcheck.run.worker_memory import check_room_for_workers

                check_room_for_workers(settings, workers)
            terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
            for line in gate_lines(settings) if terminal is not None else ():
                terminal.write_line(f"swcheck: {visible_line(line)}", yellow=True)
        except SwcheckError as error:
            raise usage_error(error) from error


def usage_error(error: SwcheckError) -> pytest.UsageError:
    """Return an error that stops the run before the first test, with the text of ``error``."""
    from swcheck.base.terminal.wrapping import wrapped_error as folded_error

    if processes.is_told_by_another():
        return pytest.UsageError()
    width = shutil.get_terminal_size().columns - len("ERROR: ")
    return pytest.UsageError(folded_error(str(error), width))


@pytest.fixture(scope="session")
def swcheck_spec(pytestconfig: pytest.Config) -> str:
    """The spec of the model under test, as typed. A test that uses it runs once for each ``--model``."""
    pytest.skip(f"no model given: pytest {options.typed_flag(pytestconfig, options.MODEL)}=tiny")


@pytest.fixture(scope="session")
def swcheck_session(pytestconfig: pytest.Config) -> Iterator[Session]:
    """The models and verdicts of this run (``swcheck.run.session.Session``)."""
    from swcheck.run.session import Session
    from swcheck.run.settings import Settings

    session = pytestconfig.stash[SESSION] = Session(settings_of(pytestconfig) or Settings())
    yield session
    interrupted = pytestconfig.stash.get(INTERRUPTED, False)
    session.free(measure=not interrupted)
    if interrupted:
        return
    hand_over_baselines(pytestconfig, session.baselines)


def hand_over_baselines(config: pytest.Config, baselines: Mapping[Path, str]) -> None:
    """Give the texts of new baselines to the process that writes files: a worker of xdist sends them when it ends."""
    if is_worker(config):
        config.workeroutput["swcheck"] = {str(path): text for path, text in baselines.items()}  # type: ignore[attr-defined]
    else:
        writer: Any = config.pluginmanager.get_plugin("swcheck-reporter")
        for path, text in baselines.items():
            writer.baseline_texts.setdefault(path, []).append(text)


@pytest.fixture(scope="session")
def swcheck_model(swcheck_session: Session, swcheck_spec: str, pytestconfig: pytest.Config) -> Subject:
    """The model under test, which is the reference of a comparison: ``.model``, ``.tokenizer``, ``.name``."""
    with uncaptured(pytestconfig):
        return swcheck_session.reference(swcheck_spec)


@pytest.fixture(scope="session")
def swcheck_reference(swcheck_model: Subject) -> Subject:
    """The same as ``swcheck_model``, for tests that compare."""
    return swcheck_model


@pytest.fixture(scope="session")
def swcheck_candidate_spec(pytestconfig: pytest.Config) -> str:
    """The spec of the candidate, as typed. A test that uses it runs once for each ``--candidate``."""
    model, candidate = (options.typed_flag(pytestconfig, one) for one in (options.MODEL, options.CANDIDATE))
    pytest.skip(f"no candidate given: pytest {model}=REFERENCE {candidate}=CANDIDATE")


@pytest.fixture(scope="session")
def swcheck_candidate(
    request: pytest.FixtureRequest, swcheck_session: Session, swcheck_candidate_spec: str, pytestconfig: pytest.Config
) -> Subject:
    """The model that is about to be released, given by ``--candidate``: ``.model``, ``.tokenizer``, ``.name``.

    One model is in memory at a time. If the test uses the reference too, it is measured and freed first.
    """
    if "swcheck_model" in request.fixturenames:
        request.getfixturevalue("swcheck_model")
    with uncaptured(pytestconfig):
        return swcheck_session.candidate(swcheck_candidate_spec)


@pytest.fixture(scope="session")
def swcheck_study_setup(swcheck_model: Subject, swcheck_session: Session) -> Setup:
    """The setup of the paper's studies for the model under test. Skips the test if the model has no super weights."""
    from swcheck.study.common.setup import setup_of, zero_shot_scorer
    from swcheck.superweights.measurements.located import located

    if not located(swcheck_model).super_weights:
        pytest.skip(f"no super weight: {located(swcheck_model).reason}")
    scorer, why_unscored = zero_shot_scorer()
    return setup_of(swcheck_model, seed=swcheck_session.settings.seed, scorer=scorer, why_unscored=why_unscored)


@pytest.fixture(scope="session")
def swcheck_super_weights(swcheck_model: Subject) -> tuple[SuperWeight, ...]:
    """The super weights of the model under test: the published ones, and those that are located in addition."""
    from swcheck.superweights.measurements.located import located

    return located(swcheck_model).super_weights


@pytest.fixture(scope="session")
def swcheck_super_activations(swcheck_model: Subject) -> tuple[SuperActivation, ...]:
    """The super activations of the model under test, as they are located."""
    from swcheck.superweights.measurements.located import located

    return located(swcheck_model).activations


@pytest.fixture(scope="session")
def super_weights(swcheck_super_weights: tuple[SuperWeight, ...]) -> tuple[SuperWeight, ...]:
    """The same as ``swcheck_super_weights``."""
    return swcheck_super_weights


@pytest.fixture(scope="session")
def super_activations(swcheck_super_activations: tuple[SuperActivation, ...]) -> tuple[SuperActivation, ...]:
    """The same as ``swcheck_super_activations``."""
    return swcheck_super_activations


@pytest.fixture(scope="session")
def swcheck_text(swcheck_session: Session, swcheck_model: Subject) -> str:
    """The text that perplexity is measured on."""
    return swcheck_session.text(swcheck_model)


@pytest.fixture(scope="session")
def swcheck_limits(request: pytest.FixtureRequest, swcheck_session: Session, swcheck_spec: str) -> dict[str, Limit]:
    """The limits of this run by name, each with ``.low`` and ``.high``.

    They are the limits of the candidate in a test that uses it, else those of the model under test.
    """
    return dict(swcheck_session.settings.limits_for(swcheck_spec, getattr(request, "param", None)))
