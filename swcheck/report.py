"""Verdicts to a terminal table and to JSON; the only room that decides digits and column order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tabulate import tabulate

from swcheck.lines import WIDEST, folded
from swcheck.records import Limit, Outcome, Verdict

SCHEMA: Final = 1
WORDS: Final = {Outcome.NOT_APPLICABLE: "not applicable", Outcome.FAILED: "FAILED"}
CACHE: Final = "a quantized KV cache"
NOT_COVERED: Final = f"text generation, {CACHE}, the kernels of other runtimes"
HEAD: Final = ("check", "measured", "limit", "margin", "worst prompt", "outcome")
PROMPT: Final = 28
"""How wide the worst prompt may be in the table."""

SHORT: Final = {
    "super weights": "super\nweight",
    "super activations": "activation",
    "predictions": "KL,\nnats",
}
"""What the columns of the table of candidates are called; the others by their check."""

Reported = tuple[str, Verdict]
"""The node id of a test, and a verdict it gave."""


def number(value: float | None, unit: str = "") -> str:
    """A measured value as people read it: four digits, thousands separated, a ratio with its x."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    if unit == "x":
        return f"x{value:z.3f}" if abs(value) < 10 else f"x{text}"
    return text


def margin(verdict: Verdict) -> float | None:
    """How many times farther the measured value could move before it met its limit; below 1 it is outside.

    None where that has no meaning: a count, a sign that is flipped, a value that is not finite, an open limit.
    """
    measured, limit = verdict.measured, verdict.limit
    if measured is None or limit is None or not verdict.unit or not math.isfinite(measured) or measured <= 0:
        return None
    sides = [measured / limit.low if limit.low else None, limit.high / measured if limit.high else None]
    return min((side for side in sides if side is not None), default=None)


def table(reported: Sequence[Reported]) -> str:
    """One row per verdict: check, measured, limit, margin, the worst prompt where any row has one, outcome."""
    names = _names(reported)
    rows = [
        (
            name,
            number(verdict.measured, verdict.unit),
            _limit(verdict),
            number(margin(verdict), "x"),
            shortened(str(verdict.facts.get("worst_prompt") or "-"), PROMPT),
            WORDS.get(verdict.outcome) or verdict.outcome.value,
        )
        for name, (_, verdict) in zip(names, reported, strict=True)
    ]
    columns = [n for n, head in enumerate(HEAD) if head != "worst prompt" or any(row[n] != "-" for row in rows)]
    rows, head = [tuple(row[n] for n in columns) for row in rows], [HEAD[n] for n in columns]  # type: ignore[misc]
    return tabulate(rows, headers=head, disable_numparse=True, maxcolwidths=[30] + [None] * (len(head) - 1))


def shortened(text: str, width: int) -> str:
    """``text`` in one line of at most ``width`` characters, control characters escaped, cut in the middle."""
    flat = "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)
    kept = width - 3
    return flat if len(flat) <= width else f"{flat[: kept - kept // 2]}...{flat[len(flat) - kept // 2 :]}"


def tabulated(rows: Sequence[Sequence[str]], head: Sequence[str], *, style: str = "simple") -> list[str]:
    """Rows of text under their head, as the lines of a table; ``style`` is one of tabulate's."""
    return tabulate(rows, headers=head, tablefmt=style, disable_numparse=True).splitlines()


def _names(reported: Sequence[Reported]) -> list[str]:
    """The checks; where a check stands more than once, the test it comes from beside it."""
    checks = [verdict.check for _, verdict in reported]
    return [
        verdict.check if checks.count(verdict.check) == 1 else f"{verdict.check} ({test.rpartition('::')[2]})"
        for test, verdict in reported
    ]


def _limit(verdict: Verdict) -> str:
    """The limit in the unit of what was measured."""
    limit = verdict.limit
    if limit is None:
        return "-"
    low, high = (
        None if end is None else ("x" if verdict.unit == "x" else "") + f"{end:,.4g}" for end in (limit.low, limit.high)
    )
    if high is None:
        return "reported" if not limit.low else f">= {low}"
    return f"<= {high}" if low is None else f"{low} .. {high}"


def summary(reported: Sequence[Reported], width: int = 80) -> list[str]:
    """The end-of-run text: for each model and candidate its table and the words of each row, then what is open."""
    width = min(width, WIDEST)
    lines: list[str] = []
    pairs = list(dict.fromkeys((verdict.model, verdict.candidate) for _, verdict in reported))
    for model, candidate in pairs:
        rivals = [name for other, name in pairs if other == model and name is not None]
        if candidate is not None and len(rivals) > 1:
            if candidate == rivals[0]:
                lines += _together(model, [entry for entry in reported if entry[1].candidate in rivals], width)
            continue
        mine = [entry for entry in reported if (entry[1].model, entry[1].candidate) == (model, candidate)]
        measured = [entry for entry in mine if entry[1].outcome is not Outcome.SKIPPED]
        lines += ["", *folded(model if candidate is None else f"{candidate} against {model}", width)]
        lines += [*_taken(mine, width), *_folded(_notes(mine), width)]
        if measured:
            lines += ["", *table(measured).splitlines(), "", *_words(measured, width), *_drift(measured, width)]
        lines += _skipped(mine, width)
    return [*lines[1:], "", *folded(f"not covered: {not_covered(reported)}", width)] if lines else []


