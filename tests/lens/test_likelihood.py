"""Nats and tokens: against transformers' own loss, against arithmetic, and against texts that cannot be measured on."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.errors import NotFiniteError, OptionError, TextError
from swcheck.lens import likelihood
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.likelihood import perplexity, token_nats
from swcheck.lens.tokens import SHORTEST_TEXT, adds_bos, check_token_ids, token_windows, vocabulary_size

IDS = torch.tensor([[0, 5, 9, 33, 2, 17], [7, 1, 60, 2, 2, 8], [3, 4, 5, 6, 7, 8]])
TOKENS = st.lists(st.lists(st.integers(0, 63), min_size=6, max_size=6), min_size=1, max_size=5)


class Characters:
    """A tokenizer with one token per character; it puts BOS first only if told so, whatever its flags say."""

    bos_token_id = 0
    add_bos_token = True

    def __init__(self, *, bos):
        self.bos = bos

    def __call__(self, text, *, add_special_tokens=True):
        prefix = [0] if self.bos and add_special_tokens else []
        return {"input_ids": prefix + [1 + ord(mark) % 63 for mark in text]}


class NoBos(Characters):
    """A tokenizer that knows no BOS."""

    bos_token_id = None


class EndsOnly(Characters):
    """A tokenizer whose BOS and end of text are one token, which it puts at the end."""

    def __call__(self, text, *, add_special_tokens=True):
        ids = super().__call__(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": ids + [0] * add_special_tokens}


class Numbers(Characters):
    """A tokenizer that has an id of its own for each character from 1000 on."""

    def __call__(self, text, *, add_special_tokens=True):
        return {"input_ids": [0] * (self.bos and add_special_tokens) + [ord(mark) - 999 for mark in text]}


# --- likelihood --------------------------------------------------------------------------------------------------------


def test_equals_transformers_loss(random_llama):
    """The mean is transformers' own loss on the same tokens, and the count is B x (T - 1)."""
    with torch.no_grad():
        loss = random_llama(IDS, labels=IDS).loss.item()
    found = perplexity(random_llama, IDS)
    assert found.mean == pytest.approx(loss, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-6)
    assert found.tokens == 15


def test_uniform_logits_have_the_perplexity_of_the_vocabulary(random_llama):
    """A model that finds all tokens equally likely is as good as guessing: its perplexity is the size of the vocabulary."""
    model = copy.deepcopy(random_llama)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, IDS).perplexity == pytest.approx(64, rel=1e-6)


@given(rows=TOKENS)
def test_nats_of_single_tokens(random_llama, rows):
    """Each token's nats are minus the log of its softmax, float64 on the CPU, one per predicted token."""
    ids = torch.tensor(rows)
    nats = token_nats(random_llama, ids)
    assert (nats.dtype, nats.shape) == (torch.float64, (len(rows), 5))
    with torch.no_grad():
        logs = random_llama(ids).logits.double().log_softmax(-1)
    expected = -logs[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    assert torch.allclose(nats, expected, rtol=1e-5)


@given(rows=TOKENS, at_once=st.sampled_from([1, 6 * 64 * 2, 2**25]))
def test_splitting_changes_no_sum(random_llama, rows, at_once):
    """However many windows are scored in a pass, and however a batch is split, nats and tokens add up to the same."""
    ids = torch.tensor(rows)
    whole = perplexity(random_llama, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "LOGITS_AT_ONCE", at_once)
        parted = perplexity(random_llama, ids)
    first, *rest = (perplexity(random_llama, ids[n : n + 1]) for n in range(len(ids)))
    added = sum(rest, start=first)
    for other in (parted, added):
        assert other.tokens == whole.tokens
        assert other.nats == pytest.approx(whole.nats, rel=1e-6)


def test_windows_per_pass(random_llama, monkeypatch):
    """A pass holds as many windows as logits are allowed for, and one where not even one fits."""
    rows = []
    handle = random_llama.model.embed_tokens.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    for allowed in (6 * 64 * 2, 6 * 64 * 3, 1):
        monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", allowed)
        token_nats(random_llama, IDS)
    handle.remove()
    assert rows == [2, 1, 3, 1, 1, 1]


@given(rows=TOKENS)
def test_a_model_that_guesses(random_llama, rows):
    """A model whose logits are all equal has the perplexity of its vocabulary."""
    model = copy.deepcopy(random_llama)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, torch.tensor(rows)).perplexity == pytest.approx(64, rel=1e-6)


