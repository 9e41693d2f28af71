"""The path of one red gate, as ``ARCHITECTURE.md`` tells it, is the path that the code takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHAPTER = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## The path of one red gate")[2]
PATH = re.findall(r"^\d+\. `([\w.]+)`", CHAPTER, flags=re.M)
ARGUMENTS = re.search(r"`pytest (.+?)`", CHAPTER)[1].split()

TRACED = """
import sys
package, names = sys.argv[1], set(sys.argv[2].split(","))
calls = []

def note(frame, event, arg):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(package):
        name = code.co_filename[len(package):-len(".py")].replace("/", ".") + "." + code.co_qualname
        if name in names:
            calls.append(name)

import pytest
sys.setprofile(note)
status = pytest.main(sys.argv[3:])
sys.setprofile(None)
print("CALLS", int(status), *calls)
"""
"""Runs pytest and prints its exit status and the calls of the named functions in order."""


@pytest.mark.slow
def test_a_red_gate_takes_the_path_of_the_page(tmp_path):
    """The functions of the page are called in its order by its command, which ends red."""
    package = f"{ROOT / 'swcheck'}/"
    arguments = [*ARGUMENTS, "-p", "no:cacheprovider"]
    command = [sys.executable, "-c", TRACED, package, ",".join(PATH), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    status, *calls = done.stdout.partition("CALLS ")[2].split()
    assert status == "1", done.stdout + done.stderr
    remaining = iter(calls)
    assert [name for name in PATH if name not in remaining] == [], calls


def test_the_page_names_each_step_once():
    """The page has some twenty steps, each another function."""
    assert len(PATH) == len(set(PATH)) > 15
