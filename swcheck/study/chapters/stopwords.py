"""Stopwords (figure 5): the mean next-token distribution over many contexts, with and without the super weights.

The paper saw stopwords become likelier when the weights are zeroed. The direction differs between models (in Mistral-7B
most become less likely), so this study reports and judges nothing. B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch

from swcheck.lens.architecture.storage import device_of, evaluating
from swcheck.lens.likelihood import LOGITS_AT_ONCE
from swcheck.study.common.chapter import Chapter, Rows
from swcheck.study.common.plots import COLOURS, single_axes
from swcheck.study.common.record import INTACT, ZEROED, Measurement, Study, mean_and_error
from swcheck.study.common.setup import Setup
from swcheck.superweights.measurements.inputs import vocabulary_size

PROBABILITY: Final = "next-token probability"
"""Mean over contexts, standard error over windows; ``prompt`` is the token's text, ``channel`` its id."""
RISE: Final = "rise of the next-token probability"
RISING: Final = "how many of the intact model's 100 likeliest rise"
ENTROPY: Final = "entropy of the next token, nats"
CONTEXTS: Final = "contexts"

SUMMED: Final = "the intact model's 100 likeliest, summed"
LIKELIEST: Final = 100
LIKELIEST_SHOWN: Final = 12
RISEN_SHOWN: Final = 6
"""Shown are this many of the zeroed model's likeliest tokens, besides ``LIKELIEST_SHOWN`` and ``PAPER_TOKENS``."""

SHORTEST: Final = 16
"""A context has at least this many tokens."""

PAPER_TOKENS: Final = (" the", ".", ",", " and", " to", " in", " a", " her", " J")
"""Tokens of the paper's figure 5."""
EXAMPLE: Final = "Summer is hot. Winter is"
EXAMPLE_ANSWERS: Final = (" cold", " the")
"""The paper's example (section 3.3): 81 % for " cold" in the intact model, 9 % for " the" after zeroing."""

STOPWORDS: Final = frozenset(
    "a an and are as at be been but by for from had has have he her his i if in is it its my no not of on or our she so "
    "than that the their them then there they this to was we were what when which who will with would you your".split()
)
"""The most common English function words. Only the "kind" column of the table uses them."""


def measure(setup: Setup) -> Iterator[Measurement]:
    """Yield next-token probabilities and entropy, intact and zeroed, and the change of single tokens."""
    conditions: dict[str, AbstractContextManager[Any]] = {INTACT: nullcontext(), ZEROED: setup.super_weights_zeroed()}
    means: dict[str, torch.Tensor] = {}
    yield Measurement(CONTEXTS, len(setup.ids) * (setup.ids.shape[1] - _start(setup.ids)))
    for condition, context in conditions.items():
        with context:
            means[condition], entropy = _distribution(setup)
            yield Measurement(ENTROPY, entropy, condition)
            yield from _paper_example(setup, condition)
    intact, zeroed = means[INTACT].mean(0), means[ZEROED].mean(0)
    likeliest = intact.topk(min(LIKELIEST, len(intact))).indices
    shown = [
        *likeliest[:LIKELIEST_SHOWN].tolist(),
        *zeroed.topk(min(RISEN_SHOWN, len(zeroed))).indices.tolist(),
        *_paper_tokens(setup),
    ]
    for condition, by_window in means.items():
        for token in dict.fromkeys(shown):
            yield _probability(by_window[:, [token]], condition, _token_text(setup.tokenizer, token), token)
        yield _probability(by_window[:, likeliest], condition, SUMMED)
    for token in dict.fromkeys(shown):
        ratio = float(zeroed[token] / intact[token]) if intact[token] > 0 else math.inf
        yield Measurement(RISE, ratio, ZEROED, channel=token, prompt=_token_text(setup.tokenizer, token))
    yield Measurement(RISING, int((zeroed[likeliest] > intact[likeliest]).sum()), ZEROED)


def _start(ids: torch.Tensor) -> int:
    """Return the position of the first context of a window, long enough if the windows are."""
    return min(SHORTEST, ids.shape[1]) - 1


