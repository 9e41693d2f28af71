"""Values survive being packed, and nothing but what was packed is unpacked."""

from __future__ import annotations

import base64
import json
import zlib
from contextlib import suppress

import pytest
import torch
from hypothesis import given

from swcheck.base.reading.schema import MismatchError
from swcheck.gate.baseline.packing import MOST_BYTES, Unpacker, pack
from swcheck.lens.kl_divergence import Predictions
from tests import damage, hostile

PREDICTIONS = Predictions(torch.arange(2), torch.ones(2, 3, dtype=torch.int64), torch.zeros(2, 3))


def packed_tensor(data, shape, dtype="uint8"):
    return {"tensor": dtype, "shape": shape, "data": base64.b85encode(zlib.compress(data, 9)).decode()}


def test_numbers_survive_the_file():
    """Records, tensors, infinities and nested tuples come back as they went, whatever they are."""
    for value in (
        None,
        3,
        -1.5,
        "x",
        True,
        float("inf"),
        (1, ("a", None)),
        damage.WEIGHT,
        torch.arange(5),
        torch.zeros(0, 3),
    ):
        again = Unpacker().unpack(json.loads(json.dumps(pack(value))), "it")
        assert torch.equal(again, value) if isinstance(value, torch.Tensor) else again == value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], "it is .1., not a packed value"),
        ({"what": 1}, "not an object with tuple"),
        ({"float": "1e5"}, "not an object with tuple"),
        ({"tuple": 1}, "it.tuple is 1, not a list"),
        ({"record": "Path", "fields": {}}, "is 'Path', not one of SuperWeight"),
        ({"record": "Prompt", "fields": {"words": "x"}}, r"is \['words'\], not a Prompt"),
        ({"record": ["Prompt"], "fields": {}}, "it.record is"),
        (packed_tensor(b"ab", [2], "load"), "is 'load', not one of bool"),
        (packed_tensor(b"ab", [-2]), r"it.shape\[0\] is -2"),
        (packed_tensor(b"ab", [3]), "not exactly 3 bytes"),
        (packed_tensor(b"ab", [1]), "not exactly 1 bytes"),
        (packed_tensor(b"ab", [2**62, 2**62]), "small enough"),
        ({"tensor": "uint8", "shape": [1], "data": "\u00e9"}, "not compressed bytes in base85"),
        ({"tensor": "uint8", "shape": [1], "data": "00000"}, "not compressed bytes in base85"),
    ],
)  # fmt: skip
def test_what_was_not_packed_is_refused(value, words):
    """The place and what is wrong there are named."""
    with pytest.raises(MismatchError, match=words):
        Unpacker().unpack(value, "it")


def test_no_more_is_unpacked_than_the_shape_says():
    """A tensor of one byte whose data would unfold to a gigabyte is refused without unfolding it; so are many large ones."""
    bomb = packed_tensor(bytes(2**24), [1])
    with pytest.raises(MismatchError, match="not exactly 1 bytes"):
        Unpacker().unpack(bomb, "it")
    half = packed_tensor(bytes(MOST_BYTES // 2), [MOST_BYTES // 2])
    with pytest.raises(MismatchError, match=r"it\[2\] is 'of shape"):
        Unpacker().unpack({"tuple": [half, half, half]}, "it")


@given(value=hostile.damaged(json.loads(json.dumps(pack((PREDICTIONS, (damage.WEIGHT, 1.5, float("inf"))))))))
def test_any_value_is_unpacked_or_refused(value):
    """With one place of a packed value replaced by anything, nothing ends otherwise than in a mismatch."""
    with suppress(MismatchError):
        Unpacker().unpack(value, "it")
