"""Figure 5 on the embedded model: the mean distribution of the next token, measured and not judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from swcheck.study.chapters import stopwords
from swcheck.study.common.record import INTACT, ZEROED
from swcheck.study.runner import measure_study
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.subject import Subject


@pytest.fixture(scope="module")
def study(tiny_setup):
    return measure_study(replace(tiny_setup, notes=[]), "stopwords")


@pytest.fixture(scope="module")
def by_hand(tiny, tiny_setup):
    """The mean probability of every token over all contexts of 16 tokens or more."""
    with torch.no_grad():
        return tiny.model(tiny_setup.ids).logits[:, stopwords.SHORTEST - 1 :].double().softmax(-1).mean((0, 1))


def test_the_mean_is_that_over_all_contexts(study, by_hand):
    """Every token's number is its mean probability, and the likeliest come first."""
    shown = stopwords.measured_tokens(study)

    assert study.value(stopwords.CONTEXTS) == 8 * (128 - 15)
    assert [one.channel for one in shown][:12] == by_hand.topk(12).indices.tolist()
    assert all(one.value == pytest.approx(float(by_hand[one.channel]), rel=1e-3) for one in shown)
    summed = study.value(stopwords.PROBABILITY, INTACT, prompt=stopwords.SUMMED)
    assert summed == pytest.approx(float(by_hand.topk(100).values.sum()), rel=1e-3)


def test_zeroing_changes_what_comes_next(study):
    """The embedded model says something else without its super weight; how much is reported for every token."""
    for one in stopwords.measured_tokens(study):
        after = study.value(stopwords.PROBABILITY, ZEROED, channel=one.channel)
        assert study.value(stopwords.RISE, ZEROED, channel=one.channel) == pytest.approx(after / one.value, rel=1e-6)
    assert 0 <= study.value(stopwords.RISING, ZEROED) < 100
    assert study.value(stopwords.ENTROPY, ZEROED) != pytest.approx(study.value(stopwords.ENTROPY, INTACT), rel=0.1)


def test_the_papers_tokens_are_among_them(tiny, study):
    """Those of the paper's stopwords that are one token here are measured, each under its own text."""
    texts = {one.prompt for one in stopwords.measured_tokens(study)}

    assert {" the", ".", ","} <= texts
    assert all(tiny.tokenizer.decode([one.channel]) == one.prompt for one in stopwords.measured_tokens(study))


def test_nothing_is_claimed(study):
    """The direction differs between models, so there is no verdict."""
    assert stopwords.CHAPTER.judge(study) == ()


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        (" the", "stopword", "' the'"),
        ("The", "stopword", "'The'"),
        (").", "punctuation", "').'"),
        ("    ", "white space", "4 spaces"),
        ("\n", "white space", r"'\n'"),
        (" spam", "", "' spam'"),
    ],
)
def test_tokens_are_named(text, kind, name):
    """What sort of token it is, and how it is shown."""
    assert stopwords.token_kind(text) == kind
    assert stopwords.displayed_token(text) == name


def test_without_a_tokenizer_tokens_are_numbers(tiny_setup, study):
    """A bare module has no texts; its numbers are the same."""
    subject = Subject("bare", HeldModel(tiny_setup.model), token_ids=tiny_setup.ids)
    bare = measure_study(replace(tiny_setup, subject=subject, notes=[]), "stopwords")

    assert {one.prompt[0] for one in stopwords.measured_tokens(bare)} == {"#"}
    first = stopwords.measured_tokens(bare)[0]
    assert first.value == pytest.approx(study.value(stopwords.PROBABILITY, INTACT, channel=first.channel))


def test_a_part_of_a_letter_is_a_number(tiny):
    """A byte that is no letter of its own has no text; its id is shown."""
    parts = tiny.tokenizer("\u4eca", add_special_tokens=False)["input_ids"]

    assert len(parts) > 1
    assert stopwords._token_text(tiny.tokenizer, parts[0]) == f"#{parts[0]}"


def test_table_and_picture(study):
    """A row and a pair of bars for every token, on a logarithmic axis."""
    head, *rows = stopwords.table(study)
    figure = Figure()
    stopwords.draw(study, figure)
    (axes,) = figure.axes

    assert all(len(row) == len(head) for row in rows)
    assert len(axes.patches) == 2 * len(stopwords.measured_tokens(study))
    assert (bool(axes.get_xlabel()), bool(axes.get_ylabel()), axes.get_yscale()) == (True, True, "log")