def not_covered(reported: Sequence[Reported]) -> str:
    """What nothing here has looked at; a quantized cache has been where every one that a candidate has was scored."""
    scored = [bool(v.facts["kv_cache"]["scored"]) for _, v in reported if "kv_cache" in v.facts]
    return NOT_COVERED.replace(f"{CACHE}, ", "") if scored and all(scored) else NOT_COVERED


def _together(model: str, reported: Sequence[Reported], width: int) -> list[str]:
    """Several candidates of one model: one table, then of each what is red, near or not applicable; the rest is in the file.

    What is true of all of them is said once, above.
    """
    each = {name: [one for one in reported if one[1].candidate == name] for name in _rivals(reported)}
    notes = {name: _notes(mine) for name, mine in each.items()}
    idle = {name: [words for _, one in mine if (words := _idle(one))] for name, mine in each.items()}
    shared = {words for found in (notes, idle) for words in _common(list(found.values()))}
    known, lines = {"", *shared}, ["", *folded(f"candidates against {model}", width)]
    for found in (notes, idle):
        lines += _folded((words for words in next(iter(found.values())) if words in shared), width)
    lines += ["", *candidates_table(reported).splitlines()]
    for name, mine in each.items():
        told = [one for one in mine if one[1].red or one[1].outcome is Outcome.NEAR or _idle(one[1]) not in known]
        own = _folded((words for words in notes[name] if words not in shared), width)
        said = [*_taken(mine, width), *own, *_words(told, width)]
        if said:
            lines += ["", *folded(str(name), width), *said, *_drift(mine, width)]
    return lines + _skipped([entry for entry in reported if entry[1].candidate], width)


def _rivals(reported: Sequence[Reported]) -> list[str | None]:
    return list(dict.fromkeys(verdict.candidate for _, verdict in reported))


def _idle(verdict: Verdict) -> str:
    """Why a check has nothing to say here, with its name; empty where it has."""
    return f"{verdict.check}: {verdict.summary}" if verdict.outcome is Outcome.NOT_APPLICABLE else ""


def _common(lists: Sequence[Sequence[str]]) -> list[str]:
    """What stands in all of the lists."""
    return [words for words in lists[0] if all(words in other for other in lists)]


def candidates_table(reported: Sequence[Reported]) -> str:
    """One row per candidate: what each check measured, a red one marked, and the verdict on all of them together."""
    names = _rivals(reported)
    checks = list(dict.fromkeys(verdict.check for _, verdict in reported))
    rows = []
    for name in names:
        mine = [verdict for _, verdict in reported if verdict.candidate == name]
        cells = (_cell([verdict for verdict in mine if verdict.check == check]) for check in checks)
        judged = [verdict.outcome for verdict in sorted(mine, key=badness)]
        rows.append((name, *cells, WORDS.get(judged[-1]) or judged[-1].value))
    heads = ("candidate", *(SHORT.get(check, check) for check in checks), "verdict")
    return tabulate(rows, headers=heads, disable_numparse=True, maxcolwidths=[24, *([None] * (len(checks) + 1))])


def _cell(verdicts: Sequence[Verdict]) -> str:
    """The worst of a candidate's verdicts on one check."""
    if not verdicts:
        return "-"
    worst = max(verdicts, key=badness)
    return number(worst.measured, worst.unit) + (" !" if worst.red else "")


def _taken(reported: Sequence[Reported], width: int) -> list[str]:
    """What was taken to have been done to a candidate, and why: its limits depend on it."""
    found = [verdict.facts for _, verdict in reported if verdict.facts.get("candidate_kind")]
    return folded("taken for {candidate_kind}: {candidate_kind_why}".format(**found[0]), width, 2) if found else []


def _notes(reported: Sequence[Reported]) -> list[str]:
    """How the reference was measured, where that is another way than this run's, and what of a candidate was followed."""
    return list(dict.fromkeys(f"note: {note}" for _, verdict in reported for note in verdict.facts.get("notes", ())))


def _folded(texts: Iterable[str], width: int) -> list[str]:
    return [line for text in texts for line in folded(text, width, 2)]


