"""``--swcheck-html``, ``--swcheck-markdown``, ``--swcheck-no-step-summary`` and JUnit XML, as a run writes them."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.plugin import refused

CHECKS = "test_model and (perplexity or super_weights)"


@pytest.fixture
def red(inner, micro, brief):
    """Run a green and a red check of a model without super weights."""
    return lambda *more: inner(f"--model={micro}", brief, "-k", CHECKS, *more)


@pytest.mark.slow
def test_pages_are_written(red, pytester):
    """Each page is written where it was asked for, named at the end of the run, and has the verdict."""
    result = red("--swcheck-html=out/page.html", "--swcheck-markdown=out/page.md")
    result.stdout.fnmatch_lines(["written: */out/page.md", "written: */out/page.html"])
    for name in ("page.html", "page.md"):
        assert "1 of 2 checks red: nothing to guard" in (pytester.path / "out" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["--swcheck-html", "--swcheck-markdown"])
def test_a_page_that_cannot_be_written_is_refused(inner, option):
    """A path that cannot be written is a usage error before anything is loaded."""
    refused(inner("--model=tiny", f"{option}=/"))


@pytest.mark.slow
def test_the_ci_gets_a_summary_by_itself(red, pytester, monkeypatch):
    """Where the CI offers a step summary the page is appended, and a red check is an annotation; an option stops both."""
    file = pytester.path / "summary.md"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    error = "::error title=swcheck%3A super weights of micro::nothing to guard"
    red("--swcheck-no-step-summary").stdout.no_fnmatch_line("::error*")
    assert file.read_text() == "before\n"
    result = red()
    assert error in result.outlines
    assert file.read_text(encoding="utf-8").startswith("before\n## swcheck\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path))
    assert error in red().outlines


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_junit_xml_has_the_measured_values(red, pytester, workers):
    """With warnings as errors, alone and in a worker, each test case has its values and limits as properties."""
    red("--junitxml=out.xml", "-W", "error", *workers)
    found = {
        prop.get("name"): prop.get("value")
        for case in ET.parse(pytester.path / "out.xml").iter("testcase")
        for prop in case.iter("property")
    }
    assert float(found["swcheck.perplexity.measured"]) > 50
    assert float(found["swcheck.perplexity.limit.high"]) > 50
    assert found["swcheck.super_weights.cause"] == "nothing to guard"
