"""Encodes prompts, names them in reports, and shortens failing ones.

A prompt is encoded with BOS, without BOS, or in a chat template, and never with two BOS tokens. Several prompts form one
batch, padded on the right: under causal masking padding changes nothing to its left, and no token changes its position.

A failing prompt is not shrunk by hypothesis, which would try one prompt at a time, hundreds of them, each with a forward
pass of two models. Under causal masking a token does not depend on later tokens, so everything behind the sink is cut
without a pass. What stands before it is removed piece by piece, with all pieces of one size tried in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from swcheck.base.errors import CheckpointError, OptionError
from swcheck.base.isolation import bounded
from swcheck.base.records import Prompt
from swcheck.lens.tokens import adds_bos

SHRINK_BATCHES: Final = 12
"""At most this many batches are tried to shorten a failing prompt; 12 halvings of 4,096 tokens reach single tokens."""

RENDER_SECONDS: Final = 5.0
RENDER_BYTES: Final = 2**29
LONGEST_CHAT: Final = 1_000_000
"""The most time, memory and characters of one prompt in a chat template; published ones take milliseconds."""

Ids = tuple[int, ...]


def as_prompt(prompt: str | Prompt) -> Prompt:
    """Return ``prompt`` as a record; a text becomes a plain prompt. Raises ``OptionError`` for anything else."""
    if not isinstance(prompt, str | Prompt):
        raise OptionError("a prompt", repr(prompt), 'a text, or swcheck.Prompt("...", form="bare")')
    return prompt if isinstance(prompt, Prompt) else Prompt(prompt)


def encode_prompt(tokenizer: Any, prompt: Prompt) -> Ids:
    """Return the token ids of a prompt, with one BOS at most; empty where the text has no token in this form.

    A chat prompt is encoded as a plain one where the tokenizer has no chat template, or the template refuses it. Raises
    ``CheckpointError`` for a template that takes too much time or memory, or multiplies the text.
    """
    text, special = prompt.text, prompt.form != "bare"
    rendered = _rendered_chat(tokenizer, text) if prompt.form == "chat" else None
    if rendered is not None:
        text, special = rendered, False
    ids = tuple(int(number) for number in tokenizer(text, add_special_tokens=special)["input_ids"])
    bos = tokenizer.bos_token_id
    while len(ids) > 1 and ids[0] == ids[1] == bos is not None:
        ids = ids[1:]
    return ids


def _rendered_chat(tokenizer: Any, text: str) -> str | None:
    """Return a user's turn in the tokenizer's chat template; None where there is none, or it refuses the text.

    A template is a program that comes with the checkpoint. Transformers renders it in jinja's sandbox, which bounds
    neither time nor memory.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    turn, found = [{"role": "user", "content": text}], ""
    try:
        with bounded(RENDER_SECONDS, RENDER_BYTES):
            rendered = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        if len(rendered) <= LONGEST_CHAT:
            return rendered
        found = f"it makes {len(rendered):,} characters of {len(text):,}, at most {LONGEST_CHAT:,} are taken"
    except (TimeoutError, MemoryError, RecursionError) as error:
        found = f"rendering it takes more than {RENDER_SECONDS:g} s or {RENDER_BYTES:,} bytes ({type(error).__name__})"
    except Exception:  # templates raise errors of any class for prompts that they refuse
        return None
    raise CheckpointError("a prompt in the chat template of this tokenizer", found, "repair its chat_template")


def encode_batch(tokenizer: Any, prompts: Sequence[Prompt], longest: int | None = None) -> tuple[torch.Tensor, Ids]:
    """Return the token ids of the prompts, int64 ``(B, T)``, padded on the right, and the true length of each.

    Each prompt keeps its first ``longest`` tokens, or all for None. The length of a prompt without a token is 0.
    """
    rows = [encode_prompt(tokenizer, prompt)[:longest] for prompt in prompts]
    width = max((len(row) for row in rows), default=0)
    ids = [row + (row[-1] if row else 0,) * (width - len(row)) for row in rows]
    return torch.tensor(ids, dtype=torch.int64).reshape(len(rows), width), tuple(len(row) for row in rows)


def prompt_for_ids(tokenizer: Any, ids: Ids) -> Prompt | None:
    """Return a prompt that is encoded as exactly these ids, None where there is none."""
    choices = [Prompt(_decoded_text(tokenizer, ids), "bare")]
    if ids and ids[0] == tokenizer.bos_token_id and adds_bos(tokenizer):
        choices.insert(0, Prompt(_decoded_text(tokenizer, ids[1:])))
    return next((choice for choice in choices if encode_prompt(tokenizer, choice) == ids), None)


def _decoded_text(tokenizer: Any, ids: Ids) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def prompt_label(tokenizer: Any, prompt: Prompt) -> str:
    """Return the name of a prompt in reports: its text in quotes, control characters escaped.

    The form is added where it is not the usual one. ``tokenizer`` None is allowed.
    """
    if not prompt.text and (tokenizer is None or encode_prompt(tokenizer, prompt)):
        return "BOS alone"
    if prompt.form == "chat" and (tokenizer is None or getattr(tokenizer, "chat_template", None)):
        return f"{prompt.text!r} as a chat"
    return f"{prompt.text!r} without BOS" if is_bare(tokenizer, prompt) else repr(prompt.text)


def is_bare(tokenizer: Any, prompt: Prompt) -> bool:
    """Return whether a prompt lacks the BOS that the tokenizer would add; without a tokenizer its form decides."""
    if tokenizer is None:
        return prompt.form == "bare"
    return adds_bos(tokenizer) and encode_prompt(tokenizer, prompt)[:1] != (tokenizer.bos_token_id,)


def shortest_start(tokenizer: Any, prompt: Prompt, position: int) -> Prompt:
    """Return the shortest beginning of a prompt that contains the token at ``position`` and that a text can express.

    Under causal masking the values at this token are the same as in the whole prompt. Returns ``prompt`` itself where
    no shorter beginning can be expressed, or without a tokenizer.
    """
    ids = () if tokenizer is None else encode_prompt(tokenizer, prompt)
    for length in range(position + 1, len(ids)):
        found = prompt_for_ids(tokenizer, ids[:length])
        if found is not None:
            return found
    return prompt


def shrink_ids(ids: Ids, fails: Callable[[list[Ids]], list[bool]], passes: int = SHRINK_BATCHES) -> Ids:
    """Remove from the ids of a failing prompt what is not needed for the failure, and return the rest.

    This is delta debugging with all pieces of one size in one batch. ``fails`` returns for each of several lists of ids
    whether it fails; it is called ``passes`` times at most. Of several shorter lists that fail the first is taken, so
    that the same failure always shrinks to the same prompt.
    """
    size = (len(ids) + 1) // 2
    for _ in range(passes):
        starts = range(0, len(ids), size)
        shorter = [without for start in starts if (without := ids[:start] + ids[start + size :])]
        found = next((without for without, failed in zip(shorter, fails(shorter), strict=True) if failed), None)
        if found is not None:
            ids, size = found, min(size, (len(found) + 1) // 2)
        elif size > 1:
            size = (size + 1) // 2
        else:
            break
        if len(ids) < 2:
            break
    return ids
