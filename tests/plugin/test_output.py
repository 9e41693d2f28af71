"""What a red run prints: one line where one is asked for, no table where silence is, nothing wider than the terminal."""

from __future__ import annotations

import pytest

from tests import checkpoints

OWN = """
from swcheck import assert_perplexity_within

def test_own(swcheck_model):
    assert_perplexity_within(swcheck_model, at_most=1.5)
"""
RED = "nothing to guard: super weights of micro"


@pytest.fixture
def red(inner, pytester, micro, brief, monkeypatch):
    """Run a red check of the suite and a red test of the project's own, at 80 columns."""
    pytester.makepyfile(test_mine=OWN)
    monkeypatch.setenv("COLUMNS", "80")
    words = (f"--model={micro}", brief, "-k", "test_own or (test_model and super_weights)")
    return lambda *more: inner(*words, *more)


@pytest.mark.slow
def test_tb_line_is_one_line_a_failure(red):
    """With --tb=line each failure is its place and its first line, of the suite as of a test of one's own."""
    lines = red("--tb=line", "-q").outlines
    start = next(number for number, line in enumerate(lines) if "FAILURES" in line)
    shown = lines[start + 1 :]
    assert shown[2].startswith("=")
    assert shown[0].endswith(RED)
    assert "test_mine.py:4: " in shown[1]


@pytest.mark.slow
def test_very_quiet_shows_no_table(red):
    """With -qq there are the failures and their short summary, and no table."""
    result = red("-qq", "--tb=no")
    result.stdout.no_fnmatch_line("*= swcheck =*")
    result.stdout.fnmatch_lines(["FAILED *test_super_weights*", "FAILED test_mine.py::test_own*"])


@pytest.mark.slow
def test_a_failure_of_ones_own_is_folded(red):
    """The error of a test of one's own is as wide as the terminal, below the lines of that test."""
    result = red("-q")
    errors = [line for line in result.outlines if line.startswith("E   ")]
    assert "E         limit <= 1.5 (given)" in errors
    assert max(map(len, errors)) <= 80
    assert ">       assert_perplexity_within(swcheck_model, at_most=1.5)" in result.outlines


@pytest.mark.slow
def test_the_id_of_a_check_can_be_pasted(inner, micro, brief, pytester):
    """The node id of the short summary is a path like any other, with parameters and without; a real file goes first."""
    check = "swcheck.suite.test_model::test_super_weights"
    for words in (f"{check}[micro]", check, "swcheck.suite.test_model"):
        shown = inner(f"--model={micro}", brief, "--co", "-q", words)
        assert f"{check}[micro]" in shown.outlines
    assert inner(f"--model={micro}", "swcheck.suite.test_nothing").ret == pytest.ExitCode.USAGE_ERROR
    (pytester.path / "swcheck.suite.test_model").mkdir()
    inner(f"--model={micro}", "--co", "-q", "swcheck.suite.test_model").stdout.no_fnmatch_line("*test_super_weights*")


@pytest.mark.slow
def test_a_stale_baseline_is_an_error_in_both_places(inner, pytester, brief):
    """A baseline of other weights is an ERROR in the table of the run as in pytest's own lines."""
    directory = checkpoints.copy_of_tiny(pytester.path / "mine")
    words = (f"--model={directory}", "--swcheck-baseline=kept", brief, "-k", "test_model and perplexity")
    inner(*words, "--swcheck-update", "--swcheck-accept")
    checkpoints.tensors(lambda whole: {name: -tensor for name, tensor in whole.items()})(directory)

    result = inner(*words)

    result.stdout.fnmatch_lines(["perplexity * ERROR", "ERROR *test_perplexity*"])


def test_a_misspelt_name_is_put_right(inner):
    """Two letters of a short name in the wrong order are enough to propose it."""
    result = inner("--model=tyni")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "the closest: tiny" in " ".join(result.stderr.str().split())


@pytest.mark.slow
def test_the_estimate_is_no_part_of_a_test(inner, pytester, micro, brief):
    """Models and time are said before any other plugin's wrapper of the test begins, such as the alarm of a timeout."""
    pytester.makeconftest("""
        import pytest

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_protocol(item):
            item.config.get_terminal_writer().line("the alarm is set")
            return (yield)
    """)
    lines = inner(f"--model={micro}", brief, "-k", "test_model and perplexity").outlines
    said = next(number for number, line in enumerate(lines) if line.startswith("swcheck: loading "))
    assert "the alarm is set" in lines[said + 1 :]
    assert "the alarm is set" not in lines[:said]


@pytest.mark.slow
def test_the_short_summary_has_room_for_the_cause(red):
    """At 80 columns the line names the test without its module, and the cause is not cut to a few letters."""
    shown = [line for line in red("--tb=no").outlines if line.startswith("FAILED test_super_weights")]
    assert shown == [f"FAILED test_super_weights[micro] - {RED}"]
