"""The files of a checkpoint: any bytes are read, or refused in words."""

from __future__ import annotations

import json
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

import swcheck
from swcheck.base.errors import CheckpointError
from swcheck.loading import checkpoint, hub
from tests.checkpoints import DOWN, copy_of_tiny


def test_a_header_that_lies(tmp_path):
    """A header whose shapes do not fit its own offsets is refused."""
    folder = copy_of_tiny(tmp_path / "lying")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[DOWN]["shape"] = [1, 2]
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])
    with pytest.raises(CheckpointError, match="SafetensorError"):
        swcheck.load(str(folder))


def test_a_file_that_is_too_long(tmp_path):
    """Bytes after the last tensor are refused: two files may have been written into one."""
    folder = copy_of_tiny(tmp_path / "long")
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(CheckpointError, match="the file is too long"):
        hub.check(str(folder))


@given(data=st.binary(max_size=64))
def test_any_bytes_for_weights_are_refused_in_words(data, tmp_path_factory):
    """No file of a few bytes passes for safetensors, and none brings the reader down."""
    file = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    file.write_bytes(data)
    if data[:8] == struct.pack("<Q", max(0, len(data) - 8)) and data[8:].strip() == b"{}":
        checkpoint.check_safetensors(file)
    else:
        with pytest.raises(CheckpointError, match="safetensors in"):
            checkpoint.check_safetensors(file)


@given(
    header=st.recursive(
        st.none() | st.integers() | st.text(max_size=8) | st.just("data_offsets"),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=12) | st.just("data_offsets"), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_header_is_read_or_refused(header, tmp_path_factory):
    """No JSON in the place of a header brings the reader down."""
    file = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    written = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written)
    with suppress(CheckpointError):
        checkpoint.check_safetensors(file)


# Nothing runs.
