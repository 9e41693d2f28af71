"""Stopwords (figure 5): what the model says next, on average over many contexts, with and without its super weights.

The paper saw stopwords rise where the weights are zeroed. The direction differs between models (in Mistral-7B most fall),
so everything is reported as measured, and nothing is judged. B windows, T time, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch

from swcheck.lens.anatomy import device_of
from swcheck.lens.likelihood import LOGITS_AT_ONCE, evaluating
from swcheck.study.common.chapter import Chapter, Rows
from swcheck.study.common.plots import COLOURS, alone
from swcheck.study.common.record import INTACT, ZEROED, Measurement, Study, mean_and_error
from swcheck.study.common.setup import Setup
from swcheck.superweights.measurements.inputs import vocabulary_size

PROBABILITY: Final = "next-token probability"
"""Mean over contexts, error over windows; ``prompt`` is the token's text, ``channel`` its id."""
RISE: Final = "rise of the next-token probability"
RISING: Final = "how many of the intact model's 100 likeliest rise"
ENTROPY: Final = "entropy of the next token, nats"
CONTEXTS: Final = "contexts"

SUMMED: Final = "the intact model's 100 likeliest, summed"
LIKELIEST: Final = 100
SHOWN: Final = 12
RISEN: Final = 6
"""Shown are so many of the intact model's likeliest tokens, so many of the zeroed one's, and the paper's."""

SHORTEST: Final = 16
"""A context has so many tokens at least."""

PAPERS: Final = (" the", ".", ",", " and", " to", " in", " a", " her", " J")
CASE: Final = "Summer is hot. Winter is"
ANSWERS: Final = (" cold", " the")
"""The paper's example (section 3.3): 81 % for the one, after zeroing 9 % for the other."""

STOPWORDS: Final = frozenset(
    "a an and are as at be been but by for from had has have he her his i if in is it its my no not of on or our she so "
    "than that the their them then there they this to was we were what when which who will with would you your".split()
)
"""The commonest English function words, for the third column of the table alone."""


def measure(setup: Setup) -> Iterator[Measurement]:
    """The mean distribution of the next token, intact and zeroed, and what became of single tokens."""
    conditions: dict[str, AbstractContextManager[Any]] = {INTACT: nullcontext(), ZEROED: setup.without()}
    means: dict[str, torch.Tensor] = {}
    yield Measurement(CONTEXTS, len(setup.ids) * (setup.ids.shape[1] - _start(setup.ids)))
    for condition, entered in conditions.items():
        with entered:
            means[condition], entropy = _distribution(setup)
            yield Measurement(ENTROPY, entropy, condition)
            yield from _case(setup, condition)
    before, after = means[INTACT].mean(0), means[ZEROED].mean(0)
    likeliest = before.topk(min(LIKELIEST, len(before))).indices
    shown = [*likeliest[:SHOWN].tolist(), *after.topk(min(RISEN, len(after))).indices.tolist(), *_papers(setup)]
    for condition, by_window in means.items():
        for token in dict.fromkeys(shown):
            yield _probability(by_window[:, [token]], condition, _text(setup.tokenizer, token), token)
        yield _probability(by_window[:, likeliest], condition, SUMMED)
    for token in dict.fromkeys(shown):
        ratio = float(after[token] / before[token]) if before[token] > 0 else math.inf
        yield Measurement(RISE, ratio, ZEROED, channel=token, prompt=_text(setup.tokenizer, token))
    yield Measurement(RISING, int((after[likeliest] > before[likeliest]).sum()), ZEROED)


def _start(ids: torch.Tensor) -> int:
    """The position of the first context: long enough, where the windows are."""
    return min(SHORTEST, ids.shape[1]) - 1


