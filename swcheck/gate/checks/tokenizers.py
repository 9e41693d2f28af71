"""Compares two tokenizers by the ids that they give for the same texts, and a tokenizer with its embedding."""

from __future__ import annotations

from swcheck.base.formatting import format_ratio
from swcheck.base.records import Verdict
from swcheck.base.statistics import factor_of
from swcheck.gate.checks.pair import Pair
from swcheck.superweights.measurements.inputs import (
    SAMPLE_TEXTS,
    first_other_id,
    has_bos,
    id_count,
    sample_ids,
    vocabulary_size,
)


def tokenizer_confound(pair: Pair) -> Verdict | None:
    """Return the verdict on a candidate whose tokenizer gives other ids than the reference's, or ids it has no row for."""
    ours, theirs = sample_ids(pair.candidate), sample_ids(pair.reference)
    advice = "save the reference's tokenizer beside the candidate"
    if pair.candidate.is_runtime:
        advice = "convert it again, with the reference's tokenizer and its BOS policy"
    if ours and theirs and ours != theirs:
        cause = "tokenizer or BOS policy differs"
        summary = f"{_difference(pair, ours, theirs)}; with the reference's ids {_perplexity(pair)}"
        return pair.failed(cause, summary, advice, cause_kind="tokenizer")
    other = first_other_id(pair.candidate)
    if other is not None:
        same, count, words = other
        summary = (
            f"other ids from {words!r} on, behind {same:,} of {count:,} equal ids of the text; {_perplexity(pair)}"
        )
        return pair.failed("tokenizer differs", summary, advice, cause_kind="tokenizer")
    last, rows = id_count(pair.candidate) - 1, vocabulary_size(pair.candidate)
    if pair.candidate is not pair.reference and last >= rows and not _is_too_small(pair):
        token = pair.candidate.tokenizer.convert_ids_to_tokens(last)
        summary = f"its tokenizer gives ids up to {last} ({token!r}), its embedding has {rows:,} rows"
        advice = "resize the embedding, or take the added tokens out of the tokenizer"
        return pair.failed("the embedding lacks ids of the tokenizer", summary, advice, cause_kind="vocabulary")
    return None


def _is_too_small(pair: Pair) -> bool:
    """Return whether the reference's embedding lacks ids of its tokenizer as well."""
    return id_count(pair.reference) > vocabulary_size(pair.reference)


def _difference(pair: Pair, ours: tuple[tuple[int, ...], ...], theirs: tuple[tuple[int, ...], ...]) -> str:
    """Return words for the first text with other ids: BOS missing or added, or the share of other ids."""
    text, one, other = next(row for row in zip(SAMPLE_TEXTS, ours, theirs, strict=True) if row[1] != row[2])
    if has_bos(pair.reference) and one == other[1:]:
        return "it does not begin with BOS, as the reference's does"
    if one[1:] == other and one:
        return f"it begins with the token {one[0]} more than the reference's (BOS twice, or added)"
    same = sum(a == b for a, b in zip(one, other, strict=False))
    share = 1 - same / max(len(one), len(other), 1)
    return f"the two tokenizers give other ids for the same text ({share:.0%} of {len(other)} ids of {text[:24]!r}...)"


def _perplexity(pair: Pair) -> str:
    theirs, ours = pair.nats()
    ratio = factor_of(float((ours - theirs).mean()))
    return f"its perplexity is {format_ratio(ratio)} of the reference's"
