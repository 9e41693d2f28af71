"""A zero-shot task made from held-out source: which of four pieces of code comes next?

The context is a few lines, the right answer the piece that follows, the wrong ones pieces from elsewhere in the same
text. A piece is scored by how much likelier it is after the context than on its own (mutual information; Holtzman et
al. 2021, arXiv 2104.08315), since pieces of code differ more in themselves than by their context. Guessing gets a
quarter. Items are drawn from a seed, at line beginnings, where tokens do not merge.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from swcheck.base.errors import TextError
from swcheck.lens.anatomy import device_of
from swcheck.lens.likelihood import evaluating

if TYPE_CHECKING:
    from torch import nn

CONTEXT: Final = 200
PIECE: Final = 24
CHOICES: Final = 4
GUESSING: Final = 1 / CHOICES


@dataclass(frozen=True)
class Item:
    """One question: ``choices[answer]`` is what follows ``context``."""

    context: str
    choices: tuple[str, ...]
    answer: int


def items(text: str, count: int = 400, seed: int = 0) -> list[Item]:
    """``count`` different items drawn from ``text``. Raises ``TextError`` where it has not enough places for them."""
    chance = random.Random(seed)
    starts = [i + 1 for i, mark in enumerate(text) if mark == "\n" and CONTEXT < i < len(text) - PIECE - 1]
    starts = [start for start in starts if len(text[start : start + PIECE].strip()) > PIECE // 2]
    if not 0 < count <= len(starts):
        raise TextError(f"{count} items of a cloze task", f"{len(starts)} places to ask at", "give a longer text")
    asked = chance.sample(starts, count)
    made = []
    for start in asked:
        away = [other for other in starts if abs(other - start) > CONTEXT + PIECE]
        if len(away) < CHOICES - 1:
            raise TextError("a cloze task", f"{len(away)} places for {CHOICES - 1} wrong choices", "give a longer text")
        wrong = chance.sample(away, CHOICES - 1)
        answer = chance.randrange(CHOICES)
        places = [*wrong[:answer], start, *wrong[answer:]]
        choices = tuple(text[place : place + PIECE] for place in places)
        made.append(Item(text[start - CONTEXT : start], choices, answer))
    return made


def accuracy(model: nn.Module, tokenizer: Any, asked: Sequence[Item], batch: int = 64) -> float:
    """The share of items whose right choice gains most likelihood from the context.

    Raises ``TextError`` where there is no item, or no BOS that a piece on its own could stand behind.
    """
    if not tokenizer("")["input_ids"]:
        raise TextError("the likelihood of a piece on its own", "no token before it", "use a tokenizer that adds BOS")
    if not asked:
        raise TextError("the accuracy of a cloze task", "no item", "draw some from a text: items(text)")
    after = [(item.context, choice) for item in asked for choice in item.choices]
    alone = [("", choice) for _, choice in after]
    with evaluating(model):
        given, bare = (
            [
                score
                for first in range(0, len(rows), batch)
                for score in _scores(model, tokenizer, rows[first : first + batch])
            ]
            for rows in (after, alone)
        )
    gains = [one - other for one, other in zip(given, bare, strict=True)]
    right = 0
    for number, item in enumerate(asked):
        mine = gains[number * CHOICES : (number + 1) * CHOICES]
        right += mine.index(max(mine)) == item.answer
    return right / len(asked)


def _scores(model: nn.Module, tokenizer: Any, rows: Sequence[tuple[str, str]]) -> list[float]:
    """The log-likelihood in nats of each choice after its context; sequences are padded on the right."""
    heads = [tokenizer(context)["input_ids"] for context, _ in rows]
    tails = [tokenizer(choice, add_special_tokens=False)["input_ids"] for _, choice in rows]
    width = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for number, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        ids[number, : len(head) + len(tail)] = torch.tensor(head + tail)
    ids = ids.to(device_of(model))
    logs = functional.log_softmax(model(ids, use_cache=False).logits[:, :-1].float(), -1)
    picked = logs.gather(2, ids[:, 1:, None])[..., 0]
    return [
        float(picked[number, len(head) - 1 : len(head) + len(tail) - 1].sum())
        for number, (head, tail) in enumerate(zip(heads, tails, strict=True))
    ]
