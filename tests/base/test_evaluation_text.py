"""The text that is measured on: read, or refused in words."""

from __future__ import annotations

import pytest

from swcheck.base.errors import TextError
from swcheck.base.evaluation_text import read_text
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
