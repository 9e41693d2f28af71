"""Verdicts as a table and as JSON: digits, margins, widths, and nothing lost on the way."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.formatting import format_number, format_shortened
from swcheck.base.json_text import finite_json, json_text
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.run.reports.margins import margin, severity, worst_of_each
from swcheck.run.reports.summary import candidates_table, not_covered, summary, verdict_table
from swcheck.run.reports.verdict_json import json_document, verdict_as_json, verdict_from_json

RATIO = Limit(0.75, 2.0, "a reason")
LONG = "a word of many letters such as /a/path/without/any/blank/that/goes/on/and/on/and/on/and/on/and/on/and/on " * 3

numbers = st.none() | st.floats()
limits = st.none() | st.builds(Limit, numbers, numbers, st.text())
names = st.text(min_size=1, max_size=40)
verdicts = st.builds(
    Verdict,
    check=names, model=names, outcome=st.sampled_from(Outcome), summary=st.text(max_size=300),
    candidate=st.none() | names, measured=numbers, limit=limits, unit=st.sampled_from(["", "x", "share", "perplexity"]),
    cause=st.text(max_size=60), attempt=st.text(max_size=60), detail=st.lists(st.tuples(names, names), max_size=2).map(tuple),
    facts=st.dictionaries(names, st.floats() | st.lists(st.floats(), max_size=2), max_size=2),
)  # fmt: skip


def verdict(check="check", **changes) -> Verdict:
    """A passed verdict on a ratio, with changes."""
    values = {"outcome": Outcome.PASSED, "summary": "words", "measured": 1.0, "limit": RATIO, "unit": "x"}
    return Verdict(check, **{"model": "m", **values, **changes})


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "-"),
        (1.0, "x", "x1.000"),
        (0.03251, "x", "x0.033"),
        (12.3456, "x", "x12.35"),
        (75170.2, "x", "x75,170"),
        (2.5e12, "x", "x2.5e+12"),
        (-0.5, "x", "x-0.500"),
        (7.8612, "perplexity", "7.861"),
        (1024.0, "", "1,024"),
        (1.0, "", "1"),
        (math.nan, "x", "nan"),
        (math.inf, "", "inf"),
        (-math.inf, "x", "-inf"),
    ],
)
def test_numbers(value, unit, text):
    """Four digits, thousands separated, a ratio with its x, what is not finite by its name."""
    assert format_number(value, unit) == text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"measured": 1.0}, 1 / 0.75),
        ({"measured": 1.9}, 2 / 1.9),
        ({"measured": 4.0}, 0.5),
        ({"measured": 0.0}, None),
        ({"measured": -1.0}, None),
        ({"measured": math.nan}, None),
        ({"measured": math.inf}, None),
        ({"measured": None}, None),
        ({"limit": None}, None),
        ({"limit": Limit(None, None, "")}, None),
        ({"limit": Limit(0.0, None, "")}, None),
        ({"measured": 100.0, "limit": Limit(10.0, None, "")}, 10.0),
        ({"unit": ""}, None),
    ],
)
def test_margin(changes, expected):
    """How many times farther it could move; nothing where that has no meaning."""
    assert margin(verdict(**changes)) == (None if expected is None else pytest.approx(expected))


def test_a_table_has_a_row_for_each_verdict():
    """Check, measured, limit in its unit, margin, and the outcome as a word."""
    rows = verdict_table(
        [
            ("", verdict("one", measured=1.5)),
            ("", verdict("two", outcome=Outcome.FAILED, measured=4.0)),
            ("", verdict("three", outcome=Outcome.NOT_APPLICABLE, measured=None, limit=None)),
            ("", verdict("four", outcome=Outcome.INCONCLUSIVE, measured=1.2, limit=Limit(None, 1.01, ""))),
            ("", verdict("five", outcome=Outcome.NEAR, measured=1.04, limit=Limit(None, 1.05, ""))),
            ("", verdict("six", measured=70000.0, limit=Limit(0.0, None, ""))),
            ("", verdict("seven", measured=0.9, limit=Limit(0.5, None, ""), unit="share")),
        ]
    ).splitlines()
    assert rows[0].split() == ["check", "measured", "limit", "margin", "outcome"]
    assert [" ".join(row.split()) for row in rows[2:]] == [
        "one x1.500 x0.75 .. x2 x1.333 passed",
        "two x4.000 x0.75 .. x2 x0.500 FAILED",
        "three - - - not applicable",
        "four x1.200 <= x1.01 x0.842 inconclusive",
        "five x1.040 <= x1.05 x1.010 near",
        "six x70,000 reported - passed",
        "seven 0.9 >= 0.5 x1.800 passed",
    ]


def test_the_worst_prompt_has_a_column_where_there_is_one():
    """A long one is cut in the middle, and control characters are escaped; without any there is no column."""
    rows = verdict_table(
        [("", verdict("one", facts={"worst_prompt": "'a\\n'\n" + 90 * "x" + "end"})), ("", verdict("two"))]
    )
    head, _, one, two = rows.splitlines()
    assert head.split() == ["check", "measured", "limit", "margin", "worst", "prompt", "outcome"]
    assert r"'a\n'\n" in one
    assert "...x" in one
    assert one.split()[-2].endswith("xend")
    assert two.split()[-2] == "-"
    assert max(map(len, rows.splitlines())) <= 100


@given(st.text(), st.integers(8, 60))
def test_shortened_text_fits(text, width):
    """Whatever the text, it is one printable line of the width asked for, and its ends are kept."""
    short = format_shortened(text, width)
    assert len(short) <= width
    assert short.isprintable()
    assert short == text or len(text) > width or not text.isprintable()


def test_a_check_that_stands_twice_has_its_test_beside_it():
    """Tests that give the same check can be told apart: the shipped one has the name alone, parameters only if needed."""
    tests = ("swcheck.suite.test_model::test_a[m]", "a.py::test_a[m]", "a.py::test_b[m-1]", "a.py::test_b[m-2]")
    rows = verdict_table([(test, verdict()) for test in tests]).splitlines()
    assert [row.partition("  ")[0] for row in rows[2:]] == [
        "check", "check (test_a)", "check (test_b[m-1])", "check (test_b[m-2])",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [70, 80, 100])
def test_the_table_fits_the_terminal(width):
    """Whatever tests and prompts are called, the table is no wider than the terminal, and nothing of a name is lost."""
    name = "test_my_release_keeps_all_its_super_weights"
    facts = {"worst_prompt": "a prompt that is rather long and goes on"}
    mine = verdict("null: matched weights", measured=123456.0, facts=facts)
    lines = verdict_table([(f"a.py::{name}", mine), ("a.py::test_b", mine)], width).splitlines()
    assert max(map(len, lines)) <= width
    assert name in "".join(line.split("  ")[0] for line in lines[2:]).replace(" ", "")


def test_an_error_is_called_as_pytest_calls_it():
    """A check whose test could not begin is an ERROR in the table as in pytest, a red one is FAILED."""
    outcomes = [verdict(outcome=Outcome.FAILED, facts={"phase": phase}) for phase in ("setup", "call")]
    table = verdict_table([(f"a::test_{number}", one) for number, one in enumerate(outcomes)])
    assert [line.split()[-1] for line in table.splitlines()[2:]] == ["ERROR", "FAILED"]


def test_the_summary():
    """A block per model and candidate, words once where several say the same, skipped ones with their reason, and the rest."""
    lines = summary(
        [
            ("", verdict("perplexity", summary="alone words")),
            ("", verdict("dependence", outcome=Outcome.SKIPPED, summary="no candidate given")),
            ("", verdict("one", candidate="c", outcome=Outcome.FAILED, cause="not finite", summary="same")),
            ("", verdict("two", candidate="c", outcome=Outcome.FAILED, cause="not finite", summary="same")),
        ],
        80,
    )
    text = "\n".join(lines)
    assert lines[0] == "m: 1 check passed, shown with -v"
    assert "alone words" not in text
    assert "skipped: dependence (no candidate given)" in text
    assert "\nc against m\n" in text
    assert "\none, two: not finite\n" in text
    assert "\n\nnot covered: " in text
    assert summary([], 80) == []


def test_a_red_run_explains_what_is_red():
    """Only red rows are explained, and a green reference is one line; a verbose run, and a green one, show all."""
    red = verdict("one", candidate="c", outcome=Outcome.FAILED, cause="not finite", summary="x")
    given = [
        ("", verdict("perplexity", summary="alone words")),
        ("", verdict("two", candidate="c", summary="fine")),
        ("", red),
    ]
    brief, whole, green = (
        "\n".join(summary(*one[:1], 80, verbose=one[1])) for one in ((given, False), (given, True), (given[:2], False))
    )
    assert "m: 1 check passed, shown with -v\nc against m\n" in brief
    assert not {"alone words", "fine"} & set(brief.replace("  ", "\n").split("\n"))
    for text in (whole, green):
        assert "perplexity  alone words" in text
        assert "two  fine" in text


def test_the_numbers_of_other_tools_are_shown_verbosely():
    """KL both ways, the right token and generated text with -v; the layers wherever they were asked for."""
    spread = dict.fromkeys(("50", "90", "95", "99", "99.9", "max"), 0.5)
    change = {"mean": -0.012, "rms": 0.1, "percentiles": {"1": -0.5, "50": 0.0, "99": 0.25}}
    facts = {
        "kl": 0.1, "kl_percentiles": spread, "kl_reverse": 0.2, "kl_reverse_percentiles": {**spread, "max": "Infinity"},
        "right_token": change, "greedy_text": {"tokens": 32, "first_other": [None, 3]},
        "layer_costs": [[2, 0.08, 0.8], *([n, 0.001, 0.01] for n in range(3, 9))],
    }  # fmt: skip
    given = [("", verdict("predictions", candidate="c", facts=facts))]
    usual, verbose = (" ".join(" ".join(summary(given, 100, verbose=more)).split()) for more in (False, True))
    assert "layers layer 2 0.08 nats (80%)," in usual
    assert ", 2 more (KL divergence that goes away" in usual
    assert "other direction" not in usual
    for words in (
        "other direction 0.2000 nats; percentiles 50 % 0.5000,", "max Infinity",
        "right token its probability changes by -1.20 points in the mean, 10.00 rms; percentiles 1 % -50.00, 50 % +0.00",
        "greedy text 1 of 2 prompts as the reference, 32 tokens each; the first other token after 3",
    ):  # fmt: skip
        assert words in verbose
    unknown = [("", verdict("perplexity", candidate="c", facts={"layer_costs": "llama.cpp computes"}))]
    assert "what each layer costs is not known: llama.cpp computes" in "\n".join(summary(unknown, 100))


def test_a_check_that_was_skipped_for_several_candidates_is_named_once():
    """The reason is theirs in common."""
    skipped = [("", verdict("dependence", candidate=name, outcome=Outcome.SKIPPED, summary="why")) for name in "abc"]
    assert "skipped: dependence (why)" in summary(skipped, 100)


def test_greedy_text_that_was_compared_is_covered():
    """So many tokens as of every candidate; where one had none, generated text is not covered."""
    greedy = [
        verdict("predictions", candidate=name, facts={"greedy_text": {"tokens": 32, "first_other": [None]}})
        for name in "ab"
    ]
    assert not_covered([("", one) for one in greedy]).startswith("text generation beyond 32 greedy tokens, ")
    without = verdict("predictions", candidate="b", facts={"greedy_text": None})
    assert not_covered([("", greedy[0]), ("", without)]).startswith("text generation, ")


def test_a_model_of_which_all_was_skipped_has_no_table():
    """Skipped checks alone are a line, not rows of dashes."""
    lines = summary([("", verdict(outcome=Outcome.SKIPPED, summary="why"))], 100)
    assert lines == [
        "m",
        "",
        "skipped: check (why)",
        "",
        "not covered: text generation, a quantized KV cache, the kernels of other runtimes",
    ]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_summary_is_narrow(width):
    """No line is wider than the terminal, nor than 100, however long the words and paths are."""
    many = [
        ("t::" + LONG, verdict(LONG[:90] + str(i), summary=LONG, candidate=c, cause=LONG))
        for i in range(3)
        for c in (None, LONG)
    ]
    assert max(map(len, summary(many, width))) <= min(width, 100)


@given(verdicts, st.text())
def test_a_verdict_travels_through_json(given_verdict, test):
    """What was written is read back the same, numbers that are not finite included, and every reader of JSON can."""
    text = json_text(verdict_as_json(given_verdict, test))
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"a bare {name}"))
    name, read = verdict_from_json(record)
    assert name == test
    assert verdict_as_json(read, name) == record
    for field in ("check", "model", "candidate", "outcome", "summary", "unit", "cause", "attempt", "detail"):
        assert getattr(read, field) == getattr(given_verdict, field)
    assert read.measured == given_verdict.measured or math.isnan(given_verdict.measured)


@given(st.lists(st.tuples(st.text(), verdicts), max_size=5), st.integers(40, 200))
def test_any_verdicts_can_be_shown(reported, width):
    """No verdict brings the summary down."""
    assert isinstance(summary(reported, width), list)


def test_plain():
    """Only numbers that are not finite change, at any depth."""
    value = {"a": [1.5, math.nan, (math.inf, -math.inf)], "b": {"c": "nan"}, "d": None, "e": True}
    assert finite_json(value) == {"a": [1.5, "NaN", ["Infinity", "-Infinity"]], "b": {"c": "nan"}, "d": None, "e": True}


def test_the_document():
    """Schema 2 and the verdicts, each with the names that stay."""
    written = json_document([("a.py::t", verdict())])
    assert written["schema"] == 2
    [entry] = written["verdicts"]
    assert entry["test"] == "a.py::t"
    assert {"check", "model", "candidate", "measured", "limit", "outcome", "cause"} <= set(entry)
    assert json_document([]) == {"schema": 2, "verdicts": []}


def test_the_worst_of_a_test_is_reported():
    """Of several verdicts of one test on one check the reddest stays, of those of one colour the one nearest to its limit."""
    for better, worse in [
        (verdict(), verdict(outcome=Outcome.FAILED)),
        (verdict(outcome=Outcome.NEAR), verdict(outcome=Outcome.INCONCLUSIVE)),
        (verdict(measured=1.0), verdict(measured=1.9)),
        (verdict(outcome=Outcome.FAILED, measured=0.5), verdict(outcome=Outcome.FAILED, measured=0.1)),
        (verdict(outcome=Outcome.FAILED, measured=0.1), verdict(outcome=Outcome.FAILED, measured=math.nan)),
        (verdict(outcome=Outcome.SKIPPED), verdict(outcome=Outcome.NOT_APPLICABLE)),
    ]:
        assert severity(worse) > severity(better)
        for order in ([better, worse], [worse, better]):
            assert worst_of_each(("t", each) for each in order) == [("t", worse)]


def test_verdicts_of_different_tests_checks_models_and_candidates_all_stay():
    """Only what agrees in all four is one row, in the order of first appearance."""
    reported = [
        ("t", verdict()), ("u", verdict()), ("t", verdict("other")), ("t", verdict(model="n")), ("t", verdict(candidate="c")),
    ]  # fmt: skip
    assert worst_of_each([*reported, *reported]) == reported


def test_several_candidates_stand_in_one_table():
    """A row each with the worst of every check, red ones marked; below are only the words of what is red or near."""
    reported = [
        ("t", verdict("super weights")),
        ("t", verdict("super weights", candidate="good", summary="all well")),
        ("t", verdict("predictions", candidate="good", measured=0.01, unit="nats")),
        ("t", verdict("super weights", candidate="bad", measured=0.1, outcome=Outcome.FAILED, cause="lost")),
        ("u", verdict("super weights", candidate="bad", measured=0.9)),
        ("t", verdict("perplexity", candidate="bad", measured=1.04, outcome=Outcome.NEAR, summary="close")),
    ]
    rows = candidates_table([entry for entry in reported if entry[1].candidate]).splitlines()
    assert [row.split() for row in rows[-2:]] == [
        ["good", "x1.000", "0.01", "-", "passed"],
        ["bad", "x0.100", "!", "-", "x1.040", "FAILED"],
    ]
    text = "\n".join(summary(reported))
    assert text.count("candidates against m") == 1
    assert "\nsuper weights  lost\n" in text
    assert "close" in text
    assert "all well" not in text


def test_what_is_said_of_one_candidate_stands_with_it():
    """Notes and checks that do not apply are told with their candidate; what is true of all of them once, above."""
    inert = Verdict("dependence", "ref", Outcome.NOT_APPLICABLE, "the reference's set is inert", "one")
    given = [
        (
            "t",
            Verdict("super weights", "ref", Outcome.PASSED, "", "one", measured=1.0, facts={"notes": ["old", "moved"]}),
        ),
        ("t", inert),
        (
            "t",
            Verdict("super weights", "ref", Outcome.NOT_APPLICABLE, "it is rotated", "two", facts={"notes": ["old"]}),
        ),
        ("t", replace(inert, candidate="two")),
    ]
    lines = summary(given, 100)

    first, second = lines.index("one"), lines.index("two")
    assert lines[:3] == ["candidates against ref", "note: old", "dependence: the reference's set is inert"]
    assert lines[first + 1] == "note: moved"
    assert lines[second + 1] == "super weights  it is rotated"
    assert sum("inert" in line or "old" in line for line in lines) == 2
