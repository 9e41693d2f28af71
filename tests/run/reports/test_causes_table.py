"""Several red candidates have one table of causes before the details."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.records import Outcome, Verdict
from swcheck.run.reports.causes_table import causes_table

WORDS = st.text("abc def", min_size=1, max_size=120).filter(str.strip)


def reported(candidate, cause, check="perplexity", outcome=Outcome.FAILED, model="m"):
    return "test", Verdict(check, model, outcome, "words", candidate, cause=cause)


def test_each_candidate_has_its_causes():
    """A cause stands once, with all checks that gave it; a candidate that is green has no row."""
    found = causes_table(
        [
            reported("one", "rope_theta 50 for 10,000"),
            reported("one", "rope_theta 50 for 10,000", "predictions"),
            reported("one", "lost", "super weights"),
            reported("green", "", outcome=Outcome.PASSED),
            reported("two", "head rolled"),
        ],
        80,
    )
    assert found[0] == "candidate  cause (checks)"
    assert [line.split()[0] for line in found[2:]] == ["one", "lost", "two"]
    assert "rope_theta 50 for 10,000 (perplexity, predictions)" in found[2]


def test_one_red_candidate_needs_no_table():
    """Its cause is the first line of its failure."""
    assert causes_table([reported("one", "lost"), reported("green", "", outcome=Outcome.PASSED)], 80) == []
    assert causes_table([reported(None, "lost"), reported("one", "lost")], 80) == []


@given(st.lists(st.tuples(WORDS, WORDS), min_size=2, max_size=6), st.integers(40, 120))
def test_the_table_fits_the_terminal_and_loses_no_word(pairs, width):
    """Whatever the names and causes, no line is wider than the terminal, and every cause is there whole."""
    found = causes_table([reported(name, cause) for name, cause in pairs], width)
    if len({name for name, _ in pairs}) > 1:
        assert max(map(len, found)) <= width
        text = "".join("".join(found).split())
        assert all(word in text for _, cause in pairs for word in cause.split() if len(word) < width // 4)
