"""Hypothesis strategies: prompts for the shipped checks, coordinates for tests of one's own.

``from swcheck.strategies import prompts``. Lists are drawn whole, because a model scores a list in one pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, configuration, given, seed, settings
from hypothesis import strategies as st

from swcheck.base.records import Prompt, SuperWeight

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
    "1. First\n2. Second\n\n   indented",
)
CODE: Final = (
    "def area(width, height):\n    return width * height\n",
    "for name in sorted(names):\n    print(name)\n",
    "SELECT name FROM rivers WHERE length > 1000;",
    'if (x[0] != "a") { return -1; }',
    "<p class='note'>5 &lt; 7</p>",
)
SCRIPTS: Final = (
    "Der Fluss ist im Winter zugefroren.",
    "El mercado abre a las ocho de la ma\u00f1ana.",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
    "\u0412\u0447\u0435\u0440\u0430 \u0448\u0451\u043b \u0434\u043e\u0436\u0434\u044c.",
    "\u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947",
)
EMOJI: Final = ("\U0001f642", "\U0001f680\U0001f680", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f")
BLANKS: Final = (" ", "\n", "\t", "  ", "\n\n", "\r\n", "\u00a0", "    ")
DELIMITERS: Final = (".", ",", "!", "?", ":", ";", "\n", "(", ")", '"', "-", "=", "\t", "\u2026", "\u3002")
SENTENCE: Final = 8
"""How many pieces a sentence counts for."""

MARKS: Final = (*DELIMITERS, "\u00e9", "\u4f60\u597d", "\u041f\u0440\u0438\u0432\u0435\u0442", "\U0001f642")
LONG: Final = 24
"""How many sentences a long prompt has."""

FORMS: Final = ("plain", "bare", "chat")


def _joined(pieces: st.SearchStrategy[str], least: int, most: int, between: str = " ") -> st.SearchStrategy[str]:
    return st.lists(pieces, min_size=least, max_size=most).map(between.join)


def _from(*pieces: Sequence[str]) -> st.SearchStrategy[str]:
    return st.sampled_from([piece for several in pieces for piece in several])


def kinds(*, longest: int = 24) -> dict[str, st.SearchStrategy[str]]:
    """What prompts are made of: one strategy for each kind. ``longest`` is in words, which long ones exceed."""
    whole = _joined(_from(SENTENCES), 1, max(1, longest // SENTENCE))
    return {
        "sentences": whole,
        "code": _joined(_from(CODE), 1, 2, "\n"),
        "scripts": _joined(_from(SCRIPTS, MARKS), 1, 6),
        "emoji": st.builds("{}{}{}".format, st.just("") | _from(WORDS), _joined(_from(EMOJI), 1, 4, ""), _from(BLANKS, WORDS)),
        "whitespace": st.builds("{}{}".format, _joined(_from(BLANKS), 1, 4, ""), st.just("") | _from(WORDS)),
        "delimiters first": st.builds("{}{}".format, _from(DELIMITERS), st.just("") | _from(WORDS) | whole),
        "one token": _from(WORDS, DELIMITERS),
        "long": _joined(_from(SENTENCES, CODE, SCRIPTS), LONG // 2, LONG),
    }  # fmt: skip


FEW: Final = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""Few examples, each a prompt of every kind in every form. They are drawn first and then scored together; a failing one
is shrunk by ``lens.prompts``, since a pass of a large model is not cheap."""


def prompts(*, longest: int = 24) -> st.SearchStrategy[str]:
    """One prompt, never blank: real sentences, code, words and marks of several scripts, a mark first, a single word."""
    piece = st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS), st.sampled_from(MARKS), st.text(max_size=4))
    chosen = [st.lists(piece, min_size=1, max_size=longest).map(" ".join), st.sampled_from([*WORDS, *MARKS])]
    if longest >= SENTENCE:
        whole = st.lists(st.sampled_from([*SENTENCES, *CODE, *SCRIPTS]), min_size=1, max_size=longest // SENTENCE)
        chosen += [whole.map(" ".join), st.builds("{}{}".format, st.sampled_from(MARKS), whole.map(" ".join))]
    return st.one_of(*chosen).filter(lambda prompt: bool(prompt.strip()))


def prompt_lists(*, size: int = 16, longest: int = 24) -> st.SearchStrategy[list[str]]:
    """``size`` different prompts at once."""
    return st.lists(prompts(longest=longest), min_size=size, max_size=size, unique=True)


def assortments(*, longest: int = 24) -> st.SearchStrategy[tuple[Prompt, ...]]:
    """A prompt of every kind in every form: as the tokenizer makes it, without BOS, and in a chat template."""
    each = [st.builds(Prompt, kind, st.just(form)) for form in FORMS for kind in kinds(longest=longest).values()]
    return st.tuples(*each)


def super_weights(*, layers: int, rows: int, columns: int) -> st.SearchStrategy[SuperWeight]:
    """A coordinate inside a model of these sizes."""
    return st.builds(
        SuperWeight,
        layer=st.integers(0, layers - 1),
        row=st.integers(0, rows - 1),
        column=st.integers(0, columns - 1),
    )


def drawn_prompts(chance: int = 0) -> tuple[Prompt, ...]:
    """Some ninety prompts, none of them twice, the same ones for the same ``chance`` in one version of hypothesis."""
    found: list[Prompt] = []

    @seed(chance)
    @FEW
    @given(prompts=assortments())
    def draw(prompts: tuple[Prompt, ...]) -> None:
        found.extend(prompts)

    with nothing_written():
        draw()
    return tuple(dict.fromkeys(found))


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
