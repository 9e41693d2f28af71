"""The header of a GGUF file is read whole and right, or refused in words, in little time and memory."""

from __future__ import annotations

import os
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.errors import CheckpointError
from swcheck.loading.files import gguf_header
from swcheck.loading.files.gguf_header import LIST, NUMBERS, TEXT, TYPES, read_gguf_header


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def fact(key, kind, value):
    return text(key) + struct.pack("<I", kind) + (text(value) if kind == TEXT else struct.pack(NUMBERS[kind], value))


def numbers(key, kind, count, data):
    """A fact that is a list, which says that it has ``count`` values."""
    return text(key) + struct.pack("<IIQ", LIST, kind, count) + data


def tensor(name, shape, code, begin):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, begin)


def header(facts, tensors, version=3, magic=b"GGUF", counts=None):
    counts = counts or (len(tensors), len(facts))
    return magic + struct.pack("<IQQ", version, *counts) + b"".join(facts) + b"".join(tensors)


def whole(facts, tensors, room=0, **options):
    """A file: the header, padding, and ``room`` bytes of data."""
    data = header(facts, tensors, **options)
    return data + bytes(-len(data) % 32 + room)


FACTS = (
    fact("general.architecture", TEXT, "llama"), fact("llama.block_count", 4, 5), fact("llama.rope.freq_base", 6, 1e4),
    fact("general.flag", 7, True), numbers("tokenizer.scores", 6, 3, struct.pack("<3f", 1, 2, 3)),
    numbers("tokenizer.tokens", TEXT, 2, text("a") + text("bc")),
)  # fmt: skip
TENSORS = (tensor("blk.0.ffn_down.weight", (64, 2), 8, 0), tensor("norm", (3,), 0, 160))
GOOD = whole(FACTS, TENSORS, 172)


def read(folder, data):
    (folder / "x.gguf").write_bytes(data)
    return read_gguf_header(folder / "x.gguf")


def test_a_header_is_read(tmp_path):
    """Facts have their values, lists their lengths; tensors have type, shape and place."""
    found = read(tmp_path, GOOD)
    assert found.facts == {
        "general.architecture": "llama", "llama.block_count": 5, "llama.rope.freq_base": 1e4,
        "general.flag": True, "tokenizer.scores": 3, "tokenizer.tokens": 2,
    }  # fmt: skip
    assert {name: (one.type, one.shape, one.begin, one.end, one.count) for name, one in found.tensors.items()} == {
        "blk.0.ffn_down.weight": ("Q8_0", (64, 2), 0, 136, 128),
        "norm": ("F32", (3,), 160, 172, 3),
    }
    assert found.start % 32 == 0
    assert len(GOOD) == found.start + 172


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "cut off inside the header"),
        (b"PK\3\4" + bytes(60), "does not begin with GGUF"),
        (whole((), (), version=1), "version 1, known are 2 and 3"),
        (whole((), (), version=3 << 24), "version 50331648"),
        (whole((), (), counts=(2**63, 0)), "tensors, at most 200,000"),
        (whole((), (), counts=(0, 2**60)), "facts, at most 4,096"),
        (whole((), (), room=999, counts=(0, 99)), "has the type 0|twice|cut off"),
        (whole((fact("a", 4, 1), fact("a", 4, 1)), ()), "the key 'a' is there twice"),
        (whole((text("a") + struct.pack("<I", 77),), (), 99), "'a' has the type 77"),
        (whole((numbers("a", 0, 2**60, b""),), (), 99), "values of 'a', at most 2,097,152"),
        (whole((numbers("a", TEXT, 10**6, b""),), ()), "cut off inside the header"),
        (whole((numbers("a", LIST, 1, b""),), (), 99), "a list of the type 9"),
        (whole((struct.pack("<Q", 2**62),), (), 99, counts=(0, 1)), "a key of 4,611,686,018,427,387,904 bytes"),
        (whole((fact("general.alignment", 4, 0),), ()), "general.alignment is 0"),
        (whole((fact("general.alignment", 4, 48),), ()), "general.alignment is 48"),
        (whole((fact("general.alignment", TEXT, "x"),), ()), "general.alignment is 'x'"),
        (whole((), (tensor("a", (1,), 0, 0), tensor("a", (1,), 0, 32)), 99), "the tensor 'a' is there twice"),
        (whole((), (tensor("a", (1,) * 9, 0, 0),), 99), "a has 9 dimensions"),
        (whole((), (tensor("a", (1,), 99, 0),), 99), "a has the type 99"),
        (whole((), (tensor("a", (33, 2), 8, 0),), 99), "rows of 33, no multiple of 32"),
        (whole((), (tensor("a", (2**63, 2**63), 0, 0),), 99), "bytes behind the file"),
        (whole((), (tensor("a", (9,), 0, 2**64 - 32),), 99), "bytes behind the file"),
        (whole((), (tensor("a", (1,), 0, 3),), 99), "at byte 3, inside another or not aligned"),
        (whole((), (tensor("a", (20,), 0, 0), tensor("b", (1,), 0, 32)), 99), "b begins at byte 32, inside another"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, data, said):
    """A count, a type, a place that cannot be is refused before memory is taken for it."""
    with pytest.raises(CheckpointError, match=said):
        read(tmp_path, data)


@given(length=st.integers(0, len(GOOD) - 1))
def test_every_cut_is_seen(length, tmp_path_factory):
    """A file that ends anywhere before its end is refused."""
    with pytest.raises(CheckpointError):
        read(tmp_path_factory.mktemp("cut"), GOOD[:length])


@given(place=st.integers(0, len(header(FACTS, TENSORS)) - 1), other=st.binary(min_size=1, max_size=12))
def test_any_damage_is_read_or_refused(tmp_path_factory, place, other):
    """With any bytes of a good header replaced, the reader ends in a header or in words."""
    data = GOOD[:place] + other + GOOD[place + len(other) :]
    with suppress(CheckpointError):
        found = read(tmp_path_factory.mktemp("fuzz"), data)
        assert all(one.end <= len(data) - found.start for one in found.tensors.values())


def test_a_header_without_end(tmp_path, monkeypatch):
    """What is larger than any header of a model is not read."""
    monkeypatch.setattr(gguf_header, "LARGEST_HEADER", 1000)
    data = whole((fact("a", TEXT, "x" * 2000),), ())
    with pytest.raises(CheckpointError, match="more than 1,000 bytes of header"):
        read(tmp_path, data)


def test_what_is_no_regular_file(tmp_path):
    """A named pipe is refused without waiting, a folder and a missing file as well."""
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("pipe.gguf", ".", "nowhere.gguf"):
        with pytest.raises(CheckpointError, match="GGUF in"):
            read_gguf_header(tmp_path / name)


def test_every_type_has_whole_blocks():
    """The names are told apart, and the bytes of a block hold its weights in at most 64 bits each."""
    assert len({name for name, _, _ in TYPES.values()}) == len(TYPES)
    assert all(0 < 8 * size / block <= 64 for _, block, size in TYPES.values())
