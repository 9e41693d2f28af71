"""Prompts: one BOS at most, right padding, the same ids back, and shrinking that keeps the failure."""

from __future__ import annotations

import resource
import signal
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck import Prompt
from swcheck.base.errors import CheckpointError
from swcheck.lens.prompts import (
    SHRINK_BATCHES,
    as_prompt,
    encode_batch,
    encode_prompt,
    is_bare,
    prompt_for_ids,
    prompt_label,
    shortest_start,
    shrink_ids,
)
from swcheck.strategies import prompts
from swcheck.superweights.measurements.prompt_readings import prompt_batches, read_prompts
from swcheck.superweights.measurements.residual_stream import super_activations
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory
from swcheck.superweights.subject.subject import Subject
from tests import planted

TEMPLATE = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"


@pytest.fixture(scope="module")
def chatty():
    """A tokenizer with a chat template that writes BOS itself."""
    found = planted.tokenizer()
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def plain():
    return planted.tokenizer()


@pytest.fixture(scope="module")
def bare():
    return planted.tokenizer(bos=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ messages[0]['content'] * 1000000 }}",
    ],
)
@pytest.mark.parametrize("in_thread", [False, True])
def test_a_template_that_multiplies_is_refused(monkeypatch, template, in_thread):
    """A template that takes too much time, memory or characters is an error in words, and leaves no limit behind."""
    if in_thread and "** (" in template:
        pytest.skip("a single call into C is stopped in the main thread alone")
    monkeypatch.setattr("swcheck.lens.prompts.RENDER_SECONDS", 0.5)
    odd = planted.tokenizer()
    odd.chat_template = template
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    found = []

    def ask():
        with pytest.raises(CheckpointError, match="a prompt in the chat template") as caught:
            encode_prompt(odd, Prompt("def f", "chat"))
        found.append(caught.value.found)

    worker = threading.Thread(target=ask)
    worker.run() if not in_thread else (worker.start(), worker.join())
    assert "takes more than" in found[0] or "it makes" in found[0]
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before


def test_a_template_that_refuses_a_prompt_gives_a_plain_one(plain):
    """What a template raises of its own makes the prompt a plain one, as without a template."""
    odd = planted.tokenizer()
    odd.chat_template = "{{ raise_exception('no user here') }}"
    assert encode_prompt(odd, Prompt("def", "chat")) == encode_prompt(plain, Prompt("def"))


def test_forms(plain, bare, chatty):
    """Plain has BOS where the tokenizer adds one, bare has none, a chat is the template's own."""
    assert encode_prompt(plain, Prompt("def"))[0] == 0
    assert (
        encode_prompt(plain, Prompt("def", "bare"))
        == encode_prompt(plain, Prompt("def"))[1:]
        == encode_prompt(bare, Prompt("def"))
    )
    assert chatty.decode(encode_prompt(chatty, Prompt("def", "chat"))) == "<s>[INST] def [/INST]"
    assert encode_prompt(plain, Prompt("def", "chat")) == encode_prompt(plain, Prompt("def"))
    assert as_prompt("def") == Prompt("def")


@pytest.mark.parametrize("form", ["plain", "bare", "chat"])
def test_there_is_never_a_second_bos(plain, chatty, form):
    """Neither a template that writes one nor a text that begins with one doubles it."""
    for tokenizer in (plain, chatty):
        for text in ("def", "<s>def", "<s><s>def"):
            assert encode_prompt(tokenizer, Prompt(text, form))[:2].count(0) <= 1


def test_a_template_that_refuses_is_left_out(plain):
    """A prompt that the template does not take is an ordinary one."""
    refusing = planted.tokenizer()
    refusing.chat_template = "{{ raise_exception('no user') }}"
    assert encode_prompt(refusing, Prompt("def", "chat")) == encode_prompt(plain, Prompt("def"))


