"""Tests of the plugin: one file per option, and one per promise; each through pytest inside pytest."""

from __future__ import annotations

import re

import pytest

from swcheck.run.pytest_hooks.collection import SUITE_FOLDER

MODEL, CANDIDATE = (
    len(re.findall("^def test_", (SUITE_FOLDER / name).read_text(encoding="utf-8"), re.MULTILINE))
    for name in ("test_model.py", "test_candidate.py")
)
SHIPPED = BOTH = MODEL + CANDIDATE
"""How many checks the suite has: of a model on its own, of a candidate, and together."""


def refused(result: pytest.RunResult, *said: str) -> None:
    """A usage error in words: exit code 4, asked, found and try, no traceback, nothing run."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    shown = result.stderr.str()
    assert shown.startswith("ERROR: ")
    assert "\n  found: " in shown
    assert "\n  try: " in shown
    for words in said:
        assert " ".join(words.split()) in " ".join(shown.split())  # long lines are folded
    assert "Traceback" not in shown + result.stdout.str()
