"""The record of a study: what it finds, and that its files hold all of it."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.errors import CheckpointError, NotObservedError
from swcheck.study.common.record import COLUMNS, Measurement, Study, as_csv, as_json, from_json, mean_and_error
from tests import hostile

measurements = st.builds(
    Measurement,
    quantity=st.sampled_from(["perplexity", "residual"]),
    value=st.floats(allow_nan=False),
    condition=st.sampled_from(["intact", "super weights zeroed"]),
    x=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    layer=st.none() | st.integers(0, 80),
    prompt=st.none() | st.text(max_size=5),
)
STUDY = Study(
    "scaling",
    "tiny",
    (Measurement("perplexity", 8.0), Measurement("perplexity", math.inf, "super weights zeroed", x=0.0, layer=1)),
    ("a note",),
    {"revision": "abc", "seed": 3},
)


@given(st.lists(measurements, max_size=6))
def test_the_json_file_holds_the_whole_record(taken):
    """What is written is read back as it was, infinities included."""
    study = Study("scaling", "tiny", tuple(taken), ("a note",), {"seed": 0})

    assert from_json(as_json(study), "a file") == study


@given(document=hostile.damaged(json.loads(as_json(STUDY))))
def test_any_record_is_read_or_refused(document):
    """With one place of a record replaced by anything, what is read has numbers for its values and texts for its names."""
    try:
        study = from_json(json.dumps(document), "here")
    except CheckpointError:
        return
    assert all(type(point.value) is float and isinstance(point.quantity, str) for point in study.measurements)


def test_no_text_is_a_formula():
    """A spreadsheet computes what begins with one of these characters; in the CSV an apostrophe stands before it."""
    study = Study("scaling", "=cmd|' /C calc'!A0", (Measurement("@sum", -1.5, "+1", prompt="-2+3"),))
    [row] = csv.DictReader(io.StringIO(as_csv([study])))
    assert [row[name] for name in ("model", "quantity", "condition", "prompt")] == [
        "'=cmd|' /C calc'!A0",
        "'@sum",
        "'+1",
        "'-2+3",
    ]
    assert row["value"] == "-1.5"


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2}', '{"schema": 1, "measurements": [{}]}', "[1]"])
def test_what_is_no_study_is_refused(text):
    """A file that is none, or of another schema, is refused in words."""
    with pytest.raises(CheckpointError, match="a study in here"):
        from_json(text, "here")


def test_the_csv_file_is_tidy():
    """One measurement a row, with whose it is: model, revision and seed stand in each."""
    rows = list(csv.DictReader(io.StringIO(as_csv([STUDY]))))

    assert tuple(rows[0]) == COLUMNS
    assert {"layer", "position", "channel", "value", "prompt", "seed", "revision"} <= set(COLUMNS)
    assert [row["value"] for row in rows] == ["8.0", "inf"]
    assert {(row["study"], row["model"], row["revision"], row["seed"]) for row in rows} == {
        ("scaling", "tiny", "abc", "3")
    }
    assert (rows[0]["layer"], rows[1]["layer"]) == ("", "1")


def test_one_number_is_found_by_what_it_is():
    """A quantity under a condition at a place is one number."""
    assert STUDY.value("perplexity") == 8.0
    assert STUDY.value("perplexity", "super weights zeroed", layer=1) == math.inf
    assert STUDY.conditions("perplexity") == ("intact", "super weights zeroed")
    assert STUDY.has("perplexity")
    assert not STUDY.has("accuracy")


def test_no_number_and_two_numbers_are_said():
    """Where a description fits none, the error says so."""
    with pytest.raises(NotObservedError, match=r"perplexity \(intact, layer 7\)\n  found: 0 measurements"):
        STUDY.value("perplexity", layer=7)


def test_mean_and_error():
    """The standard error is that of the mean of independent values; one value has none."""
    assert mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert mean_and_error([5.0]) == (5.0, None)
