"""What is written to people holds no control characters, wherever the text came from."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import swcheck
from swcheck.base.errors import CheckpointError, brief_message
from swcheck.base.json_text import json_text
from swcheck.base.records import Outcome, Verdict
from swcheck.base.terminal.visible import tell, visible, visible_line
from swcheck.gate.verdict_message import verdict_message

HOSTILE = "\x1b[31mred\x1b]52;c;aGk=\x07\x9b2J\u202etxt\u200b\x7f\udcff"
"""A colour, the clipboard, a C1 sequence, a turned direction, a width of nothing, DEL, and half a character."""


@given(text=st.text())
def test_every_character_can_be_printed(text):
    """Whatever a text holds, it becomes printable; a printable one stays as it is; doing it twice changes nothing."""
    assert visible_line(text).isprintable()
    assert all(line.isprintable() for line in visible(text).split("\n"))
    assert visible(visible(text)) == visible(text)
    assert text.count("\n") == visible(text).count("\n")
    assert not text.isprintable() or visible_line(text) == text


@pytest.mark.parametrize("text", ["näive 你好 😀", "x1.05 (±0.1)"])
def test_other_languages_stay(text):
    """What can be printed is not touched."""
    assert visible(text) == visible_line(text) == text


def test_errors_quote_safely():
    """An error that quotes a file shows its control characters, in the message and in its fields, each on its own line."""
    error = CheckpointError(f"all of {HOSTILE}", f"first\n  try: rm -rf {HOSTILE}", f"one\ntwo {HOSTILE}")
    for text in (*str(error).split("\n"), error.asked, error.found):
        assert text.isprintable()
    assert len(str(error).split("\n")) == 4
    assert brief_message(ValueError(HOSTILE)).isprintable()


def test_verdicts_quote_safely():
    """A verdict about tensors and models of hostile names is shown without a control character."""
    verdict = Verdict(
        "check", HOSTILE, Outcome.FAILED, HOSTILE, HOSTILE, cause=HOSTILE, attempt=HOSTILE, detail=((HOSTILE, HOSTILE),)
    )
    for width in (None, 80):
        assert all(line.isprintable() for line in verdict_message(verdict, width=width).split("\n"))


@given(value=st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_is_printable_and_the_same(value):
    """JSON for people and programs holds no control character, and reads back as it was."""
    text = json_text(value)
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.loads(text) == value


def test_a_line_of_progress_is_one_line(capsys):
    """What is told while a run goes on is one line with the name of swcheck before it."""
    tell(f"a\nb{HOSTILE}")
    out = capsys.readouterr().err
    assert out.startswith("swcheck: a\\nb")
    assert (out.count("\n"), out.rstrip("\n").isprintable()) == (1, True)


def test_nothing_else_writes_to_the_terminal():
    """No module but this one, and the entry point of the command, writes to stdout or stderr itself."""
    root = Path(swcheck.__file__).parent
    writers = {
        file.relative_to(root).as_posix()
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"sys.stdout.write", "sys.stderr.write", "print"}
    }
    assert writers == {"base/terminal/visible.py", "run/command_line/main.py"}
