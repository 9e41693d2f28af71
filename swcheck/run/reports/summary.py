"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tabulate import tabulate

from swcheck.base.formatting import format_number, format_shortened
from swcheck.base.records import Outcome, Verdict
from swcheck.base.wrapping import WIDEST, wrapped
from swcheck.run.reports.margins import Reported, margin, severity

OUTCOME_WORDS: Final = {Outcome.NOT_APPLICABLE: "not applicable", Outcome.FAILED: "FAILED"}


CACHE: Final = "a quantized KV cache"


NOT_COVERED: Final = f"text generation, {CACHE}, the kernels of other runtimes"


HEAD: Final = ("check", "measured", "limit", "margin", "worst prompt", "outcome")


PROMPT_WIDTH: Final = 28
"""How wide the worst prompt may be in the table."""


COLUMN_NAMES: Final = {
    "super weights": "super\nweight",
    "super activations": "activation",
    "predictions": "KL,\nnats",
}
"""What the columns of the table of candidates are called; the others by their check."""


def verdict_table(reported: Sequence[Reported]) -> str:
    """One row per verdict: check, measured, limit, margin, the worst prompt where any row has one, outcome."""
    names = _names(reported)
    rows = [
        (
            name,
            format_number(verdict.measured, verdict.unit),
            _limit(verdict),
            format_number(margin(verdict), "x"),
            format_shortened(str(verdict.facts.get("worst_prompt") or "-"), PROMPT_WIDTH),
            OUTCOME_WORDS.get(verdict.outcome) or verdict.outcome.value,
        )
        for name, (_, verdict) in zip(names, reported, strict=True)
    ]
    columns = [n for n, head in enumerate(HEAD) if head != "worst prompt" or any(row[n] != "-" for row in rows)]
    rows, head = [tuple(row[n] for n in columns) for row in rows], [HEAD[n] for n in columns]  # type: ignore[misc]
    return tabulate(rows, headers=head, disable_numparse=True, maxcolwidths=[30] + [None] * (len(head) - 1))


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
                lines += _candidates(model, [entry for entry in reported if entry[1].candidate in rivals], width)
            continue
        mine = [entry for entry in reported if (entry[1].model, entry[1].candidate) == (model, candidate)]
        measured = [entry for entry in mine if entry[1].outcome is not Outcome.SKIPPED]
        lines += ["", *wrapped(model if candidate is None else f"{candidate} against {model}", width)]
        lines += [*_candidate_kind(mine, width), *_folded(_notes(mine), width)]
        if measured:
            lines += [
                "",
                *verdict_table(measured).splitlines(),
                "",
                *_explanations(measured, width),
                *_weight_changes(measured, width),
            ]
        lines += _skipped(mine, width)
    return [*lines[1:], "", *wrapped(f"not covered: {not_covered(reported)}", width)] if lines else []


def not_covered(reported: Sequence[Reported]) -> str:
    """What nothing here has looked at; a quantized cache has been where every one that a candidate has was scored."""
    scored = [bool(v.facts["kv_cache"]["scored"]) for _, v in reported if "kv_cache" in v.facts]
    return NOT_COVERED.replace(f"{CACHE}, ", "") if scored and all(scored) else NOT_COVERED


def _candidates(model: str, reported: Sequence[Reported], width: int) -> list[str]:
    """Several candidates of one model: one table, then of each what is red, near or not applicable; the rest is in the file.

    What is true of all of them is said once, above.
    """
    each = {name: [one for one in reported if one[1].candidate == name] for name in _candidate_names(reported)}
    notes = {name: _notes(mine) for name, mine in each.items()}
    idle = {name: [words for _, one in mine if (words := _not_applicable(one))] for name, mine in each.items()}
    shared = {words for found in (notes, idle) for words in _in_all(list(found.values()))}
    known, lines = {"", *shared}, ["", *wrapped(f"candidates against {model}", width)]
    for found in (notes, idle):
        lines += _folded((words for words in next(iter(found.values())) if words in shared), width)
    lines += ["", *candidates_table(reported).splitlines()]
    for name, mine in each.items():
        told = [
            one for one in mine if one[1].red or one[1].outcome is Outcome.NEAR or _not_applicable(one[1]) not in known
        ]
        own = _folded((words for words in notes[name] if words not in shared), width)
        said = [*_candidate_kind(mine, width), *own, *_explanations(told, width)]
        if said:
            lines += ["", *wrapped(str(name), width), *said, *_weight_changes(mine, width)]
    return lines + _skipped([entry for entry in reported if entry[1].candidate], width)


