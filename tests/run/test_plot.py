"""``swcheck plot``: a model and its candidates over each other, as PNG or SVG, and what is refused before any work."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from swcheck.run.command_line import plot
from tests import checkpoints


@pytest.mark.slow
def test_a_model_and_its_candidates_are_drawn_over_each_other(run, tmp_path):
    """Each model is a line of the legend, beside the model without its super weights; no whole text is scored."""
    code, out, err = run("plot", "tiny", "--candidate=rtn:bits=3", f"--out={tmp_path / 'a.svg'}")
    assert (code, out, err) == (0, f"written: {tmp_path / 'a.svg'}\n", "")
    picture = (tmp_path / "a.svg").read_text(encoding="utf-8")
    for said in ("tiny", "rtn:bits=3", "tiny, super weights zeroed", "Super activation through the layers"):
        assert f"<!-- {said} -->" in picture


@pytest.mark.slow
def test_a_model_without_super_weights_still_has_its_spikes(run, tmp_path, monkeypatch):
    """Inputs and outputs of down_proj are drawn of any model; the picture is called after it."""
    folder = checkpoints.micro(tmp_path / "micro")
    monkeypatch.chdir(tmp_path)
    assert run("plot", folder)[:2] == (0, "written: micro.png\n")
    assert (tmp_path / "micro.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tiny", "--out=a.pdf"), "neither .png nor .svg"),
        (("tyni",), "`tiny`"),
        (("tiny", "--candidate=nowhere"), "'nowhere'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_a_model_is_loaded(run, arguments, said, monkeypatch, tmp_path):
    """A wrong suffix, an unknown name: an error at once, and no file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swcheck.loading.engines.load", lambda *_a, **_k: pytest.fail("loaded"))
    code, _, err = run("plot", *arguments)
    assert code == 2
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_another_model_is_not_drawn_as_a_candidate(run, tmp_path):
    """A model of another width has no line over this one."""
    folder = checkpoints.micro(tmp_path / "micro")
    code, _, err = run("plot", "tiny", f"--candidate={folder}", f"--out={tmp_path / 'a.png'}")
    assert code == 2
    assert "micro over tiny" in err
    assert not (tmp_path / "a.png").exists()


def test_a_model_is_seen_under_a_candidate_that_lies_on_it():
    """Its line is wide and pale, the candidate's narrow: equal values hide neither."""
    figure = Figure()
    FigureCanvasAgg(figure)
    curve = {
        "title": "t",
        "x": "layer",
        "y": "value",
        "lines": {"m": [1.0, 2.0], "c": [1.0, 2.0], "m, super weights zeroed": [0.0, 0.0]},
    }
    plot.draw(figure, [curve])
    model, candidate, zeroed = figure.axes[0].lines
    assert model.get_linewidth() > 2 * candidate.get_linewidth()
    assert model.get_alpha() < candidate.get_alpha()
    assert zeroed.get_linestyle() == "--"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["m", "c", "m, super weights zeroed"]
