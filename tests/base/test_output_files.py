"""Files that a run writes: whole, or not at all, and refused before the work."""

from __future__ import annotations

import os

import pytest

from swcheck.base.errors import OptionError
from swcheck.base.output_files import check_writable, write_atomically
from tests.loading.test_engines import words_of


def test_what_cannot_be_written_to(tmp_path):
    """A folder, and a path below a file, are refused; a new name in new folders is not, and nothing is made yet."""
    (tmp_path / "file").touch()
    for path, found in ((tmp_path, "a directory"), (tmp_path / "file" / "out", f"{tmp_path / 'file'} is a file")):
        with pytest.raises(OptionError, match="write") as caught:
            check_writable(path)
        assert words_of(caught)[1] == found
    check_writable(tmp_path / "a" / "b" / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_permission(tmp_path, monkeypatch):
    """A folder that may not be written to is refused."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OptionError, match="write") as caught:
        check_writable(tmp_path / "out.json")
    assert words_of(caught)[1] == f"no permission to write in {tmp_path}"


def test_whole_or_not_at_all(tmp_path):
    """A file is replaced whole; where that fails nothing half-written lies beside it."""
    write_atomically(tmp_path / "a" / "out", "first")
    write_atomically(tmp_path / "a" / "out", "second")
    assert (tmp_path / "a" / "out").read_text() == "second"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").touch()
    with pytest.raises(OSError, match="."):
        write_atomically(tmp_path / "folder", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]
