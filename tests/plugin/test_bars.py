"""Bars of a run of pytest: shown on its terminal although pytest captures stderr, and gone when the run has ended."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

SLOW = """
import time
from swcheck.base.terminal.progress import with_bar

def test_before(swcheck_model): pass

def test_long(swcheck_model):
    for _ in with_bar(range(3), "scoring tokens", 3):
        time.sleep(0.7)

def test_broken(swcheck_model):
    for _ in with_bar(range(3), "reading prompts", 3):
        time.sleep(1.3)
        raise OSError("broken off")

def test_after(swcheck_model): time.sleep(0.5)
"""

CONTROL = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])")


def run_on_a_terminal(folder, *words):
    """Run pytest on a terminal of 80 columns, and return all that it wrote there."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, True)
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    with subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # how a closed terminal ends on Linux
                break
            if not part:
                break
            parts.append(part)
    os.close(ours)
    return b"".join(parts).decode()


def screen_of(text):
    """Return the lines that a person sees in the end, by what the few controls do that are written."""
    rows, row, column = [[]], 0, 0
    for sign in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", text, re.DOTALL):
        control = CONTROL.fullmatch(sign)
        if control:
            if control[2] == "A":
                row -= int(control[1] or 1)
            if control[2] == "G":
                column = int(control[1]) - 1
        elif sign == "\n":
            row += 1
            rows += [] if row < len(rows) else [[]]
        elif sign == "\r":
            column = 0
        else:
            line = rows[row]
            line += " " * (column + 1 - len(line))
            line[column] = sign
            column += 1
    return ["".join(line).rstrip() for line in rows]


@pytest.mark.slow
def test_bars_are_shown_and_leave_the_report_as_it_was(tmp_path):
    """Past the capture of stderr, with what is done and how far; each line of pytest reads as without a terminal."""
    (tmp_path / "test_slow.py").write_text(SLOW, encoding="utf-8")

    text = run_on_a_terminal(tmp_path, "--swcheck-model=tiny", "--color=no", "test_slow.py")

    assert re.search(r"swcheck: scoring tokens: +\d+%", text)
    assert re.search(r"swcheck: reading prompts: +0%", text)
    lines = screen_of(text)
    assert [line.split() for line in lines if line.startswith("test_slow.py ")] == [["test_slow.py", "..F.", "[100%]"]]
    assert not [line for line in lines if "scoring tokens:" in line or "reading prompts:" in line]


@pytest.mark.slow
def test_no_bar_is_written_to_a_file(outer, tmp_path):
    """A log of CI has no bars."""
    (tmp_path / "test_slow.py").write_text(SLOW, encoding="utf-8")
    done = outer("--swcheck-model=tiny", "test_slow.py", "-k", "long")
    assert done.returncode == 0
    assert "scoring tokens" not in done.stdout + done.stderr
