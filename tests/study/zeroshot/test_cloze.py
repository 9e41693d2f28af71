"""The zero-shot task: its items come from the text, and the accuracy is what a model that knows, or guesses, gets."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swcheck.base.errors import TextError
from swcheck.base.records import SuperWeight
from swcheck.lens.intervene import zeroed
from swcheck.loading.tiny import HELDOUT
from swcheck.study.zeroshot.cloze import CHOICES, CONTEXT, GUESSING, PIECE, Item, accuracy, items

TEXT = HELDOUT.read_text(encoding="utf-8")[:40_000]


@settings(max_examples=5)
@given(seed=st.integers(0, 100), count=st.integers(1, 40))
def test_items(seed, count):
    """The right choice follows its context in the text, wrong ones stand elsewhere, and no item is asked twice."""
    asked = items(TEXT, count, seed)
    assert len({item.context + item.choices[item.answer] for item in asked}) == len(asked) == count
    for item in asked:
        assert item.context + item.choices[item.answer] in TEXT
        assert item.context.endswith("\n")
        assert len(item.context) == CONTEXT
        assert [len(choice) for choice in item.choices] == [PIECE] * CHOICES
        assert all(choice in TEXT for choice in item.choices)
    assert asked == items(TEXT, count, seed)


def test_answers_are_spread():
    """The right choice stands at every place about as often."""
    answers = [item.answer for item in items(TEXT, 200)]
    assert all(30 < answers.count(place) < 70 for place in range(CHOICES))


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        (TEXT, 10**6, r"1000000 items of a cloze task\n  found: \d+ places to ask at\n  try: give a longer text"),
        ("", 1, "1 items of a cloze task\n  found: 0 places to ask at"),
        (TEXT, 0, "0 items of a cloze task"),
        (("x" * 30 + "\n") * 10, 1, "a cloze task\n  found: 0 places for 3 wrong choices\n  try: give a longer text"),
    ],
    ids=["too many", "no text", "none", "too short"],
)
def test_a_text_too_short(text, count, words):
    """Where the text has not enough places, or none are asked for, it is said."""
    with pytest.raises(TextError, match=words):
        items(text, count)


def test_no_items(tiny):
    """The accuracy over no item is an error."""
    with pytest.raises(TextError, match="the accuracy of a cloze task\n  found: no item"):
        accuracy(tiny.model, tiny.tokenizer, [])


def test_without_bos(tiny):
    """Without BOS a piece on its own has no likelihood, and so nothing to gain from its context."""
    words = "the likelihood of a piece on its own\n  found: no token before it\n  try: use a tokenizer that adds BOS"
    with pytest.raises(TextError, match=words):
        accuracy(tiny.model, lambda text, **_options: {"input_ids": list(text.encode())}, items(TEXT, 1))


class Knowing(nn.Module):
    """A model that expects, behind each context it knows, one continuation, and elsewhere nothing in particular."""

    def __init__(self, continuations):
        super().__init__()
        self.continuations = continuations

    def forward(self, ids, use_cache=False):
        logits = torch.zeros(*ids.shape, 256)
        for number, row in enumerate(ids.tolist()):
            head = bytes(row[1 : CONTEXT + 1])
            for place, mark in enumerate(self.continuations.get(head, b"")):
                logits[number, CONTEXT + place, mark] = 20.0
        return SimpleNamespace(logits=logits)


def encode(text, *, add_special_tokens=True):
    """One token per byte, 0 first."""
    return {"input_ids": [0] * add_special_tokens + list(text.encode("latin-1"))}


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_model_that_knows(batch):
    """A model that knows what follows gets everything right, one that expects a wrong choice nothing."""
    chance = random.Random(0)
    text = "".join(chance.choice("abcdefgh\n" if n % 9 else "\n") for n in range(20_000))
    asked = items(text, 20)
    right = {item.context.encode(): item.choices[item.answer].encode() for item in asked}
    wrong = {item.context.encode(): item.choices[item.answer - 1].encode() for item in asked}
    assert accuracy(Knowing(right), encode, asked, batch) == 1.0
    assert accuracy(Knowing(wrong), encode, asked, batch) == 0.0


@pytest.mark.slow
def test_padding_changes_nothing(tiny):
    """Items of other lengths beside them do not change what is right."""
    asked = items(TEXT, 6)
    alone = [accuracy(tiny.model, tiny.tokenizer, [item]) for item in asked]
    assert accuracy(tiny.model, tiny.tokenizer, asked) == pytest.approx(sum(alone) / len(asked))


@pytest.mark.slow
def test_tiny(tiny):
    """The embedded model beats guessing, and without its super weight it is worse than with it."""
    asked = items(TEXT, 32)
    intact = accuracy(tiny.model, tiny.tokenizer, asked)
    with zeroed(tiny.model, [SuperWeight(1, 97, 301)]):
        ablated = accuracy(tiny.model, tiny.tokenizer, asked)
    assert intact > 2 * GUESSING
    assert ablated < intact


def test_the_mode_is_restored(random_llama):
    """A model in training mode is asked in evaluation mode and is in training mode again after it."""
    model = copy.deepcopy(random_llama).train()
    seen = []
    model.lm_head.register_forward_hook(lambda module, _args, _out: seen.append(module.training))
    item = Item("a\n", ("b" * 4, "c" * 4, "d" * 4, "e" * 4), 1)
    accuracy(model, lambda text, **_options: {"input_ids": [0, *(ord(mark) % 64 for mark in text)]}, [item])
    assert set(seen) == {False}
    assert model.training
