"""``--swcheck-limit``: other limits, by name."""

from __future__ import annotations

import json

import pytest

from tests.plugin import MODEL, SHIPPED, refused


@pytest.mark.parametrize(
    "value",
    [
        "nonsense=1",
        "perplexity",
        "perplexity=",
        "perplexity=much",
        "perplexity=nan",
        "activation=2..1",
        "=",
        "tiny:perplexity",
        ":kl=1",
    ],
)
def test_a_limit_that_makes_no_sense(inner, value):
    """An unknown name, a value that is no number and an interval that nothing is in are usage errors."""
    refused(inner("--model=tiny", f"--swcheck-limit={value}"), "limit")


def test_an_empty_limit(inner):
    """An empty value is refused."""
    refused(inner("--model=tiny", "--swcheck-limit="), "--swcheck-limit\n  found: an empty value")


@pytest.mark.slow
def test_a_limit_is_what_is_judged_by(inner, brief):
    """A null that passes the default limit is inconclusive under one it cannot hold, and the table shows that limit."""
    words = ("--model=tiny", "-k", "null_largest", brief)
    assert inner(*words).ret == 0
    result = inner(*words, "--swcheck-limit=others=1.0001")
    result.assert_outcomes(failed=1, deselected=SHIPPED - 1)
    result.stdout.fnmatch_lines(
        ["*limit others <= 1.0001 (command line)*", "null: largest others * <= x1 * inconclusive"]
    )


@pytest.mark.slow
def test_the_repeating_command_has_it(inner, brief):
    """The command under a failure asks for the same limit, dtype and text again."""
    words = ("--swcheck-limit=others=1.0001", "--swcheck-dtype=bfloat16", brief)
    result = inner("--model=tiny", "-k", "null_largest", *words)
    result.stdout.fnmatch_lines(
        [
            f"pytest --model=tiny --swcheck-dtype=bfloat16 {brief} --swcheck-limit=others=..1.0001 --pyargs swcheck.suite.*"
        ]
    )


@pytest.mark.slow
def test_nothing_published_means_the_collapse_is_reported(inner, healthy, brief):
    """A model nobody has published anything of is not red for how little it collapses, unless a limit was given."""
    words = (f"--model={healthy}", "-k", "test_collapse", brief)
    result = inner(*words)
    result.assert_outcomes(passed=1, deselected=SHIPPED - 1)
    result.stdout.fnmatch_lines(["collapse when zeroed * reported * passed"])
    result = inner(*words, "--swcheck-limit=collapse=1e9")
    result.assert_outcomes(failed=1, deselected=SHIPPED - 1)


@pytest.mark.slow
def test_each_candidate_has_its_own(inner, pytester, healthy, zeroed, brief):
    """One table for all: the closer entry is what a candidate is judged by, and the failure says whom it was given for."""
    pytester.makeini(
        """
        [pytest]
        swcheck_limit =
            perplexity=1.5
            healthy:perplexity=0.5
            mistral*:perplexity=1.01
        """
    )
    words = ("--model=tiny", f"--candidate={healthy}", f"--candidate={zeroed}", "-k", "test_candidate and perplexity")
    result = inner(*words, brief, "--swcheck-limit=zero*:perplexity=1e9", "--swcheck-json=out.json")
    result.assert_outcomes(passed=1, failed=1, deselected=2 * SHIPPED - 2 - MODEL)
    result.stdout.fnmatch_lines(
        [
            "  limit <= 0.5 (given in the ini-file for healthy)",
            "pytest *--swcheck-limit=healthy:perplexity=..0.5 --pyargs *",
            "limits for no model of this run: mistral[*]:perplexity (ini)",
        ]
    )
    header = " ".join(result.stdout.str().split())
    assert "limit zero*: perplexity <= 1e+09 (command line), limit perplexity <= 1.5, healthy:" in header
    verdicts = json.loads((pytester.path / "out.json").read_text())["verdicts"]
    assert {verdict["candidate"]: verdict["limit_source"] for verdict in verdicts} == {
        "healthy": "given in the ini-file for healthy",
        "zeroed": "given on the command line for zero*",
    }


def test_a_slip_in_a_name_is_refused(inner):
    """On the command line what speaks of no model of the run is a usage error: it would gate nothing."""
    words = ("--model=tiny", "--candidate=rtn:bits=4", "--swcheck-limit=rnt:*:kl=0.02")
    refused(
        inner(*words), "limit 'rnt:*:kl=..0.02'", "no model or candidate of this run is called so: tiny, rtn:bits=4"
    )


@pytest.mark.slow
def test_tests_of_ones_own_are_judged_by_it(inner, pytester, healthy, brief):
    """An assertion without an argument keeps to the run's limits, an argument wins, and the fixture has the candidate's."""
    pytester.makepyfile(
        test_own="""
        import pytest
        from hypothesis import given, settings, strategies
        from swcheck import RobustnessError, assert_perplexity_within

        def test_asked(swcheck_candidate, swcheck_model):
            with pytest.raises(RobustnessError, match="given on the command line for healthy"):
                assert_perplexity_within(swcheck_candidate, swcheck_model)

        def test_argument(swcheck_candidate, swcheck_model):
            assert assert_perplexity_within(swcheck_candidate, swcheck_model, ratio=1.01).limit.source == "given"

        @settings(max_examples=2, database=None, deadline=None)
        @given(strategies.none())
        def test_beside(swcheck_limits, swcheck_candidate_spec, _none):
            assert swcheck_limits["perplexity"].high == 0.5

        def test_alone(swcheck_limits):
            assert swcheck_limits["perplexity"].high == 1.05
        """
    )
    words = ("--model=tiny", f"--candidate={healthy}", "--swcheck-limit=healthy:perplexity=0.5", brief, "test_own.py")
    inner(*words).assert_outcomes(passed=4)


@pytest.mark.slow
def test_a_path_in_an_ini_file_is_meant_from_there(inner, pytester, healthy, monkeypatch):
    """An entry for a directory beside the ini-file holds in a run from elsewhere."""
    (pytester.path / "w4").symlink_to(healthy)
    pytester.makeini("[pytest]\nswcheck_model = tiny\nswcheck_candidate = ./w4\nswcheck_limit = ./w4:kl=0.7")
    pytester.mkdir("below").joinpath("test_it.py").write_text(
        "def test_it(swcheck_session):\n"
        "    settings = swcheck_session.settings\n"
        "    assert settings.limits_for('tiny', settings.candidates[0])['kl'].high == 0.7\n"
    )
    monkeypatch.chdir(pytester.path / "below")
    inner("test_it.py").assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_fixture_of_ones_own_is_what_the_shipped_checks_keep_to(inner, pytester, healthy, brief):
    """A project's fixture may change one limit of the run, for each candidate; the shipped checks are held to it."""
    pytester.makeconftest(
        """
        import pytest
        from swcheck.base.records import Limit

        @pytest.fixture(scope="session")
        def swcheck_limits(swcheck_limits):
            return {**swcheck_limits, "perplexity": Limit(None, 0.5, "ours")}
        """
    )
    words = ("--model=tiny", f"--candidate={healthy}", "-k", "test_candidate and perplexity", brief)
    result = inner(*words)
    result.assert_outcomes(failed=1, deselected=SHIPPED - 1)
    result.stdout.fnmatch_lines(["perplexity * <= x0.5 * FAILED"])
