"""``--swcheck-text``: what perplexity is measured on."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.plugin import SHIPPED, refused


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "No such file"), (b"", "an empty file"), (b" \n\t", "an empty file"), (b"\xff\xfe\x00", "in UTF-8")],
    ids=["missing", "empty", "blank", "not-utf8"],
)
def test_a_text_that_cannot_be_read(inner, pytester, content, said):
    """A text that is missing, empty or not UTF-8 is a usage error."""
    if content is not None:
        (pytester.path / "text.txt").write_bytes(content)
    refused(inner("--model=tiny", "--swcheck-text=text.txt"), "text.txt", said)


def test_a_folder_is_no_text(inner, pytester):
    """A directory is refused."""
    refused(inner("--model=tiny", f"--swcheck-text={pytester.path}"), "text ", "directory")


def test_an_empty_value(inner):
    """An empty value is refused, not taken for the built-in text."""
    refused(inner("--model=tiny", "--swcheck-text="), "--swcheck-text\n  found: an empty value")


def test_a_text_that_is_too_short(inner, pytester):
    """A text of a few tokens fails the check in words, without a traceback."""
    (pytester.path / "text.txt").write_text("import os")
    result = inner("--model=tiny", "--swcheck-text=text.txt", "-k", "test_model and perplexity")
    result.assert_outcomes(failed=1, deselected=SHIPPED - 1)
    result.stdout.fnmatch_lines(
        ["a text to measure on, of 32 tokens at least", "  found: * tokens in 9 characters", "  try: *"]
    )
    result.stdout.fnmatch_lines(["FAILED *test_perplexity[[]tiny] - a text to measure on*"])
    result.stdout.no_fnmatch_line("*.py:*")


def test_it_is_what_is_measured(inner, pytester):
    """The fixture gives the text, and the number of tokens measured is its own."""
    text = "import os\nfrom pathlib import Path\n" * 8
    (pytester.path / "text.txt").write_text(text)
    pytester.makepyfile("def test_it(swcheck_text): assert swcheck_text.startswith('import os')")
    result = inner(
        "--model=tiny",
        "--swcheck-text=text.txt",
        "-k",
        "test_it.py or (test_model and perplexity)",
        "--swcheck-json=out.json",
    )
    [verdict] = json.loads((pytester.path / "out.json").read_text(encoding="utf-8"))["verdicts"]
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert verdict["facts"]["text_sha256"] == digest
    assert f"(sha256 {digest[:10]})" in verdict["summary"]
    result.stdout.fnmatch_lines(["perplexity *perplexity * on * tokens in *"])
    assert "8,160 tokens" not in result.stdout.str()
    inner("--model=tiny", "--swcheck-text=text.txt", "test_it_is_what_is_measured.py").assert_outcomes(passed=1)
