"""``--swcheck-require``: a run that names a candidate and judges nothing is loud, and red where that is asked for."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.plugin import CANDIDATE, MODEL

NAMED = "candidate rtn:bits=4 named ({}), and no check judged it"
COMMAND = "  try: pytest --model=tiny --candidate=rtn:bits=4{} --pyargs swcheck.suite"


def named_by_options(_pytester, _monkeypatch):
    return ["--model=tiny", "--candidate=rtn:bits=4", "test_it.py"], "command line"


def named_by_environment(_pytester, monkeypatch):
    monkeypatch.setenv("SWCHECK_MODEL", "tiny")
    monkeypatch.setenv("SWCHECK_CANDIDATE", "rtn:bits=4")
    return [], "environment"


def named_by_ini_file(pytester, _monkeypatch):
    pytester.makeini("[pytest]\nswcheck_model = tiny\nswcheck_candidate = rtn:bits=4")
    return [], "ini-file"


def named_by_addopts(pytester, _monkeypatch):
    pytester.makeini("[pytest]\naddopts = --model=tiny --candidate=rtn:bits=4 test_it.py")
    return [], "command line"


@pytest.mark.parametrize("way", [named_by_options, named_by_environment, named_by_ini_file, named_by_addopts])
def test_a_candidate_that_no_check_judged_is_said_and_can_be_red(inner, pytester, monkeypatch, way):
    """Each way to name a candidate without a check ends in a yellow line with the command to run; required, in an error."""
    pytester.makepyfile(test_it="def test_mine(): pass")
    words, place = way(pytester, monkeypatch)
    result = inner(*words)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"swcheck: {NAMED.format(place)}", COMMAND.format("")])
    listed = inner(*words, "--co")
    assert listed.ret == 0
    listed.stdout.no_fnmatch_line("*no check judged it")

    result = inner(*words, "--swcheck-require", "--junitxml=out.xml")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        [NAMED.format(place), COMMAND.format(" --swcheck-require"), f"ERROR swcheck::require - {NAMED.format(place)}"]
    )
    cases = ET.parse(pytester.path / "out.xml").iter("testcase")
    assert [case.get("name") for case in cases if case.find("error") is not None] == ["require"]


def test_a_candidate_without_a_model_is_said_too(inner, monkeypatch):
    """A candidate in the environment alone has nothing to be held against, and the run says so."""
    monkeypatch.setenv("SWCHECK_CANDIDATE", "rtn:bits=4")
    result = inner()
    result.stdout.fnmatch_lines(["swcheck: a candidate is named (environment) without a model, and no check judged it"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model and no candidate is named, and no check ran"),
        (["--model=tiny"], "model tiny named (command line), and no check judged it"),
    ],
    ids=["nothing", "model"],
)
@pytest.mark.slow
def test_a_run_without_a_candidate_has_to_judge_its_model(inner, pytester, words, said):
    """Required, a run that names nothing or judges no model is red; not required, a model needs no check."""
    pytester.makepyfile(test_it="def test_mine(): pass")
    result = inner(*words, "test_it.py", "--swcheck-require")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([f"ERROR swcheck::require - {said}"])
    inner(*words, "test_it.py").stdout.no_fnmatch_line("*no check*")


def test_a_skipped_check_has_judged_nothing(inner, pytester):
    """Where all checks of a candidate are skipped it was not judged; the error is not remembered as a failed test."""
    pytester.makepyfile(test_it="import pytest\ndef test_mine(swcheck_candidate_spec): pytest.skip('later')")
    words = ("-p", "cacheprovider", "--model=tiny", "--candidate=rtn:bits=4", "test_it.py", "--swcheck-require")
    inner(*words).assert_outcomes(skipped=1, errors=1)
    inner(*words, "--lf").stdout.fnmatch_lines(["run-last-failure: no previously failed tests, *"])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_judged_candidate_is_no_error(inner, workers, brief):
    """One check that looked at the candidate is enough, in a worker as well; the line is gone."""
    selected = ("-k", "test_candidate and test_super_weights", brief)
    result = inner("--model=tiny", "--candidate=rtn:bits=8", "--swcheck-require", *selected, *workers)
    result.assert_outcomes(passed=1, **({} if workers else {"deselected": MODEL + CANDIDATE - 1}))
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*no check*")
