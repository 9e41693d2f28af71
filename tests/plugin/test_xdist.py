"""With workers: their verdicts come home, one process writes, and nobody prints in between."""

from __future__ import annotations

import json
import shutil

import pytest

from swcheck.loading.streaming.free_memory import FreeMemory
from swcheck.run import worker_memory
from swcheck.run.pytest_hooks import workers
from tests.plugin import refused


@pytest.mark.slow
def test_models_that_do_not_fit_beside_each_other_are_refused(inner, micro, monkeypatch, tmp_path):
    """Before any worker has loaded one."""
    copy = shutil.copytree(micro, tmp_path / "copy")
    size = sum(file.stat().st_size for file in micro.glob("*.safetensors"))
    monkeypatch.setattr(worker_memory, "free_memory", lambda: FreeMemory(2 * size - 1, "this machine"))
    words = f"--model={micro}", f"--candidate={copy}", "-n", "2", "--swcheck-device=cpu"
    refused(inner(*words), "pytest -n 2: 2 models in memory at a time", "-n 1, or --swcheck-stream")


@pytest.mark.slow
def test_two_workers(inner, pytester, zeroed, brief):
    """With -n 2 the table and the file are as without: in order, once, the red one with its cause; header warns of copies."""
    words = (
        "--model=tiny",
        f"--candidate={zeroed}",
        "-k",
        "perplexity or super_weights",
        "-n",
        "2",
        brief,
        "--swcheck-json=out.json",
    )
    result = inner(*words)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "swcheck: one worker of xdist measures a reference for all, and one judges a candidate",
            "*super weight at layer 1*zeroed*: super weights of zeroed against tiny",
            "=* swcheck =*",
            "tiny: 2 checks passed, shown with -v",
            "zeroed against tiny",
            "super weights * FAILED",
            "perplexity * FAILED",
            "written: */out.json",
        ]
    )
    result.stdout.no_fnmatch_line("*loading*")
    assert result.stderr.str() == ""
    verdicts = json.loads((pytester.path / "out.json").read_text())["verdicts"]
    assert [(verdict["check"], verdict["candidate"], verdict["outcome"]) for verdict in verdicts] == [
        ("perplexity", None, "passed"),
        ("super weights", None, "passed"),
        ("super weights", "zeroed", "failed"),
        ("perplexity", "zeroed", "failed"),
    ]


@pytest.mark.parametrize(
    ("test", "scope"),
    [
        ("swcheck.suite.test_model::test_perplexity[tiny]", "tiny"),
        ("swcheck.suite.test_candidate::test_perplexity[tiny-w4]", "w4"),
        ("swcheck.suite.test_candidate::test_perplexity[tiny-w4-g128]", "w4-g128"),
        ("a.py::test_mine[1-w4-tiny]", "w4"),
        ("a.py::test_mine[w4x]", ""),
        ("a.py::test_mine", ""),
    ],
)
def test_the_tests_of_a_candidate_have_one_scope(test, scope):
    """The parameters of a node id say the candidate, else the model; a longer name goes before one that it contains."""
    assert workers.scope_of(test, ["w4", "w4-g128"], ["tiny"]) == scope


LOGGED = """
import os
from pathlib import Path
from swcheck.loading import engines

load = engines.load

def logged(spec, **options):
    with Path("loads.txt").open("a") as file:
        file.write(f"{spec}\\n")
    return load(spec, **options)

engines.load = logged

def pytest_runtest_logreport(report):
    if report.when == "call" and hasattr(report, "node"):
        with open("ran.txt", "a") as file:
            file.write(f"{report.node.gateway.id} {report.nodeid}\\n")
"""
"""A conftest that notes what is loaded, and which worker ran a test."""


@pytest.mark.slow
def test_one_worker_judges_a_candidate_and_one_measures_the_reference(outer, micro, brief, tmp_path):
    """With -n 2 all checks of a candidate run in one worker; the reference is loaded once, and no folder is left over."""
    (tmp_path / "conftest.py").write_text(LOGGED)
    copies = [shutil.copytree(micro, tmp_path / name) for name in ("first", "second")]
    words = [f"--model={micro}", *(f"--candidate={copy}" for copy in copies), brief, "--swcheck-allow-none"]
    (tmp_path / "temporary").mkdir()
    done = outer(*words, "-n", "2", "-k", "test_candidate", TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == 0, done.stdout
    ran = [line.split(" ", 1) for line in (tmp_path / "ran.txt").read_text().splitlines()]
    for name in ("first", "second"):
        assert len({worker for worker, test in ran if f"-{name}]" in test}) == 1
        assert len([test for _, test in ran if f"-{name}]" in test]) >= 4
    loads = (tmp_path / "loads.txt").read_text().split()
    assert loads.count(str(micro)) == 1
    assert set(loads) == {str(micro), *map(str, copies)}
    assert not [child for child in (tmp_path / "temporary").iterdir() if child.name.startswith("swcheck-")]


@pytest.mark.slow
@pytest.mark.parametrize("spread", [["-n", "2"], ["-n", "2", "--dist", "loadgroup"]], ids=" ".join)
def test_baselines_come_home_from_the_workers(inner, pytester, brief, spread):
    """However many workers measure a reference none writes: one whole file is written at the end, and one error says
    that it wants a review. The controller names model, size and tier before the work; the workers say nothing.
    """
    folder = pytester.path / "kept"
    folder.mkdir()
    (folder / "other.json").write_text("mine")
    words = (
        "--model=tiny",
        "--swcheck-baseline=kept",
        "--swcheck-tier=smoke",
        brief,
        "-k",
        "test_model and (perplexity or activations)",
    )
    result = inner(*words, *spread, "--swcheck-update")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, errors=1)
    [said] = [line for line in result.outlines if line.startswith("swcheck: each worker loads")]
    assert "tiny (7 MB); smoke tier" in said
    assert not any(line.startswith("swcheck: loading") for line in result.outlines)
    result.stdout.no_fnmatch_line("*[[]150%]")
    result.stdout.fnmatch_lines(["*review and commit*", f"written: {folder / 'tiny.json'}"])
    assert sorted(child.name for child in folder.iterdir()) == ["other.json", "tiny.json"]
    assert (folder / "other.json").read_text() == "mine"
    if spread != ["-n", "2"]:
        return
    gate = inner(*words[:-2], "--candidate=tiny", "-k", "perplexity")
    gate.assert_outcomes(passed=2)