def _distribution(setup: Setup) -> tuple[torch.Tensor, float]:
    """The mean probability of every token by window, float64 ``(B, V)``, and the mean entropy in nats."""
    ids, means, entropy = setup.ids, [], 0.0
    rows = max(1, LOGITS_AT_ONCE // (ids.shape[1] * vocabulary_size(setup.subject)))
    with evaluating(setup.model):
        for part in setup.steps(torch.split(ids, rows), "windows"):
            logits = setup.model(part.to(device_of(setup.model)), use_cache=False).logits[:, _start(ids) :].float()
            spread = logits.softmax(-1)
            entropy += float(torch.special.entr(spread).sum(-1).mean(1).double().sum())
            means.append(spread.mean(1).double().cpu())
    return torch.cat(means), entropy / len(ids)


def _probability(by_window: torch.Tensor, condition: str, text: str, token: int | None = None) -> Measurement:
    """The mean of the summed probability of some tokens ``(B, K)``, its standard error over windows."""
    mean, error = mean_and_error(by_window.sum(1).tolist())
    return Measurement(PROBABILITY, mean, condition, error=error, channel=token, prompt=text)


def _case(setup: Setup, condition: str) -> Iterator[Measurement]:
    """The paper's example, for those of its two answers that are one token here."""
    answers = [(text, token) for text in ANSWERS if (token := _token(setup.tokenizer, text)) is not None]
    if not answers:
        return
    ids = torch.tensor([setup.tokenizer(CASE)["input_ids"]], dtype=torch.int64)
    with evaluating(setup.model):
        last = setup.model(ids.to(device_of(setup.model)), use_cache=False).logits[0, -1].float().softmax(-1)
    for text, token in answers:
        yield Measurement(PROBABILITY, float(last[token]), condition, prompt=f"{text}, after {CASE!r}")


def _papers(setup: Setup) -> list[int]:
    """The ids of those of the paper's tokens that are one token here."""
    return [token for text in PAPERS if (token := _token(setup.tokenizer, text)) is not None]


def _token(tokenizer: Any, text: str) -> int | None:
    """The id of a text that is one token in the middle of a sentence, None where it is not."""
    if tokenizer is None:
        return None
    ids = tokenizer(f"x{text}", add_special_tokens=False)["input_ids"]
    return int(ids[-1]) if ids and _text(tokenizer, int(ids[-1])) == text else None


def _text(tokenizer: Any, token: int) -> str:
    """What a token adds to a text that it stands in; its id without a tokenizer, and where it is a part of a letter."""
    if tokenizer is None:
        return f"#{token}"
    before = list(tokenizer("x", add_special_tokens=False)["input_ids"])
    lead = str(tokenizer.decode(before, clean_up_tokenization_spaces=False))
    text = str(tokenizer.decode([*before, token], clean_up_tokenization_spaces=False)).removeprefix(lead)
    return f"#{token}" if "\ufffd" in text else text


def kind(text: str) -> str:
    """What sort of token it is: a stopword, punctuation, white space, or anything else."""
    if not text.strip():
        return "white space"
    if text.strip().lower() in STOPWORDS:
        return "stopword"
    return "punctuation" if not any(letter.isalnum() for letter in text) else ""


def named(text: str) -> str:
    """A token as it is shown: quoted, a run of blanks counted."""
    return f"{len(text)} spaces" if len(text) > 1 and not text.strip(" ") else repr(text)


def tokens(study: Study) -> tuple[Measurement, ...]:
    """The single tokens of the intact model, the likeliest first."""
    found = [one for one in study.select(PROBABILITY, INTACT) if one.channel is not None]
    return tuple(sorted(found, key=lambda one: -one.value))


def table(study: Study) -> Rows:
    """One row per token, then the 100 likeliest together, how many of them rise, and the entropy."""
    lines = [["token", "kind", "intact", "zeroed", "ratio"]]
    for one in tokens(study):
        text = one.prompt or ""
        zeroed = study.value(PROBABILITY, ZEROED, channel=one.channel)
        rise = study.value(RISE, ZEROED, channel=one.channel)
        lines.append([named(text), kind(text), f"{one.value:.3g}", f"{zeroed:.3g}", f"x{rise:.3g}"])
    extra = [one for one in study.select(PROBABILITY, INTACT) if one.channel is None]
    for one in extra:
        zeroed = study.value(PROBABILITY, ZEROED, prompt=one.prompt)
        ratio = f"x{zeroed / one.value:.3g}" if one.value else ""
        lines.append([one.prompt or "", "", f"{one.value:.3g}", f"{zeroed:.3g}", ratio])
    lines.append([RISING, "", "", f"{study.value(RISING, ZEROED):g}", ""])
    return [*lines, [ENTROPY, "", *(f"{study.value(ENTROPY, name):.3f}" for name in (INTACT, ZEROED)), ""]]


def draw(study: Study, figure: Any) -> None:
    """Paired bars, the likeliest token first, on a logarithmic axis; stopwords and punctuation in bold."""
    axes, points = alone(figure), tokens(study)
    for place, condition in enumerate((INTACT, ZEROED)):
        rows = [study.select(PROBABILITY, condition, channel=one.channel)[0] for one in points]
        axes.bar(
            [number + 0.4 * place - 0.2 for number in range(len(rows))], [one.value for one in rows], width=0.4,
            yerr=[one.error or 0.0 for one in rows], color=COLOURS[place], ecolor="0.3", label=condition,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xticks(
        range(len(points)), [named(one.prompt or "") for one in points], rotation=60, ha="right", fontsize=8
    )
    for label, one in zip(axes.get_xticklabels(), points, strict=True):
        if kind(one.prompt or "") in {"stopword", "punctuation"}:
            label.set_fontweight("bold")
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("token (bold: stopword or punctuation)")
    axes.set_ylabel(f"{PROBABILITY}, mean of {study.value(CONTEXTS):,.0f} contexts")
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)


CHAPTER: Final = Chapter("stopwords", "The next token without the super weights", "figure 5", measure, table, draw)
