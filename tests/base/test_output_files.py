"""Files that a run writes: whole, or not at all, and refused before the work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swcheck.base import output_files
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

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(output_files.os, "open", refuse)  # the mode of a folder does not stop a superuser
    with pytest.raises(OptionError, match="write") as caught:
        check_writable(tmp_path / "out.json")
    assert words_of(caught)[1] == f"no permission to write in {tmp_path}"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a\0b", "null byte"),
        ("new/a\0b", "null byte"),
        ("x" * 400, "File name too long"),
        ("new/" + "x" * 400, "too long"),
    ],
)
def test_what_can_be_no_name_is_refused_before_the_work(tmp_path, name, found):
    """NUL bytes and names longer than the system takes are refused, also below folders that are made later."""
    with pytest.raises(OptionError) as caught:
        check_writable(tmp_path / name)
    assert found in words_of(caught)[1]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_files_is_refused():
    """Where the system itself refuses a file, its reason is said: the path is tried, not only looked at."""
    with pytest.raises(OptionError) as caught:
        check_writable(Path("/proc/out.json"))
    assert words_of(caught)[1] in {"No such file or directory", "no permission to write in /proc"}


def test_a_relative_path_is_tried(tmp_path, monkeypatch):
    """A name without a folder is one in the working directory."""
    monkeypatch.chdir(tmp_path)
    check_writable(Path("out.json"))
    write_atomically(Path("out.json"), "text")
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_longest_name_is_written(tmp_path):
    """A name as long as the system takes is written: the temporary one does not add to it."""
    check_writable(tmp_path / ("x" * 255))
    write_atomically(tmp_path / ("x" * 255), "text")
    assert (tmp_path / ("x" * 255)).read_text() == "text"


def test_no_link_is_followed(tmp_path):
    """A link in the place of a file is replaced, what it leads to stays; temporary names differ and are never reused."""
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "out").symlink_to(tmp_path / "mine")
    write_atomically(tmp_path / "out", "text")
    assert ((tmp_path / "mine").read_text(), (tmp_path / "out").is_symlink()) == ("kept", False)


def test_a_planted_name_is_never_opened(tmp_path, monkeypatch):
    """Where the drawn name is taken, by a link too, writing fails, and what the link leads to stays as it is."""
    monkeypatch.setattr(output_files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / "mine").write_text("kept")
    (tmp_path / ".swcheck-guessed.part").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "out", "text")
    assert (tmp_path / "mine").read_text() == "kept"


def test_what_a_killed_process_left_is_cleaned(tmp_path):
    """The next writer removes old temporary files, not young ones of others, and follows no link."""
    old, young = tmp_path / ".swcheck-old.part", tmp_path / ".swcheck-young.part"
    for file in (old, young):
        file.touch()
    os.utime(old, (0, 0))
    write_atomically(tmp_path / "out", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".swcheck-young.part", "out"]


@pytest.mark.slow
def test_a_killed_writer_leaves_the_old_or_the_new_file(tmp_path):
    """A process that writes without end, killed at any moment, leaves one of its texts whole."""
    code = "import sys; from pathlib import Path; from swcheck.base.output_files import write_atomically as w\n"
    code += "while True:\n    for c in 'ab': w(Path(sys.argv[1]), c * 1_000_000)"
    for delay in (0.3, 0.35, 0.42, 0.5):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")])
        time.sleep(delay)
        process.kill()
        process.wait()
        assert not (tmp_path / "out").exists() or (tmp_path / "out").read_text() in {"a" * 1_000_000, "b" * 1_000_000}
    assert (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is a file of Linux")
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """Where the disk is full the old file stays, and no part of the new one."""
    write_atomically(tmp_path / "out", "old")
    opened = output_files.os.open
    monkeypatch.setattr(
        output_files.os, "open", lambda path, *rest: opened(path, *rest) and opened("/dev/full", os.O_WRONLY)
    )
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "out", "new" * 100_000)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "old")]


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
