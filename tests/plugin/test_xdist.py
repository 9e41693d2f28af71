"""With workers: their verdicts come home, one process writes, and nobody prints in between."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.plugin import BOTH


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
            "swcheck: one worker of xdist measures a reference for all; --dist loadgroup keeps*",
            "*super weight at layer 1*zeroed*: super weights of zeroed against tiny",
            "=* swcheck =*",
            "tiny",
            "perplexity * passed",
            "super weights * passed",
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


@pytest.mark.slow
def test_the_tests_of_a_model_are_a_group(inner, pytester, micro):
    """Under --dist loadgroup the checks of one model stay with one worker, those of one candidate as well; without
    xdist there is no such mark.
    """
    pytester.makepyfile(
        test_own="""
        def marks(request):
            return [mark.args[0] for mark in request.node.iter_markers("xdist_group")]

        def test_model(swcheck_spec, request, pytestconfig):
            assert marks(request) == (["tiny"] if pytestconfig.pluginmanager.hasplugin("xdist") else [])

        def test_candidate(swcheck_spec, swcheck_candidate_spec, request, pytestconfig):
            asked = f"tiny-{swcheck_candidate_spec}"
            assert marks(request) == ([asked] if pytestconfig.pluginmanager.hasplugin("xdist") else [])
        """
    )
    words = ("--model=tiny", "--candidate=tiny", f"--candidate={micro}", "test_own.py", "--strict-markers")
    inner(*words).assert_outcomes(passed=3)
    inner(*words, "-p", "no:xdist").assert_outcomes(passed=3)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [["-n", "2"], ["-n", "2", "--dist", "loadgroup"]], ids=" ".join)
def test_baselines_come_home_from_the_workers(inner, pytester, brief, spread):
    """However many workers measure a reference none writes: one whole file is written at the end, and one error says
    that it wants a review.
    """
    folder = pytester.path / "kept"
    folder.mkdir()
    (folder / "other.json").write_text("mine")
    words = ("--model=tiny", "--swcheck-baseline=kept", brief, "-k", "test_model and (perplexity or activations)")
    result = inner(*words, *spread, "--swcheck-update")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.no_fnmatch_line("*[[]150%]")
    result.stdout.fnmatch_lines(["*review and commit*", f"written: {folder / 'tiny.json'}"])
    assert sorted(child.name for child in folder.iterdir()) == ["other.json", "tiny.json"]
    assert (folder / "other.json").read_text() == "mine"
    if spread != ["-n", "2"]:
        return
    assert inner(*words, *spread, "--swcheck-update", "--swcheck-accept").ret == pytest.ExitCode.OK
    gate = inner("--model=tiny", "--candidate=tiny", "--swcheck-baseline=kept", brief)
    gate.assert_outcomes(passed=BOTH)


@pytest.mark.slow
def test_what_every_worker_loads_is_said_once(inner, brief):
    """The controller names model, size, tier and estimate before the work; the workers say nothing."""
    result = inner("--model=tiny", "-n", "2", brief)
    said = [line for line in result.outlines if line.startswith("swcheck: each worker loads")]
    assert len(said) == 1
    assert "tiny (7 MB); standard tier" in said[0]
    assert not any(line.startswith("swcheck: loading") for line in result.outlines)


@pytest.mark.slow
def test_one_worker_measures_the_reference_for_all(outer, micro, brief, tmp_path):
    """With two workers the reference is loaded once, though both judge the same candidates, and no folder is left over."""
    (tmp_path / "conftest.py").write_text(
        "import os\nfrom pathlib import Path\nfrom swcheck.loading import engines\n\nload = engines.load\n\n"
        "def logged(spec, **options):\n    with Path('loads.txt').open('a') as file:\n        file.write(f'{spec}\\n')\n"
        "    return load(spec, **options)\n\nengines.load = logged\n"
    )
    copies = [shutil.copytree(micro, tmp_path / name) for name in ("first", "second")]
    words = [f"--model={micro}", *(f"--candidate={copy}" for copy in copies), brief, "--swcheck-allow-none"]
    (tmp_path / "temporary").mkdir()
    done = outer(*words, "-n", "2", "-k", "test_perplexity or predictions", TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == 0, done.stdout
    loads = (tmp_path / "loads.txt").read_text().split()
    assert loads.count(str(micro)) == 1
    assert set(loads) == {str(micro), *map(str, copies)}
    assert not [child for child in (tmp_path / "temporary").iterdir() if child.name.startswith("swcheck-")]
