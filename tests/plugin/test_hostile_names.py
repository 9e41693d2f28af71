"""Names that would rewrite a terminal are shown harmlessly by a whole run."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests import checkpoints
from tests.plugin import refused

NAME = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202etxt\nPASSED"


def printable(result):
    """Whether a run wrote nothing but printable lines."""
    return all(line.isprintable() for line in (result.stdout.str() + result.stderr.str()).split("\n"))


def test_an_error_about_a_directory(inner, tmp_path):
    """A directory of a hostile name that holds no model is refused in printable lines."""
    folder = checkpoints.copy_of_tiny(tmp_path / NAME, checkpoints.text("config.json", "{"))
    result = inner(f"--model={folder}")
    refused(result, "JSON in ")
    assert printable(result)


@pytest.mark.slow
def test_a_whole_run_and_its_reports(inner, tmp_path, pytester):
    """Header, progress, ids, failure, table, JSON and JUnit of a red gate are printable, and the XML can be parsed."""
    folder = checkpoints.copy_of_tiny(tmp_path / NAME, checkpoints.tensors(lambda whole: {**whole, NAME: whole[checkpoints.DOWN] * 2, checkpoints.DOWN: whole[checkpoints.DOWN] * 0}))  # fmt: skip
    result = inner("--model=tiny", f"--candidate={folder}", "--swcheck-json=out.json", "--junitxml=out.xml", "-v", "-k", "test_candidate and super_weights")  # fmt: skip
    assert result.ret == 1
    assert printable(result)
    assert all(line.isprintable() for line in (pytester.path / "out.json").read_text().split("\n"))
    ET.parse(pytester.path / "out.xml")
