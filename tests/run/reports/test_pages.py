"""Verdicts as Markdown, as a page of HTML, as JUnit properties and as annotations: nothing lost, nothing executed."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.json_text import json_text
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.run.reports import verdict_json
from swcheck.run.reports.html_page import html_page, machine, margin_bar
from swcheck.run.reports.junit import junit_properties
from swcheck.run.reports.markdown_page import annotation_commands, escaped, markdown_page
from swcheck.run.reports.sections import attempt_parts, headline, sections
from tests.run.reports.test_summary import verdict, verdicts

SCHEMA = json.loads(Path(verdict_json.__file__).with_name("verdicts.schema.json").read_text(encoding="utf-8"))
EVIL = "<script>alert('|')</script>"
RED = verdict(
    "perplexity",
    outcome=Outcome.FAILED,
    candidate=EVIL,
    measured=3.0,
    cause=f"{EVIL} is lost",
    attempt="leave: a.b; c=d",
)
GREEN = verdict("super weights", candidate="good")
SKIPPED = Verdict("dependence", "m", Outcome.SKIPPED, "not in the smoke tier", "good")
REPORTED = [("a.py::test_red", RED), ("swcheck.suite.test_candidate::test_green", GREEN), ("a.py::test_later", SKIPPED)]


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text outside of styles and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags[-1:] and self.tags[-1][0] not in {"style", "script"}:
            self.text += data


def test_the_page_says_its_verdict_first_and_what_to_do():
    """The first words are the verdict, then its cause; what was measured, the limit and what to paste stand below."""
    page = Page(html_page(REPORTED, command="pytest --model=m", warning="nobody looked"))
    words = " ".join(page.text.split())
    body = words.partition("do not release ")[2]
    assert body.startswith(f"{EVIL} against m: 1 of 1 checks red: {EVIL} is lost. nobody looked.")
    for said in (
        "Try: leave a.b c=d",
        "x3.000",
        "a reason",
        "not in the smoke tier",
        "Command: pytest --model=m",
        "python 3",
    ):
        assert said in words
    assert words.index("super weights") < words.index("Not covered: ")


def test_advice_without_anything_to_paste_is_a_sentence():
    """A colon alone makes no code of what follows it."""
    assert attempt_parts("a wider range: clip less, or keep them apart") == (
        "a wider range: clip less, or keep them apart",
        [],
    )
    assert attempt_parts("leave them out: skip=a.b; --swcheck-text=FILE") == (
        "leave them out",
        ["skip=a.b", "--swcheck-text=FILE"],
    )


def test_the_page_needs_nothing_else():
    """No tag leads out of the page, there is one script of its own, and it knows dark screens and paper."""
    text = html_page(REPORTED)
    page = Page(text)
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in {"href", "src", "action"}]
    assert links == ["#s1", "#s2"]
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert 'name="viewport"' in text


@pytest.mark.parametrize(
    ("reported", "said"),
    [([], "nothing was judged"), ([REPORTED[1]], "passed"), ([REPORTED[2]], "nothing was judged"), (REPORTED, "do not release")],
    ids=["empty", "green", "skipped", "red"],
)  # fmt: skip
def test_the_verdict_of_a_run_is_that_of_its_worst_candidate(reported, said):
    """A run is green where something was judged and nothing is red; a run that judged nothing says so."""
    assert f">{said}</span></h1>" in html_page(reported)


def test_several_red_candidates_are_counted():
    """The headline names the first red candidate and says how many more there are."""
    again = verdict("perplexity", outcome=Outcome.INCONCLUSIVE, candidate="b", cause="unsure")
    found = headline(sections([*REPORTED, ("a.py::test_b", again)]))
    assert found == ("red", f"{EVIL} against m: 1 of 1 checks red: {EVIL} is lost (and 1 more)")
    near = verdict("perplexity", outcome=Outcome.NEAR, candidate="good")
    assert headline(sections([REPORTED[1], ("a.py::test_near", near)]))[1].endswith(
        "1 of them within the noise of a limit"
    )


@pytest.mark.parametrize(
    ("measured", "bar"), [(1.0, ("in", 6.2)), (3.0, ("out", 8.8)), (math.nan, ("none", 0.0)), (1e-9, ("out", 100.0))]
)
def test_a_bar_shows_how_far_a_limit_is(measured, bar):
    """Inside or outside, on a logarithmic scale; a value without a margin has no bar."""
    [section] = sections([("a.py::test", verdict(measured=measured))])
    assert margin_bar(section.rows[0]) == bar


def test_the_machine_is_named():
    """The page says the versions that it was measured with."""
    assert {"python", "machine", "swcheck", "torch", "transformers"} <= dict(machine()).keys()


def test_a_package_that_is_missing_is_left_out(monkeypatch):
    """A package without a distribution, as one that was vendored, is no error."""
    monkeypatch.setattr("swcheck.run.reports.html_page.PACKAGES", ("no-such-package",))
    assert [name for name, _ in machine()] == ["python", "machine"]


@pytest.mark.slow
@given(st.lists(st.tuples(st.text(), verdicts), max_size=3))
def test_whatever_is_said_is_text(reported):
    """Of any verdict both pages can be made, and the page has no tag that the template does not have."""
    known = {tag for tag, _ in Page(html_page(REPORTED)).tags} | {"details", "summary"}
    assert {tag for tag, _ in Page(html_page(reported)).tags} <= known
    assert markdown_page(reported)


def test_markdown_shows_names_as_they_are():
    """Neither HTML nor markup of a name survives, not in a table either; the red check is there in full."""
    text = markdown_page(REPORTED, "a warning")
    assert text.startswith("> **a warning**")
    assert "<script" not in text
    assert "\n    a.b\n    c=d\n" in text
    assert "skipped: dependence (not in the smoke tier)" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert escaped("a|b\n`c`") == r"a\|b \`c\`"


def test_annotations_are_one_line_each():
    """A red check is an ::error at the line of a user's test; what would end a command is escaped."""
    shipped = ("swcheck.suite.test_model::test_a", verdict("a: b, c", outcome=Outcome.FAILED, cause="50 %\nlost"))
    lines = annotation_commands([*REPORTED, shipped], [("a.py", 4)] * 4, "nobody looked")
    assert lines == [
        "::warning title=swcheck::nobody looked",
        f"::error file=a.py,line=5,title=swcheck%3A perplexity of {EVIL} against m::{EVIL} is lost",
        "::error title=swcheck%3A a%3A b%2C c of m::50 %25%0Alost",
    ]


