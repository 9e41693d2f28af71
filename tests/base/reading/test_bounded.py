"""Files that others wrote are opened and read within bounds, or refused in words."""

from __future__ import annotations

import os
import socket
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.errors import CheckpointError
from swcheck.base.reading.bounded import open_regular, parsed_json, read_bytes, read_exactly, read_json


def test_a_file_is_read_to_its_last_byte(tmp_path):
    """A file of the size that is allowed is read whole, and one byte more is refused before it is read."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    assert read_bytes(file, 10, "it") == b"x" * 10
    with pytest.raises(CheckpointError, match="10 bytes, at most 9 are read"):
        read_bytes(file, 9, "it")


@pytest.mark.parametrize(
    ("path", "found"),
    [("nothing", "No such file"), ("a\0b", "null byte"), ("x" * 400, "File name too long"), (".", "a directory")],
)
def test_what_cannot_be_opened_is_said(tmp_path, path, found):
    """A missing file, an impossible name and a directory are errors in words."""
    with pytest.raises(CheckpointError, match=found):
        open_regular(tmp_path / path, "it")


def test_pipes_devices_and_sockets_are_refused(tmp_path):
    """What is no regular file is refused without waiting for it, and the descriptor is closed again."""
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path, found in ((tmp_path / "pipe", "a named pipe"), ("/dev/zero", "a device"), (tmp_path / "socket", ".")):
            with pytest.raises(CheckpointError, match=found):
                open_regular(path, "it")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_ends_early_is_refused(tmp_path):
    """A file that became shorter since its size was read is an error, and so is one that cannot be read."""
    (tmp_path / "file").write_bytes(b"abc")
    with open_regular(tmp_path / "file", "it") as stream, pytest.raises(CheckpointError, match="ends 2 bytes early"):
        read_exactly(stream, 5, "it")
    with (
        Path("/proc/self/mem").open("rb", buffering=0) as stream,
        pytest.raises(CheckpointError, match="Input/output error"),
    ):
        read_exactly(stream, 5, "it")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "Expecting property name"),
        (b"\xff\xfe\xff", "decode"),
        ("[" * 100_000, "recursion"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ("1" * 5000, "integer string conversion"),
        (f'{{"{"k" * 101}": 1, "{"k" * 101}": 2}}', "the key 'k{100}' is there twice"),
    ],
)
def test_what_is_no_json_is_refused(text, found):
    """Broken text, other encodings, endless nesting, endless numbers and keys that are there twice are errors in words."""
    with pytest.raises(CheckpointError, match=found):
        parsed_json(text, "it")


@pytest.mark.slow
@given(data=st.binary(max_size=40))
def test_any_bytes_are_json_or_refused(data, tmp_path_factory):
    """No file brings the reader down."""
    file = tmp_path_factory.mktemp("fuzz") / "file.json"
    file.write_bytes(data)
    with suppress(CheckpointError):
        read_json(file, 100, "it")


def test_a_file_that_cannot_be_read_on_is_told_in_the_systems_words():
    """A disk that fails in the middle: its reason alone, without the number of the error."""

    class Failing:
        def read(self, _size):
            raise OSError(5, "Input/output error")

    with pytest.raises(CheckpointError) as caught:
        read_exactly(Failing(), 8, "it")
    assert (caught.value.found, caught.value.attempt) == ("Input/output error", "fetch the file again")
