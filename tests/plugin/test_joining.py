"""How the shipped suite joins a run, whatever the project around it looks like."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import swcheck
from swcheck.run.pytest_hooks.collection import PAPER_MODULE, SUITE_FOLDER
from tests.plugin import BOTH, MODEL, SHIPPED

MINE = """
def test_mine(swcheck_spec): pass
def test_other(): pass
"""


def collected(result) -> list[str]:
    """The node ids that ``--co -q`` prints."""
    return [line for line in result.outlines if "::" in line]


def shipped(result) -> int:
    return sum(line.startswith("swcheck.suite.") for line in collected(result))


def test_only_tests_that_ask_join_the_suite(inner, pytester):
    """With --model and no path the suite runs, and of the project what asks for a fixture, itself or through another."""
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef through(swcheck_spec): pass\n")
    pytester.makepyfile(MINE + "def test_through(through): pass\n")
    result = inner("--model=tiny", "--co", "-q")
    assert shipped(result) == SHIPPED
    mine = [line.partition("::")[2] for line in collected(result) if "test_only" in line]
    assert mine == ["test_mine[tiny]", "test_through[tiny]"]
    result.stdout.fnmatch_lines([f"{SHIPPED + 2}/{SHIPPED + 3} tests collected (1 deselected)*"])


def test_a_candidate_on_the_command_line_is_gated(inner, pytester):
    """With the reference in the ini-file, a --candidate brings the suite along: nobody types one to have it ignored."""
    pytester.makeini("[pytest]\nswcheck_model = tiny")
    pytester.makepyfile(MINE)
    assert shipped(inner("--co", "-q")) == 0
    assert shipped(inner("--candidate=tiny", "--co", "-q")) == SHIPPED


@pytest.mark.parametrize("path", [".", "test_it.py", "test_it.py::test_other"])
def test_a_path_runs_what_it_names(inner, pytester, path):
    """A path on the command line is all that runs, the suite stays away and nothing is deselected."""
    pytester.makepyfile(test_it=MINE)
    result = inner("--model=tiny", "--co", "-q", path)
    assert shipped(result) == 0
    assert len(collected(result)) == (1 if "::" in path else 2)


@pytest.mark.parametrize(
    "ini",
    [
        "",
        "testpaths = tests",
        "python_files = check_*.py",
        "python_functions = check_*",
        "python_classes = Check*",
        "norecursedirs = suite swcheck site-packages * .*",
        "addopts = --strict-markers --strict-config --import-mode=importlib",
        "addopts = --import-mode=append",
        "addopts = -p no:cacheprovider -p no:randomly -p no:hypothesispytest",
        "addopts = --ignore-glob=*test_model.py",
        "addopts = --doctest-modules",
        "xfail_strict = true\naddopts = -W error",
    ],
)
def test_no_ini_file_keeps_the_suite_away(inner, pytester, ini):
    """Whatever a project calls its tests, and wherever it looks for them, all shipped checks are collected."""
    pytester.makeini(f"[pytest]\n{ini}")
    pytester.mkdir("tests").joinpath("test_it.py").write_text(MINE)
    result = inner("--model=tiny", "--co", "-q", "-W", "error::pytest.PytestWarning")
    assert result.ret == 0
    assert shipped(result) == SHIPPED


def test_from_a_subdirectory(inner, pytester, monkeypatch):
    """Started below the rootdir, the suite and the tests below join."""
    pytester.makeini("[pytest]")
    below = pytester.mkdir("below")
    below.joinpath("test_it.py").write_text(MINE)
    monkeypatch.chdir(below)
    result = inner("--model=tiny", "--co", "-q")
    assert len(collected(result)) == SHIPPED + 1


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["-k", "perplexity"], 2),
        (["-k", "tiny and test_model"], MODEL),
        (["-m", "swcheck"], SHIPPED),
        (["-m", "not swcheck"], 1),
        (["--deselect", "swcheck.suite.test_model::test_collapse"], SHIPPED),
    ],
)
def test_selection_works_on_it(inner, pytester, words, count):
    """-k, -m and --deselect see the shipped checks like any other test."""
    pytester.makepyfile(test_it=MINE)
    assert len(collected(inner("--model=tiny", "--co", "-q", *words))) == count


@pytest.mark.slow
def test_the_last_failures_run_again(inner, pytester):
    """--lf runs what failed, of the project and of the suite alike: a file in which nothing failed is no reason to stop."""
    kept, again = ("-p", "cacheprovider", "--model=tiny"), ("--lf", "--co", "-q")
    pytester.makepyfile(test_it="def test_mine(swcheck_spec): assert False")
    inner(*kept, "-k", "test_mine").assert_outcomes(failed=1, deselected=SHIPPED)
    assert collected(inner(*kept, *again)) == ["test_it.py::test_mine[tiny]"]
    short = pytester.path / "short.txt"
    short.write_text("too short")
    inner(*kept, f"--swcheck-text={short}", "-k", "test_mine or (test_model and perplexity)").assert_outcomes(
        failed=2, deselected=SHIPPED - 1
    )
    found = ["swcheck.suite.test_model::test_perplexity[tiny]", "test_it.py::test_mine[tiny]"]
    assert collected(inner(*kept, *again)) == found


def test_pyargs_runs_it_by_its_name(inner):
    """``--pyargs swcheck.suite`` and the names of its modules and checks are paths like any other, with the same ids."""
    whole = collected(inner("--model=tiny", "--co", "-q"))
    named = collected(inner("--model=tiny", "--co", "-q", "--pyargs", "swcheck.suite"))
    assert sorted(named) == sorted(whole)
    one = inner("--model=tiny", "--co", "-q", "--pyargs", "swcheck.suite.test_model::test_collapse")
    assert collected(one) == ["swcheck.suite.test_model::test_collapse[tiny]"]
    inner("--co", "-q", "-o", "python_files=check_*.py", "--pyargs", "swcheck.suite").stdout.fnmatch_lines(
        [f"{BOTH} tests*"]
    )


def test_without_a_model_its_tests_are_skipped(inner):
    """The suite by its name, without a model, is skipped with the command that gives one."""
    result = inner("--pyargs", "swcheck.suite", "-rs")
    result.assert_outcomes(skipped=BOTH)
    result.stdout.fnmatch_lines(["SKIPPED * no model given: pytest --model=tiny"])


@pytest.mark.slow
def test_collecting_loads_nothing(inner, pytester, monkeypatch):
    """``--collect-only`` gets by without a model: the loader is never called."""
    monkeypatch.setattr("swcheck.loading.engines.load", lambda *_args, **_options: pytest.fail("a model was loaded"))
    pytester.makepyfile(test_it=MINE)
    assert inner("--model=tiny", "--candidate=tiny", "--co").ret == 0
    assert inner("--model=tiny", "-k", "test_model and perplexity").ret == 1


def test_the_path_of_imports_is_left_alone(inner, pytester):
    """That the suite joins does not put its folder before the project on sys.path."""
    pytester.makepyfile(f"import sys\ndef test_path(swcheck_spec): assert sys.path[0] == {str(pytester.path)!r}")
    inner("--model=tiny", "-k", "test_path").assert_outcomes(passed=1, deselected=SHIPPED)


@pytest.mark.slow
def test_a_broken_file_that_never_speaks_of_swcheck_is_left_out(inner, pytester):
    """A project's test that cannot be imported is a warning, unless it speaks of swcheck or warnings are errors."""
    pytester.makepyfile(test_broken="import nonexistent_thing")
    result = inner("--model=tiny", "--co", "-q", "-W", "default")
    assert result.ret == 0
    assert shipped(result) == SHIPPED
    result.stdout.fnmatch_lines(
        ["*PytestCollectionWarning: test_broken.py cannot be collected; it does not speak of *"]
    )
    assert inner("--model=tiny", "--co", "-q", "-W", "error").ret == pytest.ExitCode.INTERRUPTED
    assert inner("--model=tiny", "test_broken.py").ret == pytest.ExitCode.INTERRUPTED
    for fixture in ("swcheck_model", "super_weights", "super_activations"):
        pytester.makepyfile(test_broken=f"import nonexistent_thing\ndef test_it({fixture}): pass")
        assert inner("--model=tiny", "-W", "default").ret == pytest.ExitCode.INTERRUPTED


