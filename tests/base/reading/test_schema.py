"""A schema says which values fit, and where one does not."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given

from swcheck.base.errors import CheckpointError
from swcheck.base.reading import schema
from tests import hostile

POINT = schema.record(
    {"at": schema.items(schema.whole(0, 9), fewest=2, most=2)}, {"name": schema.nullable(schema.text(3))}
)
NUMBER = schema.one_of(schema.real(0, 1), schema.boolean, words="a number from 0 to 1, or true or false")
WHOLE = schema.record(
    {"points": schema.table(POINT, fewest=1)},
    {
        "share": NUMBER,
        "mean": schema.real(),
        "table": schema.table(schema.anything),
        "largest": schema.whole(),
        "kind": schema.choice(("a", "b")),
    },
)
GOOD = {"points": {"a": {"at": [1, 2], "name": "abc"}, "b": {"at": [0, 9], "more": [1]}}, "share": 0.5, "other": None}


def test_a_value_that_fits_is_returned():
    """What fits is given back, with the fields that the schema does not know."""
    assert schema.checked(GOOD, WHOLE, "it") is GOOD
    assert schema.checked({**GOOD, "share": True}, WHOLE, "it")["share"] is True
    assert schema.checked({**GOOD, "largest": 2**63 - 1, "table": {}}, WHOLE, "it")["largest"] == schema.LARGEST
    for mean in (int(sys.float_info.max), -1e308, 10**308, float("inf"), float("-inf"), 0):
        assert schema.checked({**GOOD, "mean": mean, "kind": "b"}, WHOLE, "it")["mean"] == mean


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], r"the whole is \[\], not an object"),
        ({}, r"the whole is \[\], not an object with points"),
        ({"points": {}}, "points is {}, not an object with at least 1 key"),
        ({"points": {"a": {"at": [1]}}}, r"points.a.at is \[1\], not a list of 2 values"),
        ({"points": {"a": {"at": [1, True]}}}, r"points.a.at\[1\] is True, not a whole number from 0 to 9"),
        ({"points": {"a": {"at": [1, 2], "name": "four"}}}, "points.a.name is 'four', not a text of at most 3"),
        ({**GOOD, "share": float("nan")}, "share is nan, not a number from 0 to 1, or true or false"),
        ({"points": {"k" * 200: 1}}, "points.k{97}... is 1, not an object"),
        ({"points": {"k" * 100: 1}}, "points.k{100} is 1, not an object"),
        ({"points": {"k" * 101: 1}}, "points.k{97}... is 1, not an object"),
        ({"points": {"a": {"at": "x" * 58}}}, "points.a.at is 'x{58}', not"),
        ({"points": {"a": {"at": "x" * 59}}}, "points.a.at is 'x{56}..., not"),
        ({**GOOD, "table": 1}, "table is 1, not an object$"),
        (
            {**GOOD, "largest": 2**63},
            "largest is 9223372036854775808, not a whole number from 0 to 9,223,372,036,854,775,807",
        ),
        ({"points": {"a": {"at": "x" * 200}}}, "points.a.at is 'x{56}..., not"),
        ({**GOOD, "mean": True}, "mean is True, not a number"),
        ({**GOOD, "mean": 10**309}, "mean is 10{56}..., not a number from -inf to inf"),
        ({**GOOD, "mean": -(10**309)}, "not a number"),
        ({**GOOD, "kind": "c"}, "kind is 'c', not one of a, b"),
        ({**GOOD, "kind": ["a"]}, "not one of a, b"),
    ],
)
def test_what_does_not_fit_is_named(value, said):
    """The error names the place, the value and what was expected, at a bounded length."""
    with pytest.raises(CheckpointError, match=f"(?m){said}"):
        schema.checked(value, WHOLE, "it")


@pytest.mark.slow
@given(value=hostile.damaged(GOOD))
def test_any_value_fits_or_is_refused(value):
    """No value brings the check down, and what fits has the types that the schema says."""
    try:
        schema.checked(value, WHOLE, "it")
    except CheckpointError:
        return
    assert all(type(number) is int and 0 <= number <= 9 for point in value["points"].values() for number in point["at"])
