"""The text that is measured on: read, or refused in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swcheck.base.errors import TextError
from swcheck.base.reading.text_file import LARGEST_TEXT, read_text
from tests.loading.test_engines import words_of


@pytest.mark.parametrize(
    ("content", "found"),
    [(None, "No such file"), (b"", "an empty file"), (b"\n \n", "an empty file"), (b"\xff", "utf-8")],
)
def test_a_text_that_cannot_be_read(tmp_path, content, found):
    """A text that is missing, empty or not UTF-8 is refused in words."""
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(TextError, match="text") as caught:
        read_text(tmp_path / "text.txt")
    assert found in words_of(caught)[1]


def test_a_text_is_a_regular_file_of_bounded_size(tmp_path):
    """A pipe, a device and a text of more than 16 MB are refused before they are read; a NUL byte is no name of a file."""
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(LARGEST_TEXT + 1)
    paths = (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "large", tmp_path / "a\0b")
    for path, found in zip(paths, ("a named pipe", "a device", "at most 16,777,216", "null byte"), strict=True):
        with pytest.raises(TextError) as caught:
            read_text(path)
        assert found in words_of(caught)[1]


def test_lines_end_alike_everywhere(tmp_path):
    """The line ends of other systems are read as Python reads a text file, so that a hash of the text is the same."""
    (tmp_path / "text").write_bytes(b"one\r\ntwo\rthree\n")
    assert read_text(tmp_path / "text") == "one\ntwo\nthree\n"
