"""What a subject is measured on: its text, the windows of it, and prompts. B batch, T tokens."""

from __future__ import annotations

import hashlib
import platform
from typing import Final

import torch

from swcheck.base.errors import OptionError
from swcheck.base.evaluation_text import evaluation_text
from swcheck.base.records import Prompt
from swcheck.lens.tokens import adds_bos, check_token_ids, token_windows
from swcheck.lens.tokens import vocabulary_size as vocabulary_size_of_model
from swcheck.loading.runtime import Capability
from swcheck.superweights.locating.locate import PROMPT
from swcheck.superweights.subject.measurement import Slot, measurement
from swcheck.superweights.subject.memory import Cost
from swcheck.superweights.subject.subject import Subject

SAMPLE_TEXTS: Final = (PROMPT, "def spam(eggs=1):\n    return [eggs] * 2  # \u00e9, \u4f60\u597d\n")
"""Two tokenizers are compared by the ids that they give for these texts."""

LONGEST_SAMPLE: Final = 100_000
"""At most this many characters of the text are encoded by a runtime's tokenizer, to compare it."""

UNKNOWN_VOCABULARY: Final = 2**17
"""The size that is assumed for a model that does not give the size of its vocabulary."""


PADDED_PROMPTS: Final = Slot[tuple[torch.Tensor, tuple[int, ...]]]("padded", Cost.TOKENIZER)
"""The ids of prompts, int64 ``(B, T)``, padded on the right, and the true length of each. Its input is the prompts."""

DRAWN_PROMPTS: Final = Slot[tuple[Prompt, ...]]("prompts", Cost.TOKENIZER)
"""The prompts that hypothesis drew for the shipped suite, once for a reference, so that every candidate gets the same."""


def text_of(subject: Subject) -> str:
    """Return the text that the subject is measured on if no token ids were given."""
    return evaluation_text() if subject.text is None else subject.text


def text_name(subject: Subject) -> str:
    """Return the name of the text in reports."""
    if subject.token_ids is not None:
        return "the given token ids"
    topics = f"Python {platform.python_version()}'s documentation topics"
    return subject.text_label or (topics if subject.text is None else "the model's own text")


def text_hash(subject: Subject) -> str | None:
    """Return the SHA-256 of the text in hex; None where token ids were given."""
    return None if subject.token_ids is not None else hashlib.sha256(text_of(subject).encode()).hexdigest()


def tier_suffix(subject: Subject) -> str:
    """Return the words that name the tier behind a number of tokens in reports; empty where token ids were given."""
    return "" if subject.token_ids is not None else f", {subject.tier.name} tier"


def windows(subject: Subject) -> torch.Tensor:
    """Return the token ids that perplexity is measured on, int64 ``(B, T)``.

    Raises ``TextError`` for given ids that are not valid and for a text that is too short, ``OptionError`` for a bare
    module that has neither ids nor a tokenizer.
    """
    return _text_windows(subject) if subject.token_ids is None else _given_windows(subject)


@measurement("checked", Cost.TOKENIZER)
def _given_windows(subject: Subject) -> torch.Tensor:
    given: torch.Tensor = subject.token_ids  # type: ignore[assignment]
    check_token_ids(given, vocabulary_size_of_model(subject.scorer))
    return given


@measurement("windows", Cost.TOKENIZER)
def _text_windows(subject: Subject) -> torch.Tensor:
    if subject.tokenizer is None:
        raise OptionError(f"measure {subject.name}", "a bare module", "pass tokenizer= or token_ids=")
    count, length = subject.tier.shape(context_length(subject))
    return token_windows(subject.tokenizer, text_of(subject), count=count, length=length)


@measurement("prompt", Cost.TOKENIZER)
def prompt_ids(subject: Subject, prompt: str | None = None) -> torch.Tensor:
    """Return the ids of a prompt, int64 ``(1, T)``; None means the default prompt.

    Without a tokenizer they are the ids of the first window.
    """
    if subject.tokenizer is None:
        return windows(subject)[:1]
    return torch.tensor([subject.tokenizer(PROMPT if prompt is None else prompt)["input_ids"]], dtype=torch.int64)


@measurement("tokens", Cost.TOKENIZER)
def sample_ids(subject: Subject) -> tuple[tuple[int, ...], ...]:
    """Return the ids of each of ``SAMPLE_TEXTS``, of a runtime by its own tokenizer; empty without one."""
    if subject.is_runtime:
        runtime = subject.runtime
        shown = runtime.can(Capability.TOKEN_IDS)
        return tuple(tuple(map(int, runtime.token_ids(text))) for text in SAMPLE_TEXTS) if shown else ()
    if subject.tokenizer is None:
        return ()
    return tuple(tuple(subject.tokenizer(text)["input_ids"]) for text in SAMPLE_TEXTS)


@measurement("own ids", Cost.TOKENIZER)
def first_other_id(subject: Subject) -> tuple[int, int, str] | None:
    """Return where a runtime's tokenizer first differs from the reference's on the text that is measured on.

    The number of equal ids before it, the number of all ids, and the words there, decoded. None where all are equal,
    where the runtime shows no ids, and without a tokenizer.
    """
    if not subject.is_runtime or subject.tokenizer is None or not subject.runtime.can(Capability.TOKEN_IDS):
        return None
    text = text_of(subject)[:LONGEST_SAMPLE]
    ours, theirs = list(map(int, subject.runtime.token_ids(text))), list(subject.tokenizer(text)["input_ids"])
    if ours == theirs:
        return None
    same = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(theirs))
    return same, len(theirs), str(subject.tokenizer.decode(theirs[same : same + 4]))


@measurement("ids", Cost.TOKENIZER)
def id_count(subject: Subject) -> int:
    """Return how many ids the tokenizer gives: 1 more than the largest; 0 without a tokenizer."""
    known = {} if subject.tokenizer is None or subject.is_runtime else subject.tokenizer.get_vocab()
    return 1 + max(known.values(), default=-1)


@measurement("bos", Cost.TOKENIZER)
def has_bos(subject: Subject) -> bool:
    """Return whether the tokenizer begins a prompt with BOS."""
    return subject.tokenizer is not None and adds_bos(subject.tokenizer)


@measurement("unknown tokens", Cost.TOKENIZER)
def unknown_share(subject: Subject) -> float:
    """Return the share of the tokens of the windows that are the tokenizer's unknown token; 0 where it has none."""
    unknown = getattr(subject.tokenizer, "unk_token_id", None)
    return 0.0 if unknown is None else float((windows(subject) == unknown).float().mean())


@measurement("context", Cost.WEIGHTS)
def context_length(subject: Subject) -> int | None:
    """Return the largest number of tokens the model takes at once, None where its configuration does not say."""
    if subject.is_runtime:
        return subject.runtime.context
    longest = getattr(getattr(subject.module, "config", None), "max_position_embeddings", None)
    return int(longest) if longest else None


@measurement("vocabulary", Cost.WEIGHTS, of_weights=True)
def vocabulary_size(subject: Subject) -> int:
    """Return the size of the vocabulary, ``UNKNOWN_VOCABULARY`` where the model does not give it."""
    return vocabulary_size_of_model(subject.scorer) or UNKNOWN_VOCABULARY