def test_it_joins_once(inner, pytester):
    """Where the project's own paths already lead to the suite it is not collected a second time."""
    pytester.makeini(f"[pytest]\ntestpaths = {SUITE_FOLDER}")
    ids = collected(inner("--model=tiny", "--co", "-q", "--noconftest"))
    assert len(ids) == len(set(ids)) == BOTH


def test_an_incomplete_installation_is_an_error(inner, monkeypatch, pytester):
    """With --model and not one shipped check to collect the run fails: a gate that runs nothing must not be green."""
    for name in ("test_model.py", "test_candidate.py"):
        (pytester.mkdir(name.removesuffix(".py")) / name).touch()
        pytester.path.joinpath(name).touch()
    monkeypatch.setattr("swcheck.run.pytest_hooks.collection.SUITE_FOLDER", pytester.path)
    monkeypatch.setattr("swcheck.run.pytest_hooks.collection.is_shipped", lambda _path: False)
    result = inner("--model=tiny", "--ignore=.")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: no check of swcheck was collected from *"])


@pytest.mark.slow
def test_its_environment_may_lie_inside_the_project(outer, tmp_path):
    """With swcheck installed in .venv below the rootdir, and the project a git checkout, the suite is collected whole."""
    project = tmp_path / "project"
    packages = project / ".venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (project / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    shutil.copytree(Path(swcheck.__file__).parent, packages / "swcheck", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers --strict-config\n")
    (project / "test_it.py").write_text(MINE)
    done = outer("--model=tiny", "--co", "-q", "-W", "error", folder=project, PYTHONPATH=str(packages))
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(ids) == SHIPPED + 1, done.stdout + done.stderr
    assert sum(line.startswith("swcheck.suite.") for line in ids) == SHIPPED
    done = outer(
        "--model=tiny",
        "--pyargs",
        "swcheck.suite",
        "--fixtures-per-test",
        "-v",
        folder=project,
        PYTHONPATH=str(packages),
    )
    assert str(packages / "swcheck" / "suite") in done.stdout or ".venv/lib" in done.stdout


def test_the_suite_is_where_the_plugin_says():
    """The folder of the suite holds the modules that join a run, and nothing else that is a test."""
    assert sorted(path.name for path in SUITE_FOLDER.glob("test_*.py")) == [
        "test_candidate.py",
        "test_model.py",
        PAPER_MODULE,
    ]


@pytest.mark.parametrize(
    ("arguments", "joins"),
    [
        (("--model=tiny", "-m", "swcheck_paper"), True),
        (("--model=tiny",), False),
        (("--model=tiny", "--pyargs", "swcheck.suite"), False),
        (("--model=tiny", "-m", "swcheck_paper", "--pyargs", "swcheck.suite"), True),
        (("--model=tiny", "--pyargs", "swcheck.suite.test_paper"), True),
    ],
)
def test_the_claims_of_the_paper_wait_for_their_marker(inner, arguments, joins):
    """They take minutes: they are collected where their marker or their module is named, and only then."""
    names = collected(inner("--co", "-q", *arguments))
    assert any(name.startswith("swcheck.suite.test_paper::") for name in names) == joins
