"""Hypothesis strategies: prompts for the shipped checks, coordinates for tests of one's own.

``from swcheck.strategies import prompts``. Lists are drawn whole, because a model scores a list in one pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, configuration, given, seed, settings
from hypothesis import strategies as st

from swcheck.records import SuperWeight

WORDS: Final = (
    "the a of and to in is was for that with as on by it not be are this from or an at which but have had his her "
    "they water city year first time people number night school paper river music winter summer garden doctor market "
    "def return import class self None True for while lambda yield raise except with open print range len value "
    "0 1 2 7 42 1984 3.14 alpha beta data model weight layer token"
).split()
SENTENCES: Final = (
    "Summer is hot. Winter is cold.",
    "The results, which nobody had expected, were published in March.",
    "How many people live in the city?",
    "def area(width, height):\n    return width * height\n",
    "for name in sorted(names):\n    print(name)\n",
    "SELECT name FROM rivers WHERE length > 1000;",
    "Der Fluss ist im Winter zugefroren.",
    "El mercado abre a las ocho de la ma\u00f1ana.",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
    "\u0412\u0447\u0435\u0440\u0430 \u0448\u0451\u043b \u0434\u043e\u0436\u0434\u044c.",
    "1. First\n2. Second\n\n   indented",
)
SENTENCE: Final = 8
"""How many pieces a sentence counts for."""

MARKS: Final = (".", ",", "!", "?", ":", ";", "\n", "(", ")", '"', "-", "=", "\t", "…", "é", "你好", "Привет", "🙂")


FEW: Final = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""Few examples, each a list of prompts scored in one pass; no shrinking, a pass of a large model is not cheap."""


def prompts(*, longest: int = 24) -> st.SearchStrategy[str]:
    """One prompt, never empty: real sentences, code, words and marks of several scripts, a mark first, a single word."""
    piece = st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS), st.sampled_from(MARKS), st.text(max_size=4))
    kinds = [st.lists(piece, min_size=1, max_size=longest).map(" ".join), st.sampled_from([*WORDS, *MARKS])]
    if longest >= SENTENCE:
        whole = st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=longest // SENTENCE).map(" ".join)
        kinds += [whole, st.builds("{}{}".format, st.sampled_from(MARKS), whole)]
    return st.one_of(*kinds).filter(lambda prompt: bool(prompt.strip()))


def prompt_lists(*, size: int = 16, longest: int = 24) -> st.SearchStrategy[list[str]]:
    """``size`` different prompts at once."""
    return st.lists(prompts(longest=longest), min_size=size, max_size=size, unique=True)


def super_weights(*, layers: int, rows: int, columns: int) -> st.SearchStrategy[SuperWeight]:
    """A coordinate inside a model of these sizes."""
    return st.builds(
        SuperWeight,
        layer=st.integers(0, layers - 1),
        row=st.integers(0, rows - 1),
        column=st.integers(0, columns - 1),
    )


def drawn_prompts(chance: int = 0) -> tuple[tuple[str, ...], ...]:
    """A few lists of prompts, the same ones for the same ``chance`` in one version of hypothesis."""
    found: list[tuple[str, ...]] = []

    @seed(chance)
    @FEW
    @given(prompts=prompt_lists(size=24))
    def draw(prompts: list[str]) -> None:
        found.append(tuple(prompts))

    with nothing_written():
        draw()
    return tuple(found)


@contextmanager
def nothing_written() -> Iterator[None]:
    """Let hypothesis keep its tables of characters out of the working directory."""
    home: Any = configuration.storage_directory(intent_to_write=False)
    with tempfile.TemporaryDirectory() as elsewhere:
        configuration.set_hypothesis_home_dir(elsewhere)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(Path(getattr(home, "path", home)))