def _candidate_names(reported: Sequence[Reported]) -> list[str | None]:
    return list(dict.fromkeys(verdict.candidate for _, verdict in reported))


def _not_applicable(verdict: Verdict) -> str:
    """Why a check has nothing to say here, with its name; empty where it has."""
    return f"{verdict.check}: {verdict.summary}" if verdict.outcome is Outcome.NOT_APPLICABLE else ""


def _in_all(lists: Sequence[Sequence[str]]) -> list[str]:
    """What stands in all of the lists."""
    return [words for words in lists[0] if all(words in other for other in lists)]


def candidates_table(reported: Sequence[Reported]) -> str:
    """One row per candidate: what each check measured, a red one marked, and the verdict on all of them together."""
    names = _candidate_names(reported)
    checks = list(dict.fromkeys(verdict.check for _, verdict in reported))
    rows = []
    for name in names:
        mine = [verdict for _, verdict in reported if verdict.candidate == name]
        cells = (_cell([verdict for verdict in mine if verdict.check == check]) for check in checks)
        judged = [verdict.outcome for verdict in sorted(mine, key=severity)]
        rows.append((name, *cells, OUTCOME_WORDS.get(judged[-1]) or judged[-1].value))
    heads = ("candidate", *(COLUMN_NAMES.get(check, check) for check in checks), "verdict")
    return tabulate(rows, headers=heads, disable_numparse=True, maxcolwidths=[24, *([None] * (len(checks) + 1))])


def _cell(verdicts: Sequence[Verdict]) -> str:
    """The worst of a candidate's verdicts on one check."""
    if not verdicts:
        return "-"
    worst = max(verdicts, key=severity)
    return format_number(worst.measured, worst.unit) + (" !" if worst.red else "")


def _candidate_kind(reported: Sequence[Reported], width: int) -> list[str]:
    """What was taken to have been done to a candidate, and why: its limits depend on it."""
    found = [verdict.facts for _, verdict in reported if verdict.facts.get("candidate_kind")]
    return wrapped("taken for {candidate_kind}: {candidate_kind_why}".format(**found[0]), width, 2) if found else []


def _notes(reported: Sequence[Reported]) -> list[str]:
    """How the reference was measured, where that is another way than this run's, and what of a candidate was followed."""
    return list(dict.fromkeys(f"note: {note}" for _, verdict in reported for note in verdict.facts.get("notes", ())))


def _folded(texts: Iterable[str], width: int) -> list[str]:
    return [line for text in texts for line in wrapped(text, width, 2)]


def _weight_changes(reported: Sequence[Reported], width: int) -> list[str]:
    """Of what was fine-tuned or pruned, each super weight before and after, also where nothing is red."""
    if not any(verdict.facts.get("candidate_kind") in {"finetuned", "pruned"} for _, verdict in reported):
        return []
    rows = [row for _, verdict in reported if verdict.check == "super weights" for row in verdict.detail]
    return [line for name, text in rows for line in wrapped(f"drift of {name}: {text}", width, 2)]


def _explanations(reported: Sequence[Reported], width: int) -> list[str]:
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
        lines += wrapped(start + words, width, indent=column if alone else 2)
    return lines


def _skipped(reported: Sequence[Reported], width: int) -> list[str]:
    """The checks that were skipped, those of one reason on one line."""
    reasons: dict[str, list[str]] = {}
    for _, verdict in reported:
        if verdict.outcome is Outcome.SKIPPED:
            reasons.setdefault(verdict.summary, []).append(verdict.check)
    lines = [""] if reasons else []
    for reason, checks in reasons.items():
        lines += wrapped(f"skipped: {', '.join(checks)} ({reason})", width, indent=9)
    return lines
