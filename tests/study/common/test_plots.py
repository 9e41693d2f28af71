"""Pictures: what stands at an axis can be read."""

from __future__ import annotations

import pytest

from swcheck.study.common.plots import write_picture


@pytest.mark.parametrize("ends", [(1.0, 1e5), (2.0, 8.0), (1e-6, 1.0)])
def test_powers_of_ten_are_numbers(tmp_path, ends):
    """No tick of a logarithmic axis is an unread formula, whether it spans decades or less than one."""

    def fill(figure):
        axes = figure.subplots()
        axes.plot(ends, ends)
        axes.set_xscale("log")
        axes.set_yscale("log")

    write_picture(tmp_path / "a.svg", "t", fill)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "mathdefault" not in text
    assert text.count("<!-- ") > 5
    assert ("<!-- 100,000 -->" in text) == (ends[1] == 1e5)


def test_ticks_that_a_study_has_written_stay(tmp_path):
    """Labels of its own are kept."""

    def fill(figure):
        axes = figure.subplots()
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2], ["one", "two"])

    write_picture(tmp_path / "a.svg", "t", fill)
    assert "<!-- two -->" in (tmp_path / "a.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("draw", "named"),
    [
        (lambda axes: axes.errorbar([1, 2], [1, 2], yerr=[0.1, 0.1]), True),
        (lambda axes: axes.bar([1, 2], [1, 2], yerr=[0.1, 0.1]), True),
        (lambda axes: axes.bar([1, 2], [1, 2]), False),
    ],
)
def test_a_picture_with_error_bars_says_what_they_are(tmp_path, draw, named):
    """Bars drawn on a curve or on columns are named behind the title; a picture without any says nothing of them."""
    path, title = tmp_path / "p.svg", []

    def fill(figure):
        draw(figure.subplots())
        title.append(figure)

    write_picture(path, "what is drawn", fill)

    words = "what is drawn; error bars: one standard error" if named else "what is drawn"
    assert title[0].get_suptitle() == words
