"""The outer form of a baseline: what was written is read, anything else is refused before a model is loaded."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given

from swcheck.base.errors import CheckpointError
from swcheck.gate.baseline.document import MOST_READ, read_document, read_document_file, sealed
from tests import hostile

GOOD = sealed({"model": "m", "weights": "ab", "tier": "smoke", "super_weights": [], "measurements": [["bos", True]]})
PLACE = {"layer": 0, "row": 1, "column": 2, "value": 0.5}


def test_a_digest_is_of_the_content():
    """Another layout and another order of the keys fit the same digest; sealed again nothing changes."""
    assert read_document(json.dumps(GOOD), "x.json") == GOOD
    assert read_document(json.dumps(dict(reversed(GOOD.items())), indent=7).encode(), "x.json") == GOOD
    assert sealed(GOOD) == GOOD


@pytest.mark.parametrize(
    "change", [{"model": "n"}, {"weights": None}, {"measurements": []}, {"more": 1}, {"digest": "0"}]
)
def test_an_edited_file_is_refused(change):
    """Whatever was changed by hand, the digest does not fit any more."""
    with pytest.raises(CheckpointError, match="it was edited, or merged"):
        read_document(json.dumps({**GOOD, **change}), "x.json")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("{", "no baseline of swcheck, or a damaged one .Expecting property name"),
        ("[]", "no baseline of swcheck, or a damaged one .it names no schema"),
        ("{}", "no baseline of swcheck, or a damaged one .it names no schema"),
        (b"\xff\xff", "no baseline of swcheck, or a damaged one .'utf-8' codec"),
        ('{"schema": 99}', "another version of swcheck wrote it .schema 99, this is 4"),
        ('{"schema": 2.0}', "another version of swcheck wrote it .schema 2.0"),
        ('{"schema": [2]}', "another version of swcheck wrote it"),
        ('{"schema": 2, "measurements": []}', "not an object with model"),
        ('{"schema": 2, "model": "x", "measurements": {}}', "measurements is {}, not a list"),
        ('{"schema": 2, "model": "x", "measurements": [[1]]}', r"measurements\[0\] is \[1\], not a list of 2"),
        ('{"schema": 2, "model": 7, "measurements": []}', "model is 7, not a text"),
        ('{"schema": 3, "model": "x", "tier": ["smoke"], "measurements": []}', "tier is"),
        ('{"schema": 3, "model": "x", "device": {}, "measurements": []}', "device is {}"),
        ('{"schema": 3, "model": "x", "super_weights": [{}], "measurements": []}', "not an object with layer"),
        ('{"schema": 2, "model": "x", "measurements": [[1, 2, 3]]}', r"measurements\[0\] is .*, not a list of 2"),
        (json.dumps({"schema": 3, "model": "x" * 1001, "measurements": []}), "not a text of at most 1,?000"),
        (json.dumps({"schema": 3, "model": "x", "device": "x" * 1001, "measurements": []}), "device is"),
        (json.dumps({"schema": 3, "model": "x", "tier": "x" * 21, "measurements": []}), "not a text of at most 20"),
        (
            json.dumps(
                {"schema": 3, "model": "x", "super_weights": [{**PLACE, "expert": "x" * 21}], "measurements": []}
            ),
            "not an expert",
        ),
    ],
)
def test_a_file_that_is_no_baseline_is_refused(broken, words):
    """Other text, another schema and facts of another type are worded errors."""
    with pytest.raises(CheckpointError, match=words):
        read_document(broken, "x.json")


@given(body=hostile.damaged({name: value for name, value in GOOD.items() if name != "digest"} | {"schema": 3}))
def test_any_facts_are_read_or_refused(body):
    """With one place replaced by anything, facts that are read have their types."""
    try:
        found = read_document(json.dumps(body), "x.json")
    except CheckpointError:
        return
    assert isinstance(found["model"], str)
    assert isinstance(found.get("tier", ""), str)


def test_a_file_is_regular_and_small(tmp_path):
    """A pipe, a missing file and one beyond the size of any baseline are refused before they are read."""
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(MOST_READ + 1)
    for name, words in (("pipe", "a named pipe"), ("large", "at most 4,000,000 are read"), ("none", "No such file")):
        with pytest.raises(CheckpointError, match=words):
            read_document_file(tmp_path / name)
