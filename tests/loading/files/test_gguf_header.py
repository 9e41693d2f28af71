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


ENUMERATION = """
F32 F16 Q4_0 Q4_1 - - Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S
IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 - - - TQ1_0 TQ2_0 - - - MXFP4 NVFP4 Q1_0
""".split()
"""The types of ggml in the order of their codes; those that it took out are left open."""

BITS = {
    "F32": 32, "F16": 16, "BF16": 16, "F64": 64, "I8": 8, "I16": 16, "I32": 32, "I64": 64, "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5,
    "Q5_1": 6, "Q8_0": 8.5, "Q8_1": 10, "IQ4_NL": 4.5, "MXFP4": 4.25, "NVFP4": 4.5, "Q1_0": 1.125, "Q2_K": 2.625,
    "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_K": 9.125, "IQ2_XXS": 2.0625, "IQ2_XS": 2.3125,
    "IQ3_XXS": 3.0625, "IQ1_S": 1.5625, "IQ3_S": 3.4375, "IQ2_S": 2.5625, "IQ4_XS": 4.25, "IQ1_M": 1.75, "TQ1_0": 1.6875,
    "TQ2_0": 2.0625,
}  # fmt: skip
"""Bits per weight, as llama.cpp prints them: scales included."""


def test_every_type_has_its_code_and_its_bits():
    """Codes are those of ggml, and the bytes of a block hold its weights."""
    assert {code: name for code, (name, _, _) in TYPES.items()} == {
        code: name for code, name in enumerate(ENUMERATION) if name != "-"
    }
    assert {name: 8 * size / block for name, block, size in TYPES.values()} == BITS


@pytest.mark.parametrize("name", [name for name in ENUMERATION if "Q" in name or "FP4" in name])
def test_a_row_is_whole_blocks(tmp_path, name):
    """Of this many weights: 256 where a type has scales of scales, else 32, 64 or 128."""
    block = {"NVFP4": 64, "Q1_0": 128, "MXFP4": 32}.get(
        name, 32 if name.endswith(("_0", "_1", "_NL")) and name[0] != "T" else 256
    )
    room = int(block * BITS[name] / 8)
    found = read(tmp_path, whole((), (tensor("a", (block,), ENUMERATION.index(name), 0),), room))
    assert (found.tensors["a"].type, found.tensors["a"].end) == (name, room)
    with pytest.raises(CheckpointError, match=f"a in {name} has rows of {block + 1}, no multiple of {block}"):
        read(tmp_path, whole((), (tensor("a", (block + 1,), ENUMERATION.index(name), 0),), 2 * room))


@pytest.mark.parametrize(
    ("code", "form", "value"),
    [
        (0, "<B", 255), (1, "<b", -1), (2, "<H", 65535), (3, "<h", -1), (4, "<I", 2**32 - 1), (5, "<i", -1), (6, "<f", 0.5),
        (7, "<?", True), (10, "<Q", 2**63), (11, "<q", -1), (12, "<d", 0.1),
    ],
)  # fmt: skip
def test_every_type_of_number_is_read(tmp_path, code, form, value):
    """Alone and in a list."""
    data = struct.pack(form, value)
    facts = text("a") + struct.pack("<I", code) + data, text("b") + struct.pack("<IIQ", 9, code, 3) + 3 * data
    assert read(tmp_path, whole(facts, ())).facts == {"a": value, "b": 3}


def test_what_just_fits_is_read(tmp_path):
    """A file that is its header alone, the widest alignment and the longest name; one more is refused, in short."""
    assert read(tmp_path, header((fact("general.alignment", 4, 8),), ())).tensors == {}
    data = header((fact("general.alignment", 4, 2**16),), ())
    assert read(tmp_path, data + bytes(2**16 - len(data))).start == 2**16
    with pytest.raises(CheckpointError, match="general.alignment is 131072, no power of two up to 65,536"):
        read(tmp_path, whole((fact("general.alignment", 4, 2**17),), ()))
    assert list(read(tmp_path, whole((fact("a" * 1024, 4, 1),), ())).facts) == ["a" * 1024]
    with pytest.raises(CheckpointError, match="a key of 1,025 bytes, at most 1,024"):
        read(tmp_path, whole((fact("a" * 1025, 4, 1),), ()))
    twice = fact("a" * 200, 4, 1)
    with pytest.raises(CheckpointError, match=f"the key '{'a' * 100}' is there twice"):
        read(tmp_path, whole((twice, twice), ()))
    with pytest.raises(CheckpointError, match=f" {'a' * 100} of 9 in F32 ends 4 bytes behind the file"):
        read(tmp_path, whole((), (tensor("a" * 200, (9,), 0, 0),), 32))
    with pytest.raises(CheckpointError, match=f" {'a' * 100} begins at byte 3"):
        read(tmp_path, whole((), (tensor("a" * 200, (1,), 0, 3),), 32))


def test_lists_are_counted_together(tmp_path):
    """Two that are small enough alone are refused if they are too large beside each other; four dimensions are read."""
    many = 1_500_000
    facts = [numbers(name, 0, many, bytes(many)) for name in ("a", "b")]
    assert read(tmp_path, whole(facts[:1], ())).facts == {"a": many}
    with pytest.raises(CheckpointError, match="1,500,000 values of 'b', at most 597,152 are read"):
        read(tmp_path, whole(facts, ()))
    assert read(tmp_path, whole((), (tensor("a", (2, 1, 1, 1), 0, 0),), 32)).tensors["a"].shape == (2, 1, 1, 1)
    with pytest.raises(CheckpointError, match="a in Q8_0 has rows of 1, no multiple of 32"):
        read(tmp_path, whole((), (tensor("a", (), 8, 0),), 64))
