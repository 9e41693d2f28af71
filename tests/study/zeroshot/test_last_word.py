"""The last-word task: its items come from the text, and can be known from their context."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swcheck.base.errors import TextError
from swcheck.loading.tiny import HELDOUT
from swcheck.study.zeroshot.last_word import CONTEXT, items

TEXT = HELDOUT.read_text(encoding="utf-8")


@settings(max_examples=5)
@given(seed=st.integers(0, 100), count=st.integers(1, 40))
def test_items(seed, count):
    """Each word follows its context in the text, ends a line there, and was said before; none is asked twice."""
    asked = items(TEXT, count, seed)
    assert len(set(asked)) == len(asked) == count
    for item in asked:
        assert re.search(re.escape(f"{item.context} {item.word}") + r"\W*\n", TEXT)
        assert re.search(rf"\b{item.word}\b", item.context)
        assert len(item.context) == CONTEXT
        assert not item.context[-1].isspace()
    assert asked == items(TEXT, count, seed)


@pytest.mark.parametrize(("text", "count"), [(TEXT, 10**6), ("", 1), (TEXT, 0), ("one two\n" * 20, 1)])
def test_a_text_too_short(text, count):
    """Where the text has not enough places, or none are asked for, it is said."""
    with pytest.raises(TextError, match=rf"{count} items of a last-word task\n  found: \d+ lines"):
        items(text, count)