def test_padding_is_on_the_right(plain):
    """Rows keep their beginning, short ones repeat their last token, an empty one has length 0, long ones are cut."""
    ids, lengths = encode_batch(plain, [Prompt("def spam"), Prompt("", "bare"), Prompt("x " * 50)], 8)

    assert lengths == (len(encode_prompt(plain, Prompt("def spam"))), 0, 8)
    assert ids.shape == (3, 8)
    assert tuple(ids[0, : lengths[0]].tolist()) == encode_prompt(plain, Prompt("def spam"))
    assert len(set(ids[0, lengths[0] - 1 :].tolist())) == 1
    assert encode_batch(plain, [Prompt("", "bare")])[0].shape == (1, 0)


@pytest.mark.slow
@given(text=prompts(), form=st.sampled_from(["plain", "bare"]))
def test_what_is_decoded_gives_the_same_ids(text, form):
    """A prompt found for some ids encodes to exactly these."""
    tokenizer = planted.tokenizer()
    ids = encode_prompt(tokenizer, Prompt(text, form))
    found = prompt_for_ids(tokenizer, ids)
    assert found is not None
    assert encode_prompt(tokenizer, found) == ids


def test_ids_that_no_text_gives(plain):
    """Half a character is no prompt."""
    ids = encode_prompt(plain, Prompt("你", "bare"))
    assert prompt_for_ids(plain, ids[:1]) is None


def test_cut(plain):
    """The beginning that holds the token, never inside a character; the whole where nothing shorter can be written."""
    assert shortest_start(plain, Prompt("alpha. beta"), 0) == Prompt("")
    assert shortest_start(plain, Prompt("alpha. beta", "bare"), 0).form == "bare"
    assert shortest_start(plain, Prompt("你好"), 1).text in {"你", "你好"}
    assert shortest_start(plain, Prompt("x"), 5) == Prompt("x")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt("a\n"), r"'a\n'"),
        (Prompt("a", "bare"), "'a' without BOS"),
        (Prompt(""), "BOS alone"),
        (Prompt("a", "chat"), "'a' as a chat"),
    ],
)
def test_how_prompts_are_shown(chatty, prompt, words):
    """Quoted and escaped, with the form where it is not the usual one."""
    assert prompt_label(chatty, prompt) == words


def test_bare_means_that_something_is_missing(plain, bare):
    """A tokenizer that adds no BOS has no bare prompts."""
    assert is_bare(plain, Prompt("a", "bare"))
    assert not is_bare(plain, Prompt("a"))
    assert not is_bare(bare, Prompt("a", "bare"))
    assert prompt_label(bare, Prompt("a", "bare")) == "'a'"


@given(
    ids=st.lists(st.integers(0, 9), min_size=1, max_size=60).map(tuple), needed=st.sets(st.integers(0, 9), max_size=3)
)
def test_shrinking_keeps_the_failure_and_nothing_else(ids, needed):
    """With passes enough only what is needed is left; with few it fails still, is no longer, and is what it was before."""
    calls = []

    def fails(several):
        calls.append(len(several))
        return [needed <= set(kept) for kept in several]

    if needed <= set(ids):
        small = shrink_ids(ids, fails, passes=1000)
        assert needed <= set(small)
        assert len(small) == max(1, len(needed))
        calls.clear()
        few = shrink_ids(ids, fails)
        assert needed <= set(few)
        assert len(calls) <= SHRINK_BATCHES
        assert few == shrink_ids(ids, fails)


def test_readings_do_not_depend_on_the_batch():
    """A prompt reads the same alone, beside longer ones, and in batches of one."""
    reference = Subject(
        "m", HeldModel(planted.sinking(planted.on_first_delimiter)), planted.tokenizer(bos=False), memory=Memory()
    )
    place = super_activations(reference, [planted.SINK])[0]
    texts = [Prompt(text) for text in ("a.", "x " * 30 + "!", "no", "\n", "one: two")]
    ids, lengths = encode_batch(reference.tokenizer, texts)

    together = read_prompts(reference, place, ids, lengths)
    alone = [read_prompts(reference, place, ids[n : n + 1, :length], [length])[0] for n, length in enumerate(lengths)]

    assert [reading.position for reading in together] == [reading.position for reading in alone]
    assert torch.allclose(*(torch.tensor([r.value for r in several]) for several in (together, alone)), atol=1e-4)
    parts = list(prompt_batches(lengths, 8))
    assert sorted(number for batch in parts for number in batch) == list(range(len(texts)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch[-1]] <= 8 for batch in parts)
