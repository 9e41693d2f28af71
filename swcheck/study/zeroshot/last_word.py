"""A zero-shot task made from held-out source, in the form of LAMBADA: which word ends this line?

The context is what stands before the last word of a line. A model is right if its likeliest continuation, token by
token, is that word. Only words that occur in the context are asked for, so that they can be known (Paperno et al. 2016,
arXiv 1606.06031, choose passages for the same reason). Guessing gets next to nothing.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final

from swcheck.base.errors import TextError

CONTEXT: Final = 300
"""Characters of a context."""
WORD: Final = re.compile(r"(?<=\S) ([A-Za-z_]{4,})(?=\W*\n)")
"""Finds the last word of a line, of at least four letters, after a blank."""


@dataclass(frozen=True)
class Item:
    """One question: ``word``, after a blank, is what follows ``context``."""

    context: str
    word: str


def items(text: str, count: int = 400, seed: int = 0) -> list[Item]:
    """Draw ``count`` different items from ``text``. Raises ``TextError`` if it has too few places for them."""
    candidates = []
    for match in WORD.finditer(text, CONTEXT):
        item = Item(text[match.start() - CONTEXT : match.start()], match[1])
        if re.search(rf"\b{item.word}\b", item.context):
            candidates.append(item)
    if not 0 < count <= len(candidates):
        description = f"{len(candidates)} lines whose last word was said before"
        raise TextError(f"{count} items of a last-word task", description, "give a longer text")
    return random.Random(seed).sample(candidates, count)
