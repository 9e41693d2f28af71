"""``--swcheck-limit``: other limits, by name."""

from __future__ import annotations

import pytest

from tests.plugin import SHIPPED, refused


@pytest.mark.parametrize(
    "value", ["nonsense=1", "perplexity", "perplexity=", "perplexity=much", "perplexity=nan", "activation=2..1", "="]
)
def test_a_limit_that_makes_no_sense(inner, value):
    """An unknown name, a value that is no number and an interval that nothing is in are usage errors."""
    refused(inner("--model=tiny", f"--swcheck-limit={value}"), "limit")


def test_an_empty_limit(inner):
    """An empty value is refused."""
    refused(inner("--model=tiny", "--swcheck-limit="), "--swcheck-limit\n  found: an empty value")


def test_a_limit_is_what_is_judged_by(inner, brief):
    """A null that passes the default limit is inconclusive under one it cannot hold, and the table shows that limit."""
    words = ("--model=tiny", "-k", "null_largest", brief)
    assert inner(*words).ret == 0
    result = inner(*words, "--swcheck-limit=others=1.0001")
    result.assert_outcomes(failed=1, deselected=SHIPPED - 1)
    result.stdout.fnmatch_lines(
        ["swcheck: *limit others <= 1.0001 (command line)*", "null: largest others * <= x1 * inconclusive"]
    )


def test_the_repeating_command_has_it(inner, brief):
    """The command under a failure asks for the same limit, dtype and text again."""
    words = ("--swcheck-limit=others=1.0001", "--swcheck-dtype=bfloat16", brief)
    result = inner("--model=tiny", "-k", "null_largest", *words)
    result.stdout.fnmatch_lines(
        [
            f"pytest --model=tiny --swcheck-dtype=bfloat16 {brief} --swcheck-limit=others=..1.0001 --pyargs swcheck.suite.*"
        ]
    )


def test_nothing_published_means_the_collapse_is_reported(inner, healthy, brief):
    """A model nobody has published anything of is not red for how little it collapses, unless a limit was given."""
    words = (f"--model={healthy}", "-k", "test_collapse", brief)
    result = inner(*words)
    result.assert_outcomes(passed=1, deselected=SHIPPED - 1)
    result.stdout.fnmatch_lines(["collapse when zeroed * reported * passed"])
    result = inner(*words, "--swcheck-limit=collapse=1e9")
    result.assert_outcomes(failed=1, deselected=SHIPPED - 1)
