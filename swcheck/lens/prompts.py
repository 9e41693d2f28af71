"""How a prompt becomes tokens, how it is shown, and how a failing one is made small.

A prompt comes with BOS, without, or in a chat template, and never with two of them. Several are one batch, padded on the
right: under causal masking that changes nothing to their left, and nobody's position moves.

A failing prompt is not shrunk by hypothesis, which tries one prompt at a time and hundreds of them, each a pass of two
models. Under causal masking a token knows nothing of what follows, so all behind the sink is cut without any pass; what
stands before it is taken away piece by piece, all pieces of one size tried in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import torch

from swcheck.base.errors import OptionError
from swcheck.base.records import Prompt
from swcheck.lens.tokens import adds_bos

PASSES: Final = 12
"""How often at most a failing prompt is tried without some of its pieces; halving reaches 4,096 tokens in as many."""

Ids = tuple[int, ...]


def as_prompt(prompt: str | Prompt) -> Prompt:
    """A plain prompt where only its text is given; raises ``OptionError`` for what is neither."""
    if not isinstance(prompt, str | Prompt):
        raise OptionError("a prompt", repr(prompt), 'a text, or swcheck.Prompt("...", form="bare")')
    return prompt if isinstance(prompt, Prompt) else Prompt(prompt)


def encoded(tokenizer: Any, prompt: Prompt) -> Ids:
    """Its token ids, with one BOS at most; nothing where the text has no token in this form."""
    text, added = prompt.text, prompt.form != "bare"
    if prompt.form == "chat" and getattr(tokenizer, "chat_template", None):
        with suppress(Exception):  # a template may refuse a prompt, and then it is an ordinary one
            turn = [{"role": "user", "content": text}]
            text, added = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)), False
    ids = tuple(int(number) for number in tokenizer(text, add_special_tokens=added)["input_ids"])
    bos = tokenizer.bos_token_id
    while len(ids) > 1 and ids[0] == ids[1] == bos is not None:
        ids = ids[1:]
    return ids


def padded(tokenizer: Any, prompts: Sequence[Prompt], longest: int | None = None) -> tuple[torch.Tensor, Ids]:
    """The prompts as one tensor, padded on the right, int64 ``(B, T)``, and the true length of each, 0 for an empty one.

    Each keeps its first ``longest`` tokens.
    """
    rows = [encoded(tokenizer, prompt)[:longest] for prompt in prompts]
    width = max((len(row) for row in rows), default=0)
    ids = [row + (row[-1] if row else 0,) * (width - len(row)) for row in rows]
    return torch.tensor(ids, dtype=torch.int64).reshape(len(rows), width), tuple(len(row) for row in rows)


def decoded(tokenizer: Any, ids: Ids) -> Prompt | None:
    """The prompt that gives exactly these ids, None where no text does."""
    choices = [Prompt(_text(tokenizer, ids), "bare")]
    if ids and ids[0] == tokenizer.bos_token_id and adds_bos(tokenizer):
        choices.insert(0, Prompt(_text(tokenizer, ids[1:])))
    return next((choice for choice in choices if encoded(tokenizer, choice) == ids), None)


def _text(tokenizer: Any, ids: Ids) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def displayed(tokenizer: Any, prompt: Prompt) -> str:
    """The prompt as a report names it: quoted, control characters escaped, with its form where that is not the usual."""
    if not prompt.text and (tokenizer is None or encoded(tokenizer, prompt)):
        return "BOS alone"
    if prompt.form == "chat" and (tokenizer is None or getattr(tokenizer, "chat_template", None)):
        return f"{prompt.text!r} as a chat"
    return f"{prompt.text!r} without BOS" if is_bare(tokenizer, prompt) else repr(prompt.text)


def is_bare(tokenizer: Any, prompt: Prompt) -> bool:
    """Whether a prompt lacks the BOS that the tokenizer would add; without a tokenizer, what its form says."""
    if tokenizer is None:
        return prompt.form == "bare"
    return adds_bos(tokenizer) and encoded(tokenizer, prompt)[:1] != (tokenizer.bos_token_id,)


def shortest_start(tokenizer: Any, prompt: Prompt, position: int) -> Prompt:
    """The shortest beginning of the prompt that holds the token at ``position`` and can be written as text.

    Causal masking makes it as good as the whole: what is read at this token is the same number.
    """
    ids = () if tokenizer is None else encoded(tokenizer, prompt)
    for length in range(position + 1, len(ids)):
        found = decoded(tokenizer, ids[:length])
        if found is not None:
            return found
    return prompt


def shrunk(ids: Ids, fails: Callable[[list[Ids]], list[bool]], passes: int = PASSES) -> Ids:
    """A failing list of ids without all that it can spare (delta debugging, the pieces of one size in one batch).

    ``fails`` says of each of several lists whether it fails, and is called ``passes`` times at most. The first that
    fails is kept, so that the same failure always shrinks to the same prompt.
    """
    size = (len(ids) + 1) // 2
    for _ in range(passes):
        starts = range(0, len(ids), size)
        smaller = [kept for start in starts if (kept := ids[:start] + ids[start + size :])]
        found = next((kept for kept, failed in zip(smaller, fails(smaller), strict=True) if failed), None)
        if found is not None:
            ids, size = found, min(size, (len(found) + 1) // 2)
        elif size > 1:
            size = (size + 1) // 2
        else:
            break
        if len(ids) < 2:
            break
    return ids
