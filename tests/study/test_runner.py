"""The runner writes each study as soon as it is whole, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from swcheck.base.errors import OptionError
from swcheck.study import runner
from swcheck.study.catalogue import chapter_of
from swcheck.study.chapters import scaling
from swcheck.study.common import plots


@pytest.fixture
def quick(monkeypatch):
    """The scaling study at two alphas."""
    monkeypatch.setattr(scaling, "ALPHAS", (0.0, 1.0))


def taken(setup, out):
    said = []
    return list(runner.run(setup, ["scaling"], out, said.append)), said


@pytest.mark.slow
def test_a_run_leaves_record_rows_and_picture(tiny_setup, tmp_path, quick):
    """JSON, CSV and a PNG that is one."""
    (pair,), said = taken(tiny_setup, tmp_path)

    assert json.loads((tmp_path / "scaling.json").read_text())["study"] == "scaling"
    assert (tmp_path / "scaling.csv").read_text().startswith("study,model,revision,seed,quantity,")
    assert (tmp_path / "scaling.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert said[0].startswith("scaling: Scaling the super weights")
    assert "| alpha" in runner.as_page([pair], tmp_path)
    assert "![Scaling the super weights](scaling.png)" in runner.as_page([pair], tmp_path)


@pytest.mark.slow
def test_what_was_taken_is_not_taken_again(tiny_setup, tmp_path, quick, monkeypatch):
    """A second run reads the record; one of another seed measures anew."""
    (first,), _ = taken(tiny_setup, tmp_path)
    monkeypatch.setattr(runner, "measure_study", lambda *_: pytest.fail("measured again"))
    (second,), said = taken(tiny_setup, tmp_path)

    assert second[1] == first[1]
    assert said == [f"scaling: kept from {tmp_path / 'scaling.json'}"]
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        taken(replace(tiny_setup, facts={**tiny_setup.facts, "seed": 1}), tmp_path)


@pytest.mark.slow
def test_a_broken_record_is_taken_again(tiny_setup, tmp_path, quick):
    """A file that is no study costs its measurement, not the run."""
    (tmp_path / "scaling.json").write_text("{}")
    (pair,), said = taken(tiny_setup, tmp_path)

    assert said[0].startswith("scaling.json is no study")
    assert pair[1].measurements


def test_without_matplotlib_the_picture_is_left_out(tiny_setup, tmp_path, quick, monkeypatch):
    """The reason and the install line are said, and everything else is there."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    _, said = taken(tiny_setup, tmp_path)

    assert "scaling.png is left out: matplotlib is not installed (pip install 'swcheck[plots]')" in said
    assert (tmp_path / "scaling.json").exists()
    assert not (tmp_path / "scaling.png").exists()
    with pytest.raises(ImportError, match="matplotlib is not installed"):
        plots.write_picture(tmp_path / "x.png", "title", lambda _figure: None)


def test_an_unknown_study_is_refused():
    """The names there are stand in the error."""
    with pytest.raises(OptionError, match="found: there are .*scaling"):
        chapter_of("scalnig")


def test_the_model_is_as_it_was(tiny, tiny_setup, quick):
    """A study leaves no bit of the model changed; the leak detector of the run watches ``tiny``."""
    runner.measure_study(tiny_setup, "scaling")


def test_the_text_of_a_study_has_title_table_and_verdict(tiny_setup, quick):
    """What is printed: what it is, its numbers, how it ended."""
    lines = runner.as_text(chapter_of("scaling"), runner.measure_study(tiny_setup, "scaling"))

    assert lines[0] == "scaling: Scaling the super weights (figure 6)"
    assert any(line.startswith("  passed: alpha 0.75 to 2") for line in lines)
