"""``swcheck history``: a slide is seen before it turns red, and what is no run is named."""

from __future__ import annotations

import argparse
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swcheck.base.json_text import json_text
from swcheck.base.records import Limit
from swcheck.run.command_line import history
from swcheck.run.reports.verdict_json import json_document
from tests import hostile
from tests.run.reports.test_summary import verdict


@pytest.fixture
def runs(tmp_path):
    """Four runs whose perplexity slides towards its limit and whose activation does not, beside two other files."""
    for number, measured in enumerate([1.0, 1.02, 1.05, 1.2]):
        verdicts = [
            verdict("perplexity", candidate="c", measured=measured, limit=Limit(None, 1.25, "why")),
            verdict("activations", candidate="c"),
            verdict("super weights", measured=1.0, limit=Limit(1.0, None, "why"), unit=""),
        ]
        file = tmp_path / f"run-{9 - number}.json"
        file.write_text(json_text(json_document([("a.py::t", one) for one in verdicts])))
        os.utime(file, (86400 * (number + 1),) * 2)
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "text.txt").write_text("no run")
    return tmp_path


def test_a_slide_is_told_before_it_is_red(run, runs):
    """The runs are in the order of their time; a margin that shrinks is said so, a constant one and a count are not."""
    code, out, err = run("history", runs)
    assert (code, err) == (0, "")
    head, columns, perplexity, activations, refused = out.splitlines()
    assert head == f"{runs}: 4 runs, 1970-01-02 to 1970-01-05"
    assert columns.split() == ["check", "of", "measured", "limit", "margins,", "oldest", "first", "now"]
    assert perplexity.split()[-7:] == ["██▇▂", "x1.042,", "82%", "of", "its", "room", "lost"]
    assert activations.split()[-2:] == ["████", "x1.333"]
    assert refused == "  left out, no run of swcheck: other.json"


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_room_is_what_is_left_to_the_limit(one, other, best):
    """Between -1 and 1, not negative exactly if the limit holds, and a smaller margin never has more of it."""
    small, large = sorted((one, other))
    assert -1 <= history.room(small, best) <= history.room(large, best) <= 1
    assert (history.room(one, best) >= 0) == (one >= 1)


def test_a_red_run_stands_out(run, runs):
    """A margin below 1 is an exclamation mark, and the row says that the check is red now."""
    red = verdict("perplexity", candidate="c", measured=2.0, limit=Limit(None, 1.25, "why"))
    (runs / "last.json").write_text(json_text(json_document([("a.py::t", red)])))
    row = next(line for line in run("history", runs)[1].splitlines() if "perplexity" in line)
    assert row.split()[-3:] == ["██▇▂!", "x0.625,", "red"]


def test_the_margins_are_drawn(run, runs, tmp_path):
    """The picture has a line for each check and the names of the runs in their order."""
    out = tmp_path / "history.svg"
    assert run("history", runs, f"--out={out}")[1].endswith(f"written: {out}\n")
    text = out.read_text(encoding="utf-8")
    places = [text.index(f"<!-- {name} -->") for name in ("run-9", "run-8", "run-7", "run-6")]
    assert places == sorted(places)
    assert "<!-- perplexity -->" in text
    assert "<!-- c against m -->" in text


GOOD = json_document([("a.py::t", verdict("perplexity", candidate="c", limit=Limit(None, 1.25, "why")))])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=hostile.damaged(GOOD))
def test_any_file_is_a_run_or_left_out(tmp_path, document):
    """With one place replaced by anything, a file is shown, or named as none; nothing else is raised."""
    (tmp_path / "good.json").write_text(json_text(GOOD))
    (tmp_path / "other.json").write_text(json.dumps(document))
    shown = history.run(argparse.Namespace(folder=tmp_path, out=None))
    assert ("no run of swcheck: other.json" in shown) == (" 1 run," in shown)


@pytest.mark.parametrize(("measured", "limit"), [(1.0, [None, "Infinity"]), (5e-324, [None, 1e300]), (1.0, ["NaN", 2])])
def test_a_margin_that_is_no_number_is_not_drawn(tmp_path, measured, limit):
    """A limit without end, and one that is no number, leave the other end or nothing."""
    document = json.loads(json.dumps(GOOD))
    document["verdicts"][0] |= {"measured": measured, "limit": limit}
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert "1 run," in history.run(argparse.Namespace(folder=tmp_path, out=None))


def test_a_name_with_dollar_signs_is_drawn_as_it_is(tmp_path):
    """It is no formula, and none that is broken."""
    document = json_document(
        [("a.py::t", verdict("perplexity", candidate="$x^$ and $_{", limit=Limit(None, 1.25, "")))]
    )
    (tmp_path / "a$b$.json").write_text(json_text(document))
    history.run(argparse.Namespace(folder=tmp_path, out=tmp_path / "a.svg"))
    assert "$x^$ and $_{" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_a_folder_without_runs_is_refused(run, tmp_path):
    """An empty folder, or one that is not there, is told what belongs there."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        code, _, err = run("history", folder)
        assert code == 2
        assert "--swcheck-json=DIR/DATE.json" in err