def _distribution(setup: Setup) -> tuple[torch.Tensor, float]:
    """Return the mean probability of every token by window, float64 ``(B, V)``, and the mean entropy in nats."""
    ids, means, entropy = setup.ids, [], 0.0
    rows = max(1, LOGITS_AT_ONCE // (ids.shape[1] * vocabulary_size(setup.subject)))
    with evaluating(setup.model):
        for batch in setup.steps(torch.split(ids, rows), "windows"):
            logits = setup.model(batch.to(device_of(setup.model)), use_cache=False).logits[:, _start(ids) :].float()
            probabilities = logits.softmax(-1)
            entropy += float(torch.special.entr(probabilities).sum(-1).mean(1).double().sum())
            means.append(probabilities.mean(1).double().cpu())
    return torch.cat(means), entropy / len(ids)


def _probability(by_window: torch.Tensor, condition: str, text: str, token: int | None = None) -> Measurement:
    """Return the mean summed probability of some tokens, given as ``(B, K)``, with its standard error over windows."""
    mean, error = mean_and_error(by_window.sum(1).tolist())
    return Measurement(PROBABILITY, mean, condition, error=error, channel=token, prompt=text)


def _paper_example(setup: Setup, condition: str) -> Iterator[Measurement]:
    """Yield the paper's example for those of its two answers that are a single token here."""
    answers = [
        (text, token) for text in EXAMPLE_ANSWERS if (token := _single_token_id(setup.tokenizer, text)) is not None
    ]
    if not answers:
        return
    ids = torch.tensor([setup.tokenizer(EXAMPLE)["input_ids"]], dtype=torch.int64)
    with evaluating(setup.model):
        probabilities = setup.model(ids.to(device_of(setup.model)), use_cache=False).logits[0, -1].float().softmax(-1)
    for text, token in answers:
        yield Measurement(PROBABILITY, float(probabilities[token]), condition, prompt=f"{text}, after {EXAMPLE!r}")


def _paper_tokens(setup: Setup) -> list[int]:
    """Return the ids of those of the paper's tokens that are a single token here."""
    return [token for text in PAPER_TOKENS if (token := _single_token_id(setup.tokenizer, text)) is not None]


def _single_token_id(tokenizer: Any, text: str) -> int | None:
    """Return the id of a text that is a single token in the middle of a sentence, else None."""
    if tokenizer is None:
        return None
    ids = tokenizer(f"x{text}", add_special_tokens=False)["input_ids"]
    return int(ids[-1]) if ids and _token_text(tokenizer, int(ids[-1])) == text else None


def _token_text(tokenizer: Any, token: int) -> str:
    """Return what a token adds to a text; "#ID" without a tokenizer, or if the token is only a part of a character."""
    if tokenizer is None:
        return f"#{token}"
    prefix_ids = list(tokenizer("x", add_special_tokens=False)["input_ids"])
    prefix = str(tokenizer.decode(prefix_ids, clean_up_tokenization_spaces=False))
    text = str(tokenizer.decode([*prefix_ids, token], clean_up_tokenization_spaces=False)).removeprefix(prefix)
    return f"#{token}" if "\ufffd" in text else text


def token_kind(text: str) -> str:
    """Return the kind of a token: "stopword", "punctuation", "white space", or "" for any other."""
    if not text.strip():
        return "white space"
    if text.strip().lower() in STOPWORDS:
        return "stopword"
    return "punctuation" if not any(letter.isalnum() for letter in text) else ""


def displayed_token(text: str) -> str:
    """Return a token as it is displayed: quoted, or for a run of spaces their number."""
    return f"{len(text)} spaces" if len(text) > 1 and not text.strip(" ") else repr(text)


def measured_tokens(study: Study) -> tuple[Measurement, ...]:
    """Return the measurements of single tokens in the intact model, the likeliest first."""
    single_tokens = [point for point in study.select(PROBABILITY, INTACT) if point.channel is not None]
    return tuple(sorted(single_tokens, key=lambda point: -point.value))


def table(study: Study) -> Rows:
    """Return one row per token, then the 100 likeliest together, how many of them rise, and the entropy."""
    lines = [["token", "kind", "intact", "zeroed", "ratio"]]
    for point in measured_tokens(study):
        text = point.prompt or ""
        zeroed = study.value(PROBABILITY, ZEROED, channel=point.channel)
        rise = study.value(RISE, ZEROED, channel=point.channel)
        lines.append([displayed_token(text), token_kind(text), f"{point.value:.3g}", f"{zeroed:.3g}", f"x{rise:.3g}"])
    sums = [point for point in study.select(PROBABILITY, INTACT) if point.channel is None]
    for point in sums:
        zeroed = study.value(PROBABILITY, ZEROED, prompt=point.prompt)
        ratio = f"x{zeroed / point.value:.3g}" if point.value else ""
        lines.append([point.prompt or "", "", f"{point.value:.3g}", f"{zeroed:.3g}", ratio])
    lines.append([RISING, "", "", f"{study.value(RISING, ZEROED):g}", ""])
    return [*lines, [ENTROPY, "", *(f"{study.value(ENTROPY, name):.3f}" for name in (INTACT, ZEROED)), ""]]


def draw(study: Study, figure: Any) -> None:
    """Draw paired bars, the likeliest token first, on a logarithmic axis; stopwords and punctuation are bold."""
    axes, points = single_axes(figure), measured_tokens(study)
    for place, condition in enumerate((INTACT, ZEROED)):
        rows = [study.select(PROBABILITY, condition, channel=point.channel)[0] for point in points]
        axes.bar(
            [number + 0.4 * place - 0.2 for number in range(len(rows))], [point.value for point in rows], width=0.4,
            yerr=[point.error or 0.0 for point in rows], color=COLOURS[place], ecolor="0.3", label=condition,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xticks(
        range(len(points)),
        [displayed_token(point.prompt or "") for point in points],
        rotation=60,
        ha="right",
        fontsize=8,
    )
    for label, point in zip(axes.get_xticklabels(), points, strict=True):
        if token_kind(point.prompt or "") in {"stopword", "punctuation"}:
            label.set_fontweight("bold")
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("token (bold: stopword or punctuation)")
    axes.set_ylabel(f"{PROBABILITY}, mean of {study.value(CONTEXTS):,.0f} contexts")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)


CHAPTER: Final = Chapter("stopwords", "The next token without the super weights", "figure 5", measure, table, draw)
