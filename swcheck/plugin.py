"""The pytest skin: fixtures and hooks; each hook a few lines.

Installed and unused it is silent and free: it imports neither torch nor transformers nor hypothesis. With ``--model``
or ``--candidate``, and no path, the shipped suite joins the run, and of the project's own tests those that ask for a
swcheck fixture.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swcheck.base.errors import SwcheckError
from swcheck.run import options
from swcheck.run.pytest_hooks import collection, reporter
from swcheck.run.pytest_hooks.stash import SESSION, SETTINGS, TAKEN, is_worker, settings_of, uncaptured

if TYPE_CHECKING:
    from swcheck.base.records import Limit, SuperActivation, SuperWeight
    from swcheck.run.session import Session
    from swcheck.study.common.setup import Setup
    from swcheck.superweights.subject.subject import Subject


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Offer the options; with this plugin come the rooms that collect and report."""
    options.add(parser)
    pluginmanager.register(collection, "swcheck-collection")
    pluginmanager.register(reporter, "swcheck-reports")


@pytest.hookimpl(trylast=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Offer ``--model`` and ``--candidate``. A taken one is no warning: its owner's run may be under -W error."""
    early_config.stash[TAKEN] = options.add_aliases(parser, args)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "swcheck(check): a check that swcheck ships, and the name it reports under")
    config.addinivalue_line(
        "markers", f"{collection.PAPER}: a claim of the paper, measured for minutes: run with -m {collection.PAPER}"
    )
    try:
        values, origins = options.collect(config)
        if not origins:
            return
        from swcheck.run.settings import forbidding_downloads, read_settings

        settings = config.stash[SETTINGS] = read_settings(values, origins)
    except SwcheckError as error:
        raise refusal(error) from error
    if settings.offline:
        config.add_cleanup(forbidding_downloads())
    if not is_worker(config):
        config.pluginmanager.register(reporter.Reporter(config, settings), "swcheck-reporter")
    moved = options.moved(config)
    if moved:
        message = f"write {moved}: after a space pytest took the path for a test, and lost its ini-file over it"
        config.issue_config_time_warning(pytest.PytestConfigWarning(message), stacklevel=2)


def pytest_report_header(config: pytest.Config) -> list[str]:
    settings, lines = settings_of(config), []
    if settings is not None:
        from importlib.metadata import version

        lines.append(f"swcheck: {version('swcheck')}, {options.described(settings)}, seed {settings.seed}")
        if settings.models and getattr(config.option, "numprocesses", None):
            lines.append("swcheck: each worker of xdist loads its own models")
    if config.get_verbosity() > 0:
        words = "swcheck: {0.alias} belongs to another plugin here; swcheck's own is {0.flag}"
        lines += [words.format(option) for option in config.stash.get(TAKEN, ())]
    return lines


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Download what is missing before the first test: it is seen, and where it fails it is said once."""
    config = session.config
    settings = settings_of(config)
    if settings is None or config.option.collectonly or is_worker(config):
        return
    if collection.suite_joins(config) or any(collection.asks(item) for item in session.items):
        from swcheck.run.settings import fetch

        try:
            with uncaptured(config):
                fetch(settings)
        except SwcheckError as error:
            raise refusal(error) from error


def refusal(error: SwcheckError) -> pytest.UsageError:
    """A run that cannot begin, in the words of the error."""
    from swcheck.base.wrapping import wrapped_error as folded_error

    width = shutil.get_terminal_size().columns - len("ERROR: ")
    return pytest.UsageError(folded_error(str(error), width))


@pytest.fixture(scope="session")
def swcheck_spec() -> str:
    """The model under test as it was asked for; a test that needs it runs once per ``--model``."""
    pytest.skip("no model given: pytest --model=tiny")


@pytest.fixture(scope="session")
def swcheck_session(pytestconfig: pytest.Config) -> Iterator[Session]:
    """The models and verdicts of this run."""
    from swcheck.run.session import Session
    from swcheck.run.settings import Settings

    session = pytestconfig.stash[SESSION] = Session(settings_of(pytestconfig) or Settings())
    yield session
    session.free()
    deliver(pytestconfig, session.baselines)
    if session.baselines and not session.settings.accept and not is_worker(pytestconfig):
        pytest.fail(reporter.unreviewed(session.baselines), pytrace=False)


def deliver(config: pytest.Config, baselines: Mapping[Path, str]) -> None:
    """Hand baselines to the process that writes: from a worker of xdist they travel home when it ends, to be red there."""
    if is_worker(config):
        config.workeroutput["swcheck"] = {str(path): text for path, text in baselines.items()}  # type: ignore[attr-defined]
    else:
        home: Any = config.pluginmanager.get_plugin("swcheck-reporter")
        for path, text in baselines.items():
            home.gathered.setdefault(path, []).append(text)


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
    from swcheck.study.common.setup import setup_of, zero_shot
    from swcheck.superweights.measurements.contributions import located

    if not located(swcheck_model).super_weights:
        pytest.skip(f"no super weight: {located(swcheck_model).reason}")
    scorer, unscored = zero_shot()
    return setup_of(swcheck_model, seed=swcheck_session.settings.seed, scorer=scorer, unscored=unscored)


@pytest.fixture(scope="session")
def swcheck_super_weights(swcheck_model: Subject) -> tuple[SuperWeight, ...]:
    """The super weights of the model under test: published ones completed by what is located."""
    from swcheck.superweights.measurements.contributions import located

    return located(swcheck_model).super_weights


@pytest.fixture(scope="session")
def swcheck_super_activations(swcheck_model: Subject) -> tuple[SuperActivation, ...]:
    """The super activations of the model under test, as located."""
    from swcheck.superweights.measurements.contributions import located

    return located(swcheck_model).activations


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
def swcheck_limits(request: pytest.FixtureRequest, swcheck_session: Session, swcheck_spec: str) -> dict[str, Limit]:
    """The limits of this run by name, each with ``.low`` and ``.high``: for the model under test, and in a test that
    asks for the candidate for that one beside it.
    """
    return dict(swcheck_session.settings.limits_for(swcheck_spec, getattr(request, "param", None)))