def test_half_precision(random_llama):
    """A model in bfloat16 answers in bfloat16; nothing is rounded to it after that."""
    model = copy.deepcopy(random_llama).to(torch.bfloat16)
    with torch.no_grad():
        logits = model(IDS).logits
    assert logits.dtype == torch.bfloat16
    exact = -logits.double().log_softmax(-1)[:, :-1].gather(2, IDS[:, 1:, None])[..., 0]
    assert torch.allclose(token_nats(model, IDS), exact, rtol=1e-5)


def test_not_finite(random_llama):
    """A model that answers NaN has no perplexity, while the nats of its tokens are passed on as they are."""
    model = copy.deepcopy(random_llama)
    with torch.no_grad():
        model.model.embed_tokens.weight[33] = math.nan
    nats = token_nats(model, IDS)
    assert nats[0].isnan().all()
    assert torch.equal(nats[1:], token_nats(random_llama, IDS)[1:])
    words = "perplexity on 15 tokens\n  found: 5 of them have a likelihood that is NaN or infinite\n  try: .*bfloat16"
    with pytest.raises(NotFiniteError, match=words):
        perplexity(model, IDS)


# --- the model's mode --------------------------------------------------------------------------------------------------


def test_modes_are_restored(random_llama):
    """In the block every module evaluates without gradients; after it each has its own former mode, not its parent's."""
    model = copy.deepcopy(random_llama)
    model.train()
    model.model.layers[1].eval()
    model.model.layers[2].mlp.training = False
    before = {name: module.training for name, module in model.named_modules()}
    assert set(before.values()) == {True, False}
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise KeyError
    assert torch.is_grad_enabled()
    assert {name: module.training for name, module in model.named_modules()} == before
    perplexity(model, IDS)
    assert {name: module.training for name, module in model.named_modules()} == before


# --- token ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "found", "attempt"),
    [
        ([[1, 2]], "list", "of this kind"),
        (None, "NoneType", "of this kind"),
        (torch.tensor([1, 2]), "torch.int64 (2,)", "has this shape"),
        (torch.tensor([[1, 2]], dtype=torch.int32), "torch.int32 (1, 2)", "has this shape"),
        (torch.tensor([[1.0, 2.0]]), "torch.float32 (1, 2)", "has this shape"),
        (torch.zeros(0, 5, dtype=torch.int64), "shape (0, 5): there is no token to predict", "give a longer text"),
        (torch.tensor([[1]]), "shape (1, 1): there is no token to predict", "give a longer text"),
    ],
    ids=["list", "none", "one dimension", "int32", "float", "no row", "one token"],
)
@pytest.mark.parametrize("score", [perplexity, token_nats])
def test_ids_of_another_kind(random_llama, score, ids, found, attempt):
    """Anything but int64 of shape (B, T) with a token to predict is refused, with what it is."""
    words = f"token ids, int64 (B, T) with T >= 2\n  found: {found}\n  try: "
    with pytest.raises(TextError, match=rf"^{re.escape(words)}.*{attempt}$"):
        score(random_llama, ids)


@pytest.mark.parametrize(("ids", "found"), [([[1, 64]], "ids from 1 to 64"), ([[-1, 5]], "ids from -1 to 5")])
def test_ids_outside_the_vocabulary(random_llama, ids, found):
    """Ids that the model does not have are refused, with their range and the model's."""
    words = f"token ids from 0 to 63, the model's vocabulary\n  found: {found}\n  try: use the tokenizer that belongs"
    with pytest.raises(TextError, match=words):
        perplexity(random_llama, torch.tensor(ids))


