"""A zero-shot task made from held-out source: which of four pieces of code comes next?

The context is a few lines, the right answer the piece that follows, the wrong ones pieces from elsewhere in the same
text. A piece is scored by how much likelier it is after the context than on its own (mutual information; Holtzman et
al. 2021, arXiv 2104.08315), because pieces of code differ more among themselves than by their context. Guessing gets a
quarter. Items are drawn from a seed, at beginnings of lines, where tokens of context and piece do not merge.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from swcheck.base.errors import TextError
from swcheck.lens.architecture.storage import device_of, evaluating

if TYPE_CHECKING:
    from torch import nn

CONTEXT: Final = 200
"""Characters of a context."""
PIECE: Final = 24
"""Characters of a piece."""
CHOICES: Final = 4
GUESSING: Final = 1 / CHOICES


@dataclass(frozen=True)
class Item:
    """One question: ``choices[answer]`` is what follows ``context``."""

    context: str
    choices: tuple[str, ...]
    answer: int


def items(text: str, count: int = 400, seed: int = 0) -> list[Item]:
    """Draw ``count`` different items from ``text``. Raises ``TextError`` if it has too few places for them."""
    generator = random.Random(seed)
    starts = [i + 1 for i, mark in enumerate(text) if mark == "\n" and CONTEXT < i < len(text) - PIECE - 1]
    starts = [start for start in starts if len(text[start : start + PIECE].strip()) > PIECE // 2]
    if not 0 < count <= len(starts):
        raise TextError(f"{count} items of a cloze task", f"{len(starts)} places to ask at", "give a longer text")
    question_starts = generator.sample(starts, count)
    questions = []
    for start in question_starts:
        far = [other for other in starts if abs(other - start) > CONTEXT + PIECE]
        if len(far) < CHOICES - 1:
            raise TextError("a cloze task", f"{len(far)} places for {CHOICES - 1} wrong choices", "give a longer text")
        wrong_places = generator.sample(far, CHOICES - 1)
        answer = generator.randrange(CHOICES)
        choice_starts = [*wrong_places[:answer], start, *wrong_places[answer:]]
        choices = tuple(text[choice_start : choice_start + PIECE] for choice_start in choice_starts)
        questions.append(Item(text[start - CONTEXT : start], choices, answer))
    return questions


def accuracy(model: nn.Module, tokenizer: Any, questions: Sequence[Item], batch: int = 64) -> float:
    """Return the share of items whose right choice gains most likelihood from the context.

    Raises ``TextError`` without an item, or without a BOS that could precede a piece on its own.
    """
    if not tokenizer("")["input_ids"]:
        raise TextError("the likelihood of a piece on its own", "no token before it", "use a tokenizer that adds BOS")
    if not questions:
        raise TextError("the accuracy of a cloze task", "no item", "draw some from a text: items(text)")
    with_context = [(item.context, choice) for item in questions for choice in item.choices]
    without_context = [("", choice) for _, choice in with_context]
    with evaluating(model):
        scores_with, scores_without = (
            [
                score
                for first in range(0, len(rows), batch)
                for score in _scores(model, tokenizer, rows[first : first + batch])
            ]
            for rows in (with_context, without_context)
        )
    gains = [with_score - without_score for with_score, without_score in zip(scores_with, scores_without, strict=True)]
    correct = 0
    for number, item in enumerate(questions):
        item_gains = gains[number * CHOICES : (number + 1) * CHOICES]
        correct += item_gains.index(max(item_gains)) == item.answer
    return correct / len(questions)


def _scores(model: nn.Module, tokenizer: Any, rows: Sequence[tuple[str, str]]) -> list[float]:
    """Return the log-likelihood in nats of each choice after its context; sequences are padded on the right."""
    context_ids = [tokenizer(context)["input_ids"] for context, _ in rows]
    choice_ids = [tokenizer(choice, add_special_tokens=False)["input_ids"] for _, choice in rows]
    width = max(len(context) + len(choice) for context, choice in zip(context_ids, choice_ids, strict=True))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for number, (context, choice) in enumerate(zip(context_ids, choice_ids, strict=True)):
        ids[number, : len(context) + len(choice)] = torch.tensor(context + choice)
    ids = ids.to(device_of(model))
    logprobs = functional.log_softmax(model(ids, use_cache=False).logits[:, :-1].float(), -1)
    token_logprobs = logprobs.gather(2, ids[:, 1:, None])[..., 0]
    return [
        float(token_logprobs[number, len(context) - 1 : len(context) + len(choice) - 1].sum())
        for number, (context, choice) in enumerate(zip(context_ids, choice_ids, strict=True))
    ]
