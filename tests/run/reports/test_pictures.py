"""The pictures of the page: whatever was measured stands inside its frame, and nothing is drawn that was not measured."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.records import Limit, Outcome
from swcheck.run.reports.html_page import html_page
from swcheck.run.reports.pictures import limit_picture, line_picture, pictures
from swcheck.run.reports.verdict_json import verdict_as_json, verdict_from_json
from tests.run.reports.test_summary import verdict

EVIL = "</svg><script>alert(1)</script>"
VALUES = st.lists(st.floats(width=32) | st.just(math.nan), min_size=1, max_size=70)


def record(lines, step=1):
    """A curve as a verdict holds it."""
    return {"title": "Peaks", "x": "layer", "y": "magnitude", "step": step, "lines": lines}


def points_of(picture):
    """All points of all lines of a picture."""
    texts = [point for _, parts in picture.lines for part in parts for point in part.split()]
    return [tuple(map(float, text.split(","))) for text in texts]


@given(st.dictionaries(st.text(max_size=9), VALUES, min_size=1, max_size=4), st.integers(1, 9))
def test_every_finite_value_is_a_point_inside_the_frame(lines, step):
    """As many points as finite values, none outside of the frame, and at least two marks on the vertical axis."""
    picture = line_picture(record(lines, step))
    count = sum(math.isfinite(value) for values in lines.values() for value in values)
    if not count:
        assert picture is None
        return
    found = points_of(picture)
    assert len(found) == count
    assert all(picture.left - 0.1 <= x <= picture.right + 0.1 for x, _ in found)
    assert all(picture.top - 0.1 <= y <= picture.bottom + 0.1 for _, y in found)
    assert len(picture.y_ticks) >= 2


def test_a_larger_value_stands_higher_and_a_gap_stays_a_gap():
    """Values keep their order, equal steps are equally far apart, and a line ends where a value is not finite."""
    [(_, parts)] = line_picture(record({"m": [1.0, 4.0, math.nan, 2.0, 3.0]})).lines
    (one, four), (two, three) = ([tuple(map(float, point.split(","))) for point in part.split()] for part in parts)
    assert four[1] < three[1] < two[1] < one[1]
    assert four[0] - one[0] == pytest.approx(three[0] - two[0], abs=0.2)


@given(st.floats(), st.none() | st.floats(), st.none() | st.floats(), st.floats(0, 2))
def test_a_ratio_is_in_its_band_exactly_if_its_limit_holds(measured, low, high, error):
    """Between the smallest and the largest ratio that are drawn, a dot is inside the band if the limit holds it."""
    limit = Limit(low, high, "why")
    one = verdict("perplexity", candidate="c", measured=measured, limit=limit, facts={"standard_error": error})
    picture = limit_picture(one)
    ends = [end for end in (low, high) if end is not None]
    drawn = math.isfinite(measured) and any(map(math.isfinite, ends))
    assert (picture is not None) == drawn
    usual = all(0.01 <= end <= 1e6 for end in ends) and 0.01 <= measured <= 1e6
    if drawn and usual and picture.band and all(abs(math.log(measured / end)) > 0.2 for end in ends):
        assert (picture.band[0] <= picture.dots[0][0] <= picture.band[1]) == limit.holds(measured)


def test_a_strip_shows_every_prompt_its_worst_one_and_the_error():
    """All ratios are dots, those that are not finite are counted, and the error bar is three standard errors long."""
    many = verdict("activations", candidate="c", facts={"ratios": [1.0, "nan", 0.5], "worst_prompt": "BOS alone"})
    picture = limit_picture(many)
    assert len(picture.dots) == 2
    assert picture.x_name == "allowed: 0.75 .. 2, 3 measured, 1 not finite"
    assert picture.caption == "worst prompt: BOS alone"
    ends = limit_picture(verdict(candidate="c", facts={"standard_error": 0.01})).error
    assert ends[0] < limit_picture(verdict(candidate="c")).dots[0][0] < ends[1]


def test_a_model_alone_or_a_value_without_a_limit_has_no_strip():
    """What is no ratio to a reference is not drawn as one."""
    assert limit_picture(verdict()) is None
    assert limit_picture(verdict(candidate="c", unit="nats")) is None
    assert limit_picture(verdict(candidate="c", limit=Limit(None, None, "reported"))) is None


def test_two_checks_with_one_curve_draw_it_once():
    """A curve is known by its title."""
    facts = {"curves": [record({"m": [1.0, 2.0]})]}
    assert len(pictures([verdict("a", facts=facts), verdict("b", facts=facts)])) == 1


def page_with_pictures():
    """A page of two candidates with long and hostile names, after the way through JSON that xdist takes."""
    found = []
    for name in (EVIL, "a-" * 60):
        curves = [record({"tiny": [0.0, 400.0, 3.5], name: [1.0, math.nan, 2.0]}), record({}) | {"title": "Nothing"}]
        found.append(
            verdict("perplexity", candidate=name, outcome=Outcome.FAILED, measured=3.0, cause="lost", facts={"curves": curves})
        )  # fmt: skip
    return html_page([verdict_from_json(json.loads(json.dumps(verdict_as_json(one, "a.py::t")))) for one in found])


def test_names_in_pictures_are_text():
    """A candidate that is called like a tag ends no picture, and each picture says what it shows."""
    text = page_with_pictures()
    assert EVIL not in text
    assert text.count('role="img" aria-label="Peaks: layer magnitude"') == 2
    assert not re.search(r'="[^"]*nan', text)


WIDTHS = (360, 1280)
"""Of a phone and of a desk, in frames: the window of a headless browser is no narrower than 500."""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_shows_the_page_without_scrolling_sideways(tmp_path):
    """In Chromium, at the width of a phone and of a desk, nothing is wider than the window and every picture is drawn."""
    probe = (
        "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth <= innerWidth,"
        "[...document.querySelectorAll('figure > svg')].map(svg => svg.getBoundingClientRect().height > 60)], '*')</script>"
    )
    frames = "".join(
        f'<iframe src="page.html" width="{width}" height="900" frameborder="0"></iframe>' for width in WIDTHS
    )
    heard = "<script>const seen = []; onmessage = one => { document.title = JSON.stringify(seen.concat([one.data])); seen.push(one.data) }</script>"
    (tmp_path / "page.html").write_text(page_with_pictures() + probe, encoding="utf-8")
    (tmp_path / "frames.html").write_text(f"<!doctype html><title></title>{heard}{frames}", encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [
        "--window-size=1400,900",
        "--virtual-time-budget=4000",
        "--dump-dom",
        (tmp_path / "frames.html").as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert sorted(json.loads(re.search("<title>(.*?)</title>", shown)[1])) == [
        [width, True, [True] * 4] for width in WIDTHS
    ]
