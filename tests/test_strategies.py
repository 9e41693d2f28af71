"""What the strategies draw: prompts that can be encoded, lists without doubles, coordinates inside."""

from __future__ import annotations

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from swcheck.strategies import FORMS, assortments, kinds, prompt_lists, prompts, super_weights

SIZES = st.integers(1, 12)


@given(prompt=prompts())
def test_prompts(tiny, prompt):
    """A prompt is never blank, can be written as UTF-8, and becomes tokens behind BOS."""
    assert prompt.strip()
    assert prompt.encode()
    ids = tiny.tokenizer(prompt)["input_ids"]
    assert ids[0] == tiny.tokenizer.bos_token_id
    assert len(ids) > 1


@given(data=st.data(), longest=SIZES)
def test_longest(data, longest):
    """A prompt has at most so many pieces, each a word, a mark or four characters."""
    prompt = data.draw(prompts(longest=longest))
    assert len(prompt) <= longest * 8 + longest - 1


@given(data=st.data(), size=SIZES)
def test_lists(data, size):
    """A list has the size asked for and no prompt twice."""
    drawn = data.draw(prompt_lists(size=size, longest=4))
    assert len(drawn) == len(set(drawn)) == size
    assert all(prompt.strip() for prompt in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["water", "42", "你好", "\n", "é"])
def test_variety(wanted):
    """Words, numbers, other scripts and line ends all occur."""
    assert wanted in find(prompts(), lambda prompt: wanted in prompt)


@given(prompts=assortments())
def test_assortments(prompts):
    """Every kind of prompt stands in every form, none is empty, and none is only a copy of the other forms."""
    assert [prompt.form for prompt in prompts] == [form for form in FORMS for _ in kinds()]
    assert all(prompt.text for prompt in prompts)


@pytest.mark.parametrize("kind", kinds())
@given(data=st.data())
def test_kinds(tiny, kind, data):
    """Each kind is what it is called, and becomes tokens with and without BOS."""
    text = data.draw(kinds()[kind])
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    claims = {
        "whitespace": text[0].isspace,
        "emoji": lambda: any(ord(mark) > 0x2700 for mark in text),
        "delimiters first": lambda: not text[0].isalnum(),
        "one token": lambda: " " not in text,
        "long": lambda: len(ids) > 100,
        "scripts": lambda: not text.isdigit(),
    }
    assert ids
    assert claims.get(kind, lambda: len(ids) > 1)()


@given(data=st.data(), layers=SIZES, rows=SIZES, columns=SIZES)
def test_super_weights(data, layers, rows, columns):
    """A coordinate lies inside a model of these sizes."""
    weight = data.draw(super_weights(layers=layers, rows=rows, columns=columns))
    assert (weight.layer in range(layers), weight.row in range(rows), weight.column in range(columns)) == (True,) * 3
    assert weight.value is None


@pytest.mark.parametrize("corner", [(0, 0, 0), (2, 4, 6)])
def test_corners(corner):
    """The first and the last coordinate can be drawn."""
    strategy = super_weights(layers=3, rows=5, columns=7)
    found = find(strategy, lambda weight: (weight.layer, weight.row, weight.column) == corner)
    assert (found.layer, found.row, found.column) == corner


def test_the_module_shows_its_three_strategies():
    """What a user sees and what a star import brings are the strategies, and no name that they are made with."""
    from swcheck import strategies

    names: dict[str, object] = {}
    exec("from swcheck.strategies import *", names)
    assert sorted(set(names) - {"__builtins__"}) == dir(strategies) == ["prompt_lists", "prompts", "super_weights"]
