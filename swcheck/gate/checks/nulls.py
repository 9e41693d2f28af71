"""The nulls of the collapse: zeroing other weights leaves the perplexity nearly unchanged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swcheck.base.errors import OptionError
from swcheck.base.formatting import format_count
from swcheck.base.limits import collapse_class, is_given
from swcheck.base.records import Limit, Outcome, SuperWeight, Verdict
from swcheck.base.statistics import collapse_ratio
from swcheck.gate.checks.dependence import finite_intact_nats
from swcheck.gate.checks.single_model import no_super_weight
from swcheck.superweights.measurements.ablation import ablated_nats, nats_without_largest, nats_without_matched
from swcheck.superweights.measurements.located import published
from swcheck.superweights.one_reading.together import measure_matched_together
from swcheck.superweights.subject.subject import Subject


def matched_null(subject: Subject, weights: Sequence[SuperWeight], limit: Limit, draws: int) -> Verdict:
    """Zero as many weights of similar magnitude in the same matrices, ``draws`` times; judge the worst ratio.

    Raises ``OptionError`` for fewer than one draw, ``NotFiniteError`` if the intact model is not finite.
    """
    if draws < 1:
        raise OptionError(f"draws = {draws}", "a null without a draw proves nothing", "1 or more")
    if not weights:
        return no_super_weight("null: matched weights", subject)
    intact = finite_intact_nats(subject)
    measure_matched_together(subject, tuple(weights), draws)
    ratios = []
    for seed in range(draws):
        drawn = nats_without_matched(subject, tuple(weights), seed)
        if isinstance(drawn, str):
            return _cannot_rank("null: matched weights", subject, drawn)
        ratios.append(collapse_ratio(intact, drawn))
    summary = (
        f"{format_count(weights)} of the next-largest of the same matrix zeroed, worst of {draws}: x{max(ratios):.4f}"
    )
    return _verdict("null: matched weights", subject, max(ratios), limit, summary, {"draws": ratios})


def largest_null(subject: Subject, weights: Sequence[SuperWeight], limit: Limit) -> Verdict:
    """Zero the largest other weights of every matrix, and judge the perplexity ratio.

    The default limit is lowered to the square root of the collapse ratio if that is smaller; not for an inert set,
    which proves nothing that other weights could contradict.
    """
    if not weights:
        return no_super_weight("null: largest others", subject)
    intact = finite_intact_nats(subject)
    found = nats_without_largest(subject, tuple(weights))
    if isinstance(found, str):
        return _cannot_rank("null: largest others", subject, found)
    ablated, removed = found
    collapse = collapse_ratio(intact, ablated_nats(subject, weights))
    root = math.sqrt(max(1.0, collapse))
    if limit.high is not None and root < limit.high and not (is_given(limit) or collapse_class(collapse) == "inert"):
        limit = replace(limit, high=root, source="the square root of the collapse ratio")
    ratio = collapse_ratio(intact, ablated)
    summary = f"the {removed:,} largest others (0.01 % of every matrix) zeroed: x{ratio:.4f}"
    return _verdict("null: largest others", subject, ratio, limit, summary, {"weights": removed})


def _cannot_rank(check: str, subject: Subject, found: str) -> Verdict:
    summary = f"no null can be drawn, magnitudes cannot be ranked here: {found}"
    return Verdict(check, subject.name, Outcome.NOT_APPLICABLE, summary)


def _verdict(check: str, subject: Subject, ratio: float, limit: Limit, summary: str, facts: dict[str, Any]) -> Verdict:
    """Return a passed or inconclusive verdict: a failed null means incomplete coordinates, not a bad model."""
    passed = limit.holds(ratio)
    return Verdict(
        check,
        subject.name,
        Outcome.PASSED if passed else Outcome.INCONCLUSIVE,
        summary,
        measured=ratio,
        limit=limit,
        unit="x",
        cause="" if passed else f"inconclusive, other weights matter as well (x{ratio:.4g})",
        attempt="" if passed else _advice(subject, limit),
        facts=facts,
        cause_kind="" if passed else "null",
    )


def _advice(subject: Subject, limit: Limit) -> str:
    if published(subject.name):
        return "the published coordinates are incomplete: relocate without the index (swcheck locate)"
    return f"the super weights may be incomplete: swcheck locate; or give another limit than {limit}: --swcheck-limit"