def test_ids_of_an_unknown_vocabulary():
    """Where the vocabulary is unknown only negative ids are known to lie outside."""
    check_token_ids(torch.tensor([[1, 10**9]]), None)
    with pytest.raises(TextError, match=r"token ids from 0 to \?, the model's vocabulary\n  found: ids from -1 to 2"):
        check_token_ids(torch.tensor([[-1, 2]]), None)


def test_one_id_may_do():
    """Who predicts nothing may ask for ids of one token."""
    check_token_ids(torch.tensor([[1]]), 2, shortest=1)
    with pytest.raises(TextError, match=r"with T >= 1\n  found: shape \(1, 0\)"):
        check_token_ids(torch.zeros(1, 0, dtype=torch.int64), 2, shortest=1)


def test_vocabulary(random_llama):
    """The vocabulary is the size of the input embedding, None where a model has none."""
    assert vocabulary_size(random_llama) == 64
    assert vocabulary_size(torch.nn.Identity()) is None


# --- windows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokenizer", "adds"),
    [
        (Characters(bos=True), True),
        (Characters(bos=False), False),
        (NoBos(bos=False), False),
        (EndsOnly(bos=False), False),
    ],
    ids=["adds", "says so only", "knows none", "at the end"],
)
def test_adds_bos(tokenizer, adds):
    """Whether a tokenizer adds BOS is decided by what it does to a text, not by its flags."""
    assert adds_bos(tokenizer) == adds
    ids = token_windows(tokenizer, "some text " * 100, count=4, length=50)
    assert ids[:, 0].eq(0).all() == adds


def test_tiny_adds_bos(tiny):
    """The embedded model's tokenizer adds BOS."""
    assert adds_bos(tiny.tokenizer)


@given(length=st.integers(2, 60), count=st.integers(1, 12), tokens=st.integers(SHORTEST_TEXT, 900), bos=st.booleans())
def test_windows(length, count, tokens, bos):
    """Windows are pieces of the text, apart, from its beginning to its end, as many and as long as asked or as fit."""
    text = "".join(chr(1000 + number) for number in range(tokens))
    ids = token_windows(Numbers(bos=bos), text, count=count, length=length)
    body = min(length - bos, tokens)
    assert ids.dtype == torch.int64
    assert ids.shape == (max(1, min(count, tokens // body)), body + bos)
    assert ids[:, 0].eq(0).all() or not bos
    pieces = ids[:, int(bos) :] - 1
    starts = pieces[:, 0].tolist()
    assert all(piece.tolist() == list(range(start, start + body)) for piece, start in zip(pieces, starts, strict=True))
    assert starts[0] == 0
    if len(starts) > 1:
        gaps = [after - before for before, after in zip(starts, starts[1:], strict=False)]
        assert min(gaps) >= body
        assert max(gaps) - min(gaps) <= 1
        assert starts[-1] == tokens - body


def test_windows_of_tiny(tiny):
    """Windows of the embedded model's text are ids it can be measured on, each with BOS at its head and nowhere else."""
    ids = token_windows(tiny.tokenizer, tiny.text, count=4, length=64)
    assert ids.shape == (4, 64)
    assert ids.eq(0).sum(1).tolist() == [1, 1, 1, 1]
    assert len({tuple(row) for row in ids.tolist()}) == 4
    assert perplexity(tiny.model, ids).perplexity < 64


@pytest.mark.parametrize("text", ["", "x" * (SHORTEST_TEXT - 1)])
def test_a_text_too_short(text):
    """A text of fewer tokens than say anything is refused, with its length."""
    words = (
        f"of 32 tokens at least\n  found: {len(text)} tokens in {len(text)} characters\n  try: .*--swcheck-text=FILE"
    )
    with pytest.raises(TextError, match=words):
        token_windows(Characters(bos=True), text, count=1, length=16)


@pytest.mark.parametrize(("count", "length"), [(0, 16), (4, 1)])
def test_windows_of_nothing(count, length):
    """No window, or windows without a token to predict, are refused."""
    words = f"{count} windows of {length} tokens\n  found: nothing to predict\n  try: 1 window of 2 tokens, or more"
    with pytest.raises(OptionError, match=words):
        token_windows(Characters(bos=True), "x" * 100, count=count, length=length)
