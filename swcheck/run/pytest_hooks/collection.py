"""Adds the shipped suite to a run: what is collected, under which ids, and once for each model and candidate."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest

from swcheck.run.pytest_hooks.stash import settings_of

SUITE_FOLDER: Final = Path(__file__).parents[2] / "suite"
SUITE_PACKAGE: Final = "swcheck.suite."
PAPER_MARKER: Final = "swcheck_paper"
PAPER_MODULE: Final = "test_paper.py"
SWCHECK_WORDS: Final = ("swcheck", "super_weights", "super_activations")
"""A test file that contains one of these words may use swcheck; the last two are fixtures with a shorter name."""


class SuiteModule(pytest.Module):
    """A module of the shipped suite.

    Its node ids depend neither on where swcheck is installed nor on the project's ``python_functions``.
    """

    @classmethod
    def of(cls, path: Path, parent: pytest.Collector) -> SuiteModule:
        module: SuiteModule = cls.from_parent(parent, path=path, nodeid=f"{SUITE_PACKAGE}{path.stem}")
        return module

    def funcnamefilter(self, name: str) -> bool:
        return name.startswith("test_")


def is_shipped(path: Path) -> bool:
    """Return whether ``path`` is a module of the shipped suite."""
    return path.parent == SUITE_FOLDER and path.name.startswith("test_")


def uses_swcheck(item: pytest.Item) -> bool:
    """Return whether a test uses a fixture of swcheck, directly or through another fixture."""
    return any(name.startswith("swcheck_") for name in getattr(item, "fixturenames", ()))


def suite_is_included(config: pytest.Config) -> bool:
    """Return whether the shipped suite is part of this run: a model or candidate on the command line, and no path."""
    settings = settings_of(config)
    on_command_line = settings is not None and "command line" in map(settings.origins.get, ("model", "candidate"))
    return on_command_line and config.args_source is not pytest.Config.ArgsSource.ARGS


def find_suite_ids(config: pytest.Config) -> None:
    """Turn node ids of the shipped suite among the arguments, as the short summary shows them, into paths.

    So they can be pasted without ``--pyargs``.
    """
    for number, argument in enumerate(config.args):
        module, colons, test = argument.partition("::")
        name = module.removeprefix(SUITE_PACKAGE)
        if name != module and not Path(module).exists() and (SUITE_FOLDER / f"{name}.py").is_file():
            config.args[number] = f"{SUITE_FOLDER / name}.py{colons}{test}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the claims of the paper, which take minutes, unless their marker is selected.

    Pytest does not call this for a file that is itself given as a path.
    """
    return True if collection_path == SUITE_FOLDER / PAPER_MODULE and not is_paper_selected(config) else None


def is_paper_selected(config: pytest.Config) -> bool:
    """Return whether ``-m`` names the marker of the paper's claims."""
    return PAPER_MARKER in config.option.markexpr


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return SuiteModule.of(module_path, parent) if is_shipped(module_path) else None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect a module of the shipped suite in a given folder, even if the project's ``python_files`` excludes it."""
    if not is_shipped(file_path) or parent.session.isinitpath(file_path):
        return None
    if any(fnmatch(file_path.name, pattern) for pattern in parent.config.getini("python_files")):
        return None
    return SuiteModule.of(file_path, parent)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a collection error into a warning if the file does not mention swcheck: the shipped suite still runs."""
    report = yield
    if report.failed and isinstance(collector, pytest.Module) and suite_is_included(collector.config):
        source = collector.path.read_text(encoding="utf-8", errors="replace")
        if any(word in source for word in SWCHECK_WORDS):
            return report
        message = f"{report.nodeid} cannot be collected; it does not speak of swcheck and is left out"
        try:
            warnings.warn(pytest.PytestCollectionWarning(message), stacklevel=1)
        except pytest.PytestCollectionWarning:  # with -W error it stays an error
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
        limits = [name for name in ("swcheck_limits",) if name in metafunc.fixturenames]  # they differ by candidate
        values = [(spec, *[spec] * len(limits)) for spec in settings.candidates]
        argnames = ["swcheck_candidate_spec", *limits]
        metafunc.parametrize(argnames, values, indirect=limits, ids=names, scope="session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a path, add the shipped suite and deselect the project's tests that use no fixture of swcheck."""
    if suite_is_included(config):
        if not any(is_shipped(item.path) for item in items):
            from swcheck.base.isolation import interrupts_kept

            with interrupts_kept(repeated=True):  # the modules import torch
                items[:0] = suite_items(session)
        others = [item for item in items if not uses_swcheck(item)]
        if others:
            items[:] = [item for item in items if uses_swcheck(item)]
            config.hook.pytest_deselected(items=others)


def suite_items(session: pytest.Session) -> list[pytest.Item]:
    """Return the tests of the shipped suite.

    The modules are collected directly and not by pytest's arguments. So no ini-file, conftest or environment can
    exclude them, nor can ``--lf``, which leaves out files without a failure. The hooks that pytest calls on collection
    are called here. Raises ``pytest.UsageError`` if no test is found.
    """
    before = list(sys.path)
    items = []
    try:
        for name in ["test_model.py", "test_candidate.py", *[PAPER_MODULE] * is_paper_selected(session.config)]:
            module = SuiteModule.of(SUITE_FOLDER / name, session)
            found = [node for node in module.collect() if isinstance(node, pytest.Item)]
            for item in found:
                item.ihook.pytest_itemcollected(item=item)
            module.ihook.pytest_collectreport(report=pytest.CollectReport(module.nodeid, "passed", None, [*found]))
            items += found
    except pytest.Collector.CollectError as error:
        raise pytest.UsageError(f"no check of swcheck was collected from {SUITE_FOLDER}: {error}") from error
    finally:
        sys.path[:] = before  # importing a module by its path put site-packages first
    if not items:
        raise pytest.UsageError(f"no check of swcheck was collected from {SUITE_FOLDER}: its installation is not whole")
    return items
