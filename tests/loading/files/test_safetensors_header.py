"""The header of a safetensors file is read whole and right, or refused in words."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from swcheck.base.errors import CheckpointError
from swcheck.loading.files.safetensors_header import LARGEST_HEADER, read_header, safetensors_files, tensor_bytes
from swcheck.loading.tiny import CHECKPOINT
from tests import hostile

GOOD = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    "c": {"dtype": "F32", "shape": [0, 7], "data_offsets": [26, 26]},
}


def written(folder, header, body=bytes(26)):
    """A file with ``header`` as JSON."""
    file, text = folder / "model.safetensors", json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return file


def test_a_header_is_read(tmp_path):
    """Names, shapes and places are those of the file, in its order; a scalar and an empty tensor are tensors."""
    header = read_header(written(tmp_path, GOOD))
    assert header.start == 8 + len(json.dumps(GOOD))
    assert tensor_bytes(tmp_path) == header.start + 26
    assert [(name, one.shape, one.count, one.begin) for name, one in header.tensors.items()] == [
        ("a", (2, 3), 6, 0), ("b", (), 1, 24), ("c", (0, 7), 0, 26),
    ]  # fmt: skip
    whole = read_header(CHECKPOINT / "model.safetensors")
    with safe_open(CHECKPOINT / "model.safetensors", framework="pt") as stored:
        assert {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()} == {  # noqa: SIM118
            name: one.shape for name, one in whole.tensors.items()
        }


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int8, torch.float8_e4m3fn, torch.bfloat16, torch.int32, torch.float64]
)
def test_every_dtype_has_its_size(tmp_path, dtype):
    """What safetensors writes of a dtype is read, so the sizes of the elements are right."""
    save_file({"a": torch.zeros(3, 5, dtype=dtype)}, tmp_path / "x.safetensors")
    assert read_header(tmp_path / "x.safetensors").tensors["a"].count == 15


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"data_offsets": [0, float("inf")]}, r"a.data_offsets\[1\] is inf, not a whole number"),
        ({"data_offsets": [0, 24, 24]}, "a list of 2 values"),
        ({"data_offsets": [24, 0]}, "a of 2 x 3 in F32 at bytes 24 to 0"),
        ({"shape": None}, "a.shape is None, not a list"),
        ({"shape": "23"}, "a.shape is '23', not a list"),
        ({"shape": [2, -3]}, r"a.shape\[1\] is -3"),
        ({"shape": [1] * 17}, "a list of 0 to 16 values"),
        ({"shape": [2, 4]}, "a of 2 x 4 in F32 at bytes 0 to 24"),
        ({"dtype": 32}, "a.dtype is 32, not a text"),
        ({"dtype": "x" * 33}, "not a text of at most 32 characters"),
        ({"data_offsets": [2, 26]}, "its tensors overlap, or leave bytes between them"),
    ],
)
def test_an_entry_that_lies_is_refused(tmp_path, entry, said):
    """Types, ranges, sizes and places are held against each other."""
    with pytest.raises(CheckpointError, match=said):
        read_header(written(tmp_path, {**GOOD, "a": {**GOOD["a"], **entry}}))


def test_lengths_that_do_not_fit_are_refused(tmp_path):
    """A file that is cut off, too long, or has a header too large to be one, is refused before it is read."""
    length = 8 + len(json.dumps(GOOD))
    for body, kind in ((25, "cut off"), (27, "too long")):
        said = f"{length + body} bytes where its header says {length + 26}: the file is {kind}"
        with pytest.raises(CheckpointError, match=said):
            read_header(written(tmp_path, GOOD, bytes(body)))
    (tmp_path / "empty.safetensors").write_bytes(bytes(8))
    with pytest.raises(CheckpointError, match="JSON in safetensors"):
        read_header(tmp_path / "empty.safetensors")
    file = tmp_path / "large.safetensors"
    file.write_bytes(struct.pack("<Q", LARGEST_HEADER + 1))
    with file.open("r+b") as stream:
        stream.truncate(2 * LARGEST_HEADER)
    with pytest.raises(CheckpointError, match="a header of 33,554,433 bytes"):
        read_header(file)


@given(data=st.binary(max_size=64))
def test_any_bytes_are_refused_in_words(data, tmp_path_factory):
    """No file of a few bytes passes for safetensors, but one without a tensor, and none brings the reader down."""
    file = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    file.write_bytes(data)
    if data[:8] == struct.pack("<Q", max(0, len(data) - 8)) and data[8:].strip() == b"{}":
        assert read_header(file).tensors == {}
    else:
        with pytest.raises(CheckpointError, match="safetensors in"):
            read_header(file)


@given(header=hostile.damaged(GOOD))
def test_any_header_is_read_or_refused(header, tmp_path_factory):
    """With one place of a good header replaced by anything: what is read, safetensors itself reads too."""
    file = written(tmp_path_factory.mktemp("fuzz"), header)
    try:
        found = read_header(file)
    except CheckpointError:
        return
    try:
        with safe_open(file, framework="pt") as stored:
            assert set(stored.keys()) == set(found.tensors)
    except SafetensorError:
        odd = header.get("__metadata__") != GOOD["__metadata__"]
        assert odd or not {one.dtype for one in found.tensors.values()} <= {"F32", "BF16"}


@pytest.mark.parametrize(("dtype", "size"), [("F4", 2), ("F6_E2M3", 3), ("x" * 32, 9)])
def test_elements_of_less_than_a_byte(tmp_path, dtype, size):
    """Four elements of 4 or 6 bits fill so many bytes; of a dtype that nobody knows the length is not checked."""
    entry = {"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}}
    assert read_header(written(tmp_path, entry, bytes(size))).tensors["a"].count == 4
    if size < 9:
        with pytest.raises(CheckpointError, match=f"a of 4 in {dtype} at bytes 0 to {size + 1}"):
            read_header(written(tmp_path, {"a": {**entry["a"], "data_offsets": [0, size + 1]}}, bytes(size + 1)))


@pytest.mark.slow
def test_the_largest_header_is_read(tmp_path):
    """One of exactly the bound, most of it blanks."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", LARGEST_HEADER) + b"{}" + b" " * (LARGEST_HEADER - 2))
    assert read_header(file).start == 8 + LARGEST_HEADER


def test_only_regular_files_are_listed(tmp_path):
    """A directory with the name of a weight file is none; nothing that is listed can block a reader."""
    (tmp_path / "a.safetensors").mkdir()
    (tmp_path / "b.safetensors").touch()
    assert [file.name for file in safetensors_files(tmp_path)] == ["b.safetensors"]


def test_a_header_may_fill_its_file(tmp_path):
    """A file without tensors ends where its header ends; one that ends before is cut off inside the header."""
    file = written(tmp_path, {}, b"")
    assert read_header(file).tensors == {}
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut off inside the header"):
        read_header(file)
