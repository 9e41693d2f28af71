"""Hypothesis strategies: prompts for the shipped checks and for users' tests, coordinates of weights.

``from swcheck.strategies import prompts``. There are strategies for whole lists, since a model scores a list in one
pass.
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

__all__ = ["prompt_lists", "prompts", "super_weights"]

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
WORDS_PER_SENTENCE: Final = 8
"""How many words a sentence counts for, where the length of a prompt is limited."""

MARKS: Final = (*DELIMITERS, "\u00e9", "\u4f60\u597d", "\u041f\u0440\u0438\u0432\u0435\u0442", "\U0001f642")
LONG_SENTENCES: Final = 24
"""The largest number of sentences in a long prompt; the smallest is half of it."""

FORMS: Final = ("plain", "bare", "chat")
"""The forms of a ``Prompt``: as the tokenizer makes it, without BOS, in the chat template."""


def _joined(pieces: st.SearchStrategy[str], least: int, most: int, separator: str = " ") -> st.SearchStrategy[str]:
    return st.lists(pieces, min_size=least, max_size=most).map(separator.join)


def _one_of(*pieces: Sequence[str]) -> st.SearchStrategy[str]:
    return st.sampled_from([piece for group in pieces for piece in group])


def kinds(*, longest: int = 24) -> dict[str, st.SearchStrategy[str]]:
    """Return a strategy for each kind of prompt, by its name. ``longest`` is in words; the kind ``long`` exceeds it."""
    sentences = _joined(_one_of(SENTENCES), 1, max(1, longest // WORDS_PER_SENTENCE))
    return {
        "sentences": sentences,
        "code": _joined(_one_of(CODE), 1, 2, "\n"),
        "scripts": _joined(_one_of(SCRIPTS, MARKS), 1, 6),
        "emoji": st.builds("{}{}{}".format, st.just("") | _one_of(WORDS), _joined(_one_of(EMOJI), 1, 4, ""), _one_of(BLANKS, WORDS)),
        "whitespace": st.builds("{}{}".format, _joined(_one_of(BLANKS), 1, 4, ""), st.just("") | _one_of(WORDS)),
        "delimiters first": st.builds("{}{}".format, _one_of(DELIMITERS), st.just("") | _one_of(WORDS) | sentences),
        "one token": _one_of(WORDS, DELIMITERS),
        "long": _joined(_one_of(SENTENCES, CODE, SCRIPTS), LONG_SENTENCES // 2, LONG_SENTENCES),
    }  # fmt: skip


FOUR_EXAMPLES: Final = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""Four examples, each with a prompt of every kind in every form. All are drawn first and then scored together.
Hypothesis does not shrink a failing one, because every attempt is a forward pass; ``lens.prompts`` does it with fewer
passes."""


def prompts(*, longest: int = 24) -> st.SearchStrategy[str]:
    """Return a strategy for one prompt of at most ``longest`` words, never blank.

    It is a list of words, marks and short texts in several scripts, sentences or code, a mark and a sentence, or one
    word.
    """
    piece = st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS), st.sampled_from(MARKS), st.text(max_size=4))
    choices = [st.lists(piece, min_size=1, max_size=longest).map(" ".join), st.sampled_from([*WORDS, *MARKS])]
    if longest >= WORDS_PER_SENTENCE:
        sentences = st.lists(
            st.sampled_from([*SENTENCES, *CODE, *SCRIPTS]), min_size=1, max_size=longest // WORDS_PER_SENTENCE
        )
        choices += [sentences.map(" ".join), st.builds("{}{}".format, st.sampled_from(MARKS), sentences.map(" ".join))]
    return st.one_of(*choices).filter(lambda prompt: bool(prompt.strip()))


def prompt_lists(*, size: int = 16, longest: int = 24) -> st.SearchStrategy[list[str]]:
    """Return a strategy for a list of ``size`` different prompts."""
    return st.lists(prompts(longest=longest), min_size=size, max_size=size, unique=True)


def assortments(*, longest: int = 24) -> st.SearchStrategy[tuple[Prompt, ...]]:
    """Return a strategy for a tuple with a prompt of every kind in every form, see ``kinds`` and ``FORMS``."""
    strategies = [st.builds(Prompt, kind, st.just(form)) for form in FORMS for kind in kinds(longest=longest).values()]
    return st.tuples(*strategies)


def super_weights(*, layers: int, rows: int, columns: int) -> st.SearchStrategy[SuperWeight]:
    """Return a strategy for a coordinate in a model of ``layers`` down projections of ``(rows, columns)``."""
    return st.builds(
        SuperWeight,
        layer=st.integers(0, layers - 1),
        row=st.integers(0, rows - 1),
        column=st.integers(0, columns - 1),
    )


def drawn_prompts(seed_value: int = 0) -> tuple[Prompt, ...]:
    """Return about ninety different prompts, the same for the same ``seed_value`` in one version of hypothesis."""
    found: list[Prompt] = []

    @seed(seed_value)
    @FOUR_EXAMPLES
    @given(prompts=assortments())
    def draw(prompts: tuple[Prompt, ...]) -> None:
        found.extend(prompts)

    with storage_in_temporary_folder():
        draw()
    return tuple(dict.fromkeys(found))


@contextmanager
def storage_in_temporary_folder() -> Iterator[None]:
    """Let hypothesis write its character tables to a temporary folder inside the block, not to the current one."""
    before: Any = configuration.storage_directory(intent_to_write=False)
    with tempfile.TemporaryDirectory() as folder:
        configuration.set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(Path(getattr(before, "path", before)))


def __dir__() -> list[str]:
    """Return the public names alone: the prompts of the shipped checks are no promise to anybody else."""
    return __all__


@contextmanager
def drawn_equally() -> Iterator[None]:
    """Let hypothesis draw the same examples in every process, whatever time they take and whatever failed before."""
    settings.register_profile(
        "swcheck-processes",
        settings(),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("swcheck-processes")
    try:
        yield
    finally:
        settings.load_profile("default")
