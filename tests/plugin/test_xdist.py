"""With workers: their verdicts come home, one process writes, and nobody prints in between."""

from __future__ import annotations

import json


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
            "swcheck: each worker of xdist loads its own models",
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


def test_the_tests_of_a_model_are_a_group(inner, pytester):
    """Under --dist loadgroup the checks of one model stay with one worker; without xdist there is no such mark."""
    pytester.makepyfile(
        test_own="""
        def test_group(swcheck_spec, request, pytestconfig):
            marks = [mark.args for mark in request.node.iter_markers("xdist_group")]
            assert marks == ([("tiny",)] if pytestconfig.pluginmanager.hasplugin("xdist") else [])
        """
    )
    inner("--model=tiny", "test_own.py", "--strict-markers").assert_outcomes(passed=1)
    inner("--model=tiny", "test_own.py", "--strict-markers", "-p", "no:xdist").assert_outcomes(passed=1)