def _drift(reported: Sequence[Reported], width: int) -> list[str]:
    """Of what was fine-tuned or pruned, each super weight before and after, also where nothing is red."""
    if not any(verdict.facts.get("candidate_kind") in {"finetuned", "pruned"} for _, verdict in reported):
        return []
    rows = [row for _, verdict in reported if verdict.check == "super weights" for row in verdict.detail]
    return [line for name, text in rows for line in folded(f"drift of {name}: {text}", width, 2)]


def _words(reported: Sequence[Reported], width: int) -> list[str]:
    """What the verdicts say, each after its check, wrapped; what several say alike is said once.

    Of a red one that measured something that is its cause: the number is in the table, the rest under its failure.
    """
    said: dict[str, list[str]] = {}
    for _, verdict in reported:
        words = verdict.summary
        if verdict.cause:
            unmeasured = verdict.measured is None and verdict.summary
            words = f"{verdict.cause}: {verdict.summary}" if unmeasured else verdict.cause
        said.setdefault(words, []).append(verdict.check)
    column = max((len(checks[0]) for checks in said.values() if len(checks) == 1), default=0) + 2
    lines = []
    for words, checks in said.items():
        alone = len(checks) == 1
        start = f"{checks[0]:<{column}}" if alone else f"{', '.join(dict.fromkeys(checks))}: "
        lines += folded(start + words, width, indent=column if alone else 2)
    return lines


def _skipped(reported: Sequence[Reported], width: int) -> list[str]:
    """The checks that were skipped, those of one reason on one line."""
    reasons: dict[str, list[str]] = {}
    for _, verdict in reported:
        if verdict.outcome is Outcome.SKIPPED:
            reasons.setdefault(verdict.summary, []).append(verdict.check)
    lines = [""] if reasons else []
    for reason, checks in reasons.items():
        lines += folded(f"skipped: {', '.join(checks)} ({reason})", width, indent=9)
    return lines


def as_json(verdict: Verdict, test: str = "") -> dict[str, Any]:
    """One verdict as plain values; non-finite numbers become strings, since JSON has no word for them."""
    record = {
        "check": verdict.check,
        "model": verdict.model,
        "candidate": verdict.candidate,
        "measured": verdict.measured,
        "unit": verdict.unit,
        "limit": None if verdict.limit is None else [verdict.limit.low, verdict.limit.high],
        "limit_source": None if verdict.limit is None else verdict.limit.source,
        "margin": margin(verdict),
        "outcome": verdict.outcome.value,
        "cause": verdict.cause,
        "summary": verdict.summary,
        "try": verdict.attempt,
        "detail": [list(row) for row in verdict.detail],
        "facts": dict(verdict.facts),
        "test": test,
    }
    return plain(record)  # type: ignore[no-any-return]


def from_json(record: dict[str, Any]) -> Reported:
    """The test and the verdict that ``as_json`` wrote: they have travelled from another process."""
    ends = record["limit"]
    verdict = Verdict(
        check=record["check"],
        model=record["model"],
        outcome=Outcome(record["outcome"]),
        summary=record["summary"],
        candidate=record["candidate"],
        measured=_number(record["measured"]),
        limit=None if ends is None else Limit(_number(ends[0]), _number(ends[1]), record["limit_source"]),
        unit=record["unit"],
        cause=record["cause"],
        attempt=record["try"],
        detail=tuple((name, text) for name, text in record["detail"]),
        facts=record["facts"],
    )
    return record["test"], verdict


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def plain(value: Any) -> Any:
    """``value`` with every number that is not finite as a string: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def dumps(value: Any) -> str:
    """JSON, two spaces deep, never with a bare NaN."""
    return json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False)


def document(reported: Iterable[Reported]) -> dict[str, Any]:
    """What ``--swcheck-json`` writes."""
    return {"schema": SCHEMA, "verdicts": [as_json(verdict, test) for test, verdict in reported]}


def badness(verdict: Verdict) -> tuple[int, float]:
    """How a verdict sorts among several of one test, of which the report shows the worst."""
    order = (
        Outcome.SKIPPED,
        Outcome.NOT_APPLICABLE,
        Outcome.PASSED,
        Outcome.NEAR,
        Outcome.INCONCLUSIVE,
        Outcome.FAILED,
    )
    away = margin(verdict)
    return order.index(verdict.outcome), 0.0 if away is None else -away


def worst_of_each(reported: Iterable[Reported]) -> list[Reported]:
    """One verdict per test, check, model and candidate: the worst, in the order of first appearance."""
    chosen: dict[tuple[str, str, str, str | None], Reported] = {}
    for test, verdict in reported:
        key = (test, verdict.check, verdict.model, verdict.candidate)
        if key not in chosen or badness(verdict) > badness(chosen[key][1]):
            chosen[key] = (test, verdict)
    return list(chosen.values())
