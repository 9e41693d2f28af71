"""A zero-shot task made from held-out source, of LAMBADA's form: which word ends this line?

The context is what stands before the last word of a line; a model is right where its likeliest continuation, token by
token, is that word. Only words that occur in the context are asked for, so that it can be known (Paperno et al. 2016,
arXiv 1606.06031, choose passages for the same reason). Guessing gets next to nothing.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final

from swcheck.base.errors import TextError

CONTEXT: Final = 300
WORD: Final = re.compile(r"(?<=\S) ([A-Za-z_]{4,})(?=\W*\n)")


@dataclass(frozen=True)
class Item:
    """One question: ``word``, behind a blank, is what follows ``context``."""

    context: str
    word: str


def items(text: str, count: int = 400, seed: int = 0) -> list[Item]:
    """``count`` different items drawn from ``text``. Raises ``TextError`` where it has not enough places for them."""
    places = []
    for found in WORD.finditer(text, CONTEXT):
        item = Item(text[found.start() - CONTEXT : found.start()], found[1])
        if re.search(rf"\b{item.word}\b", item.context):
            places.append(item)
    if not 0 < count <= len(places):
        found_places = f"{len(places)} lines whose last word was said before"
        raise TextError(f"{count} items of a last-word task", found_places, "give a longer text")
    return random.Random(seed).sample(places, count)