def test_junit_has_values_limits_and_reasons():
    """Every measured value, both ends of its limit and the reason are properties; what is missing is left out."""
    found = dict(
        junit_properties([RED, verdict("null: matched weights", measured=math.nan, limit=Limit(None, 2.0, "why"))])
    )
    assert found["swcheck.perplexity.measured"] == 3.0
    assert (found["swcheck.perplexity.limit.low"], found["swcheck.perplexity.limit.high"]) == (0.75, 2.0)
    assert found["swcheck.perplexity.outcome"] == "failed"
    assert found["swcheck.null:_matched_weights.measured"] == "NaN"
    assert "swcheck.null:_matched_weights.limit.low" not in found


@given(st.lists(st.tuples(st.text(), verdicts), max_size=3))
def test_the_json_report_keeps_its_schema(reported):
    """Whatever the verdicts, the file is what the published JSON Schema describes."""
    document = json.loads(json_text(verdict_json.json_document(reported)))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_the_schema_is_a_schema_and_refuses():
    """The schema is valid itself, has the number of the format, and refuses another one and an unknown outcome."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema"]["const"] == verdict_json.SCHEMA
    assert SCHEMA["$defs"]["verdict"]["properties"]["outcome"]["enum"] == [outcome.value for outcome in Outcome]
    document = verdict_json.json_document([REPORTED[1]])
    for wrong in (
        {**document, "schema": 1},
        {**document, "verdicts": [{**document["verdicts"][0], "outcome": "fine"}]},
    ):
        assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(wrong)
