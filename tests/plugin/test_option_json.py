"""``--swcheck-json``: the verdicts as a file, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plugin import SHIPPED, refused

OUTCOMES = {"passed", "near", "failed", "not_applicable", "inconclusive", "skipped"}
FIELDS = {"check", "model", "candidate", "measured", "limit", "outcome", "cause", "summary", "margin", "test"}


def verdicts(file="out.json"):
    document = json.loads(Path(file).read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert document["schema"] == 2
    assert set(document) == {"schema", "verdicts"}
    for verdict in document["verdicts"]:
        assert set(verdict) >= FIELDS
        assert verdict["outcome"] in OUTCOMES
    return document["verdicts"]


@pytest.mark.slow
def test_every_shipped_check_is_in_it(inner, micro):
    """Passed, failed, not applicable and skipped checks are there in the order of the tests; a red one has its cause."""
    result = inner(f"--model={micro}", "--swcheck-json=out.json")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["written: */out.json"])
    found = {(verdict["check"], verdict["outcome"]) for verdict in verdicts()}
    assert found == {
        ("perplexity", "passed"),
        ("super weights", "failed"),
        ("super activations", "not_applicable"),
        ("collapse when zeroed", "not_applicable"),
        ("null: matched weights", "not_applicable"),
        ("null: largest others", "not_applicable"),
        ("super weights", "skipped"),
        ("super activations", "skipped"),
        ("perplexity", "skipped"),
        ("predictions", "skipped"),
        ("dependence", "skipped"),
    }
    assert all(bool(verdict["cause"]) == (verdict["outcome"] == "failed") for verdict in verdicts())
    assert [verdict["check"] for verdict in verdicts()][:3] == ["perplexity", "super weights", "super activations"]


@pytest.mark.slow
def test_a_check_that_was_skipped_says_so(inner, micro):
    """Asked for by name without a candidate, the checks of candidates are in the file as skipped."""
    inner(f"--model={micro}", "--pyargs", "swcheck.suite.test_candidate", "--swcheck-json=out.json")
    assert {verdict["outcome"] for verdict in verdicts()} == {"skipped"}
    assert {verdict["check"] for verdict in verdicts()} >= {"super weights", "perplexity", "predictions", "dependence"}


@pytest.mark.slow
def test_a_folder_is_made_and_an_old_file_replaced(inner, pytester, micro):
    """Missing folders are made when there is something to write; an older file is replaced, nothing lies beside it."""
    out = pytester.path / "a" / "b" / "out.json"
    words = (f"--model={micro}", "-k", "test_model and perplexity", f"--swcheck-json={out}")
    inner(*words, "--co")
    assert not out.parent.exists()
    inner(*words)
    first = out.read_text()
    out.write_text("old")
    inner(*words)
    assert out.read_text() == first
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]


@pytest.mark.parametrize("value", ["/", "", ".", "file.txt/out.json"], ids=["root", "empty", "folder", "below-a-file"])
def test_a_path_that_cannot_be_written(inner, pytester, value):
    """A path that cannot be written is a usage error before anything is loaded."""
    (pytester.path / "file.txt").touch()
    refused(inner("--model=tiny", f"--swcheck-json={value}"))


@pytest.mark.slow
def test_one_that_cannot_be_written_in_the_end_loses_nothing(inner, pytester, micro):
    """Where the folder vanishes during the run the table is still shown, the error said in words, and the exit code is 4."""
    pytester.makepyfile(
        """
        import shutil
        def test_mine(swcheck_spec):
            shutil.rmtree("out")
            open("out", "w").close()
        """
    )
    pytester.mkdir("out")
    words = (f"--model={micro}", "-k", "test_mine or (test_model and perplexity)", "--swcheck-json=out/x.json")
    result = inner(*words)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["perplexity * passed", "swcheck: */out/x.json cannot be written: *"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("written: *")


@pytest.mark.slow
def test_non_finite_numbers_are_words(inner, pytester, healthy):
    """NaN that a model answers is written as a string, so that every reader of JSON can read it."""
    from tests import checkpoints

    poisoned = checkpoints.copy_of_tiny(pytester.path / "poisoned", checkpoints.poisoned)
    assert inner(f"--model={poisoned}", "-k", "test_model and perplexity", "--swcheck-json=out.json").ret == 1
    [verdict] = verdicts()
    assert verdict["measured"] == "NaN"
    assert verdict["cause"].startswith("not finite")


def test_without_a_model_it_is_empty(inner):
    """A run without checks writes that there were none, so that an old file is not taken for this run's."""
    inner("--swcheck-json=out.json")
    assert verdicts() == []


@pytest.mark.slow
def test_a_test_of_ones_own_is_in_it(inner, pytester):
    """A verdict of the project's own test is written with its node id; a red one that the test expected is not."""
    pytester.makepyfile(
        test_own="""
        import pytest
        from swcheck import RobustnessError, SuperWeight, assert_collapses_when_zeroed, assert_perplexity_within

        def test_own(swcheck_model):
            assert_perplexity_within(swcheck_model, at_most=100)
            with pytest.raises(RobustnessError):
                assert_collapses_when_zeroed(swcheck_model, super_weights=[SuperWeight(0, 0, 0)])
        """
    )
    result = inner("--model=tiny", "-k", "test_own or (test_model and perplexity)", "--swcheck-json=out.json")
    result.assert_outcomes(passed=2, deselected=SHIPPED - 1)
    found = {verdict["test"]: verdict["check"] for verdict in verdicts()}
    assert found == {
        "test_own.py::test_own[tiny]": "perplexity",
        "swcheck.suite.test_model::test_perplexity[tiny]": "perplexity",
    }
    result.stdout.fnmatch_lines(["perplexity (test_own) * passed"])
