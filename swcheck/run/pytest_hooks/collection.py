"""How the shipped suite joins a run: what is collected, under which ids, once per model and candidate."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest

from swcheck.run.pytest_hooks.stash import settings_of, specs_of

SUITE: Final = Path(__file__).parents[2] / "suite"
PAPER: Final = "swcheck_paper"
PAPERS: Final = "test_paper.py"
SPOKEN: Final = ("swcheck", "super_weights", "super_activations")
"""A file with one of these words speaks of swcheck: two fixtures have shorter names as well."""


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
    """Whether this run was asked for a model, or for a candidate, and for no path: then the shipped suite is part of it."""
    settings = settings_of(config)
    asked = settings is not None and "command line" in map(settings.origins.get, ("model", "candidate"))
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
        written = collector.path.read_text(encoding="utf-8", errors="replace")
        if any(word in written for word in SPOKEN):
            return report
        message = f"{report.nodeid} cannot be collected; it does not speak of swcheck and is left out"
        try:
            warnings.warn(pytest.PytestCollectionWarning(message), stacklevel=1)
        except pytest.PytestCollectionWarning:  # under -W error it stays an error
            return report
        report.outcome, report.longrepr, report.result = "passed", None, []
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    settings = settings_of(metafunc.config)
    if "swcheck_spec" in metafunc.fixturenames and settings is not None and settings.models:
        names = [settings.name_of(spec) for spec in settings.models]
        metafunc.parametrize("swcheck_spec", settings.models, ids=names, scope="session")
    if "swcheck_candidate_spec" in metafunc.fixturenames and settings is not None and settings.candidates:
        names = [settings.name_of(spec) for spec in settings.candidates]
        limits = [name for name in ("swcheck_limits",) if name in metafunc.fixturenames]  # each candidate has its own
        values = [(spec, *[spec] * len(limits)) for spec in settings.candidates]
        told = ["swcheck_candidate_spec", *limits]
        metafunc.parametrize(told, values, indirect=limits, ids=names, scope="session")


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


def suite_items(session: pytest.Session) -> list[pytest.Item]:
    """The shipped checks, collected beside the arguments: no ini-file, conftest or environment swallows them.

    Nor does ``--lf``, which leaves out whole files in which nothing failed: the modules are asked themselves, and what
    they give is announced as pytest would have done it.
    """
    before = list(sys.path)
    items = []
    try:
        for name in ["test_model.py", "test_candidate.py", *[PAPERS] * paper_is_asked(session.config)]:
            module = SuiteModule.of(SUITE / name, session)
            found = [node for node in module.collect() if isinstance(node, pytest.Item)]
            for item in found:
                item.ihook.pytest_itemcollected(item=item)
            module.ihook.pytest_collectreport(report=pytest.CollectReport(module.nodeid, "passed", None, [*found]))
            items += found
    except pytest.Collector.CollectError as error:
        raise pytest.UsageError(f"no check of swcheck was collected from {SUITE}: {error}") from error
    finally:
        sys.path[:] = before  # importing a module by its path puts site-packages before the project
    if not items:
        raise pytest.UsageError(f"no check of swcheck was collected from {SUITE}: its installation is not whole")
    return items
