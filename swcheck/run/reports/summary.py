"""Formats the section at the end of a run: tables of the verdicts, explanations, skipped checks."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from tabulate import tabulate

from swcheck.base.formatting import format_number, format_shortened
from swcheck.base.limits import KIND_WORDS
from swcheck.base.records import Outcome, Verdict
from swcheck.base.terminal.wrapping import MAX_WIDTH, wrapped
from swcheck.run.reports.margins import Reported, margin, severity
from swcheck.run.reports.peer_numbers import layer_words, peer_rows

OUTCOME_WORDS: Final = {Outcome.NOT_APPLICABLE: "not applicable", Outcome.FAILED: "FAILED"}


SUITE: Final = "swcheck.suite."
"""How the node ids of the shipped suite begin."""


QUANTIZED_CACHE: Final = "a quantized KV cache"
OTHER_KERNELS: Final = ", the kernels of other runtimes"
GENERATION: Final = "text generation"
NOT_COVERED: Final = f"{GENERATION}, {QUANTIZED_CACHE}{OTHER_KERNELS}"
HEADS: Final = ("check", "measured", "limit", "margin", "worst prompt", "outcome")
PROMPT_WIDTH: Final = 28
"""The largest width of the worst prompt in the table."""


NARROW_PROMPT, NARROW_NAME = 12, 12
"""The smallest widths of the worst prompt and of a name, where the terminal is narrow."""


SHOWN_WITH_V: Final = ", shown with -v"
MOST_LAYERS: Final = 5
"""The number of layers that are ranked in a run that is not verbose."""


COLUMN_NAMES: Final = {
    "super weights": "super\nweight",
    "super activations": "activation",
    "predictions": "KL,\nnats",
}
"""Column heads in the table of several candidates; a check without an entry is its own head."""


def verdict_table(reported: Sequence[Reported], width: int = MAX_WIDTH) -> str:
    """Return a table with a row for each verdict. The column of worst prompts is left out if no verdict has one.

    ``width`` is that of the terminal: prompts are shortened to it, then names are wrapped.
    """
    rows = [
        [
            name,
            format_number(verdict.measured, verdict.unit),
            limit_cell(verdict),
            format_number(margin(verdict), "x"),
            format_shortened(str(verdict.facts.get("worst_prompt") or "-"), PROMPT_WIDTH),
            outcome_word(verdict),
        ]
        for name, (_, verdict) in zip(row_names(reported), reported, strict=True)
    ]
    columns = [n for n, head in enumerate(HEADS) if head != "worst prompt" or any(row[n] != "-" for row in rows)]
    table = [[row[n] for n in columns] for row in [list(HEADS), *rows]]
    if "worst prompt" in table[0]:
        column = table[0].index("worst prompt")
        room = max(NARROW_PROMPT, _widths(table)[column] - _excess(table, width))
        for row in table[1:]:
            row[column] = format_shortened(row[column], room)
    return _aligned(table, width)


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column; a cell may have several lines."""
    return [
        max(len(line) for cell in cells for line in (cell.splitlines() or [""])) for cells in zip(*table, strict=True)
    ]


def _excess(table: Sequence[Sequence[str]], width: int) -> int:
    """Return by how many characters a table is wider than ``width``; its columns are two blanks apart."""
    widths = _widths(table)
    return sum(widths) + 2 * (len(widths) - 1) - width


def _aligned(table: list[list[str]], width: int) -> str:
    """Return a table, whose first row are the heads, as text; the first column is wrapped where it is too wide.

    The heads are given to tabulate as a row, since it makes a column of heads two characters wider than they are.
    """
    room = max(NARROW_NAME, _widths(table)[0] - max(0, _excess(table, width)))
    for row in table:
        row[0] = "\n".join(textwrap.wrap(row[0], room)) if len(row[0]) > room else row[0]
    rule = ["-" * column for column in _widths(table)]
    return tabulate([table[0], rule, *table[1:]], tablefmt="plain", disable_numparse=True)


def outcome_word(verdict: Verdict) -> str:
    """Return the outcome as the table shows it: ERROR, as pytest says, where a test could not begin."""
    if verdict.outcome is Outcome.FAILED and verdict.facts.get("phase") == "setup":
        return "ERROR"
    return OUTCOME_WORDS.get(verdict.outcome) or verdict.outcome.value


def row_names(reported: Sequence[Reported]) -> list[str]:
    """Return the check of each verdict, with the name of its test added if another test has reported it as well.

    The check of the shipped suite has its name alone. Parameters of a test are shown where nothing else tells two rows
    apart: model and candidate stand above the table.
    """
    checks = [verdict.check for _, verdict in reported]
    brief = [
        verdict.check
        if test.startswith(SUITE) or checks.count(verdict.check) == 1
        else f"{verdict.check} ({_test_name(test).partition('[')[0]})"
        for test, verdict in reported
    ]
    return [
        name if brief.count(name) == 1 else f"{verdict.check} ({_test_name(test)})"
        for name, (test, verdict) in zip(brief, reported, strict=True)
    ]


def _test_name(test: str) -> str:
    return test.rpartition("::")[2]


def limit_cell(verdict: Verdict) -> str:
    """Return a limit as a table cell: ratios begin with ``x``, as in the column of measured values."""
    limit = verdict.limit
    if limit is None:
        return "-"
    low, high = (
        None if end is None else ("x" if verdict.unit == "x" else "") + f"{end:,.4g}" for end in (limit.low, limit.high)
    )
    if high is None:
        return "reported" if not limit.low else f">= {low}"
    return f"<= {high}" if low is None else f"{low} .. {high}"


def summary(reported: Sequence[Reported], width: int = 80, *, verbose: bool = False) -> list[str]:
    """Return the lines of the section at the end of a run, at most ``width`` characters wide where they can be wrapped.

    Each model and each candidate has a table, explanations of its rows, and its skipped checks. Several candidates of
    one model share a table. The last line says what the run does not cover. So that a red run fits a screen, it explains
    what is red alone, and a green reference is one line; ``verbose`` shows all, and the numbers that other tools print.
    """
    width = min(width, MAX_WIDTH)
    brief = not verbose and any(verdict.red for _, verdict in reported)
    lines: list[str] = []
    pairs = list(dict.fromkeys((verdict.model, verdict.candidate) for _, verdict in reported))
    for model, candidate in pairs:
        candidates = [name for other, name in pairs if other == model and name is not None]
        if candidate is not None and len(candidates) > 1:
            if candidate == candidates[0]:
                shown = [entry for entry in reported if entry[1].candidate in candidates]
                lines += _candidates_section(model, shown, width, verbose=verbose)
            continue
        mine = [entry for entry in reported if (entry[1].model, entry[1].candidate) == (model, candidate)]
        measured = [entry for entry in mine if entry[1].outcome is not Outcome.SKIPPED]
        if brief and candidate is None and all(verdict.outcome is Outcome.PASSED for _, verdict in measured):
            number = f"{len(measured)} check{'s' * (len(measured) > 1)}"
            lines += ["", *wrapped(f"{model}: {number} passed{SHOWN_WITH_V}", width)] if measured else []
            lines += _skipped(mine, width)
            continue
        explained = [entry for entry in measured if not brief or _needs_words(entry[1])]
        gap = [] if brief and lines and lines[-1].endswith(SHOWN_WITH_V) else [""]
        lines += [*gap, *wrapped(model if candidate is None else f"{candidate} against {model}", width)]
        lines += [*_candidate_kind(mine, width), *_folded(_notes(mine), width)]
        if measured:
            lines += [
                "",
                *verdict_table(measured, width).splitlines(),
                "",
                *_explanations(explained, width),
                *_weight_changes(measured, width),
                *_peer_lines(measured, width, verbose=verbose),
            ]
        lines += _skipped(mine, width)
    return [*lines[1:], "", *wrapped(f"not covered: {not_covered(reported)}", width)] if lines else []


def not_covered(reported: Sequence[Reported]) -> str:
    """Return what no check has covered.

    A quantized KV cache is covered if there is one and every candidate that has one was scored through it. Kernels are
    covered if every candidate was computed by its own runtime. Of generated text, the greedy tokens are that were compared.
    """
    candidates = [verdict for _, verdict in reported if verdict.candidate is not None and verdict.facts]
    words = NOT_COVERED
    greedy = {
        verdict.candidate: found["tokens"] for verdict in candidates if (found := verdict.facts.get("greedy_text"))
    }
    if greedy and greedy.keys() == {verdict.candidate for verdict in candidates}:
        words = words.replace(GENERATION, f"{GENERATION} beyond {min(greedy.values())} greedy tokens")
    if candidates and all("runtime" in verdict.facts for verdict in candidates):
        words = words.replace(OTHER_KERNELS, "")
    scored = [bool(v.facts["kv_cache"]["scored"]) for _, v in reported if "kv_cache" in v.facts]
    return words.replace(f"{QUANTIZED_CACHE}, ", "") if scored and all(scored) else words


def _needs_words(verdict: Verdict) -> bool:
    """Return whether a row of the table is explained in any run: it is red, near, or does not apply."""
    return verdict.red or verdict.outcome in {Outcome.NEAR, Outcome.NOT_APPLICABLE}


def _peer_lines(reported: Sequence[Reported], width: int, *, verbose: bool) -> list[str]:
    """Return the ranking of the layers where it was asked for, and, ``verbose``, the numbers that other tools print."""
    verdicts = [verdict for _, verdict in reported]
    layers = layer_words(verdicts, sys.maxsize if verbose else MOST_LAYERS)
    rows = [*(peer_rows(verdicts) if verbose else ()), *([("layers", layers)] if layers else ())]
    column = max((len(name) for name, _ in rows), default=0) + 2
    return [line for name, text in rows for line in wrapped(f"{name:<{column}}{text}", width, column)]


def _candidates_section(model: str, reported: Sequence[Reported], width: int, *, verbose: bool) -> list[str]:
    """Return the lines for several candidates of one model: one table, then the details of each candidate.

    Details are its verdicts that are red, near or not applicable; the others are in the JSON file only. Notes and
    reasons that all candidates share are printed once, above the table.
    """
    by_candidate = {name: [one for one in reported if one[1].candidate == name] for name in _candidate_names(reported)}
    notes = {name: _notes(mine) for name, mine in by_candidate.items()}
    reasons = {
        name: [words for _, one in mine if (words := _not_applicable(one))] for name, mine in by_candidate.items()
    }
    shared = {words for found in (notes, reasons) for words in _in_all(list(found.values()))}
    printed, lines = {"", *shared}, ["", *wrapped(f"candidates against {model}", width)]
    for found in (notes, reasons):
        lines += _folded((words for words in next(iter(found.values())) if words in shared), width)
    lines += ["", *candidates_table(reported, width).splitlines()]
    for name, mine in by_candidate.items():
        explained = [
            one
            for one in mine
            if one[1].red or one[1].outcome is Outcome.NEAR or _not_applicable(one[1]) not in printed
        ]
        own = _folded((words for words in notes[name] if words not in shared), width)
        details = [*_candidate_kind(mine, width), *own, *_explanations(explained, width)]
        details += _peer_lines(mine, width, verbose=verbose)
        if details:
            lines += ["", *wrapped(str(name), width), *details, *_weight_changes(mine, width)]
    return lines + _skipped([entry for entry in reported if entry[1].candidate], width)


def _candidate_names(reported: Sequence[Reported]) -> list[str | None]:
    return list(dict.fromkeys(verdict.candidate for _, verdict in reported))


def _not_applicable(verdict: Verdict) -> str:
    """Return the check and the reason why it is not applicable; empty if it is applicable."""
    return f"{verdict.check}: {verdict.summary}" if verdict.outcome is Outcome.NOT_APPLICABLE else ""


def _in_all(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return the entries of the first list that are in all other lists too."""
    return [words for words in lists[0] if all(words in other for other in lists)]


def candidates_table(reported: Sequence[Reported], width: int = MAX_WIDTH) -> str:
    """Return a table with a row for each candidate: the measured values, ``!`` after a red one, the worst outcome."""
    checks = list(dict.fromkeys(verdict.check for _, verdict in reported))
    heads = ("candidate", *(COLUMN_NAMES.get(check, check) for check in checks), "verdict")
    table = [list(heads)]
    for name in _candidate_names(reported):
        mine = [verdict for _, verdict in reported if verdict.candidate == name]
        cells = (_cell([verdict for verdict in mine if verdict.check == check]) for check in checks)
        table.append([str(name), *cells, outcome_word(max(mine, key=severity))])
    return _aligned(table, width)


def _cell(verdicts: Sequence[Verdict]) -> str:
    """Return the table cell of one check of a candidate: its worst verdict."""
    if not verdicts:
        return "-"
    worst = max(verdicts, key=severity)
    return format_number(worst.measured, worst.unit) + (" !" if worst.red else "")


def _candidate_kind(reported: Sequence[Reported], width: int) -> list[str]:
    """Return the lines that say for which kind a candidate is taken (quantized, fine-tuned, pruned), and why.

    The limits depend on the kind.
    """
    found = [verdict.facts for _, verdict in reported if verdict.facts.get("candidate_kind")]
    return wrapped("taken for {candidate_kind}: {candidate_kind_why}".format(**found[0]), width, 2) if found else []


def _notes(reported: Sequence[Reported]) -> list[str]:
    """Return the notes of the verdicts, each once: how a baseline differs from this run, permutations followed."""
    return list(dict.fromkeys(f"note: {note}" for _, verdict in reported for note in verdict.facts.get("notes", ())))


def _folded(texts: Iterable[str], width: int) -> list[str]:
    return [line for text in texts for line in wrapped(text, width, 2)]


def _weight_changes(reported: Sequence[Reported], width: int) -> list[str]:
    """Return the change of each super weight, also of a green one, if the candidate is fine-tuned or pruned."""
    if not any(verdict.facts.get("candidate_kind") in KIND_WORDS for _, verdict in reported):
        return []
    rows = [row for _, verdict in reported if verdict.check == "super weights" for row in verdict.detail]
    return [line for name, text in rows for line in wrapped(f"drift of {name}: {text}", width, 2)]


def _explanations(reported: Sequence[Reported], width: int) -> list[str]:
    """Return the text of each verdict after the name of its check, wrapped; equal texts are printed once.

    Of a red verdict that measured something it is the cause alone: the number is in the table, the rest in the failure.
    """
    checks_by_text: dict[str, list[str]] = {}
    for _, verdict in reported:
        words = verdict.summary
        if verdict.cause:
            unmeasured = verdict.measured is None and verdict.summary
            words = f"{verdict.cause}: {verdict.summary}" if unmeasured else verdict.cause
        checks_by_text.setdefault(words, []).append(verdict.check)
    column = max((len(checks[0]) for checks in checks_by_text.values() if len(checks) == 1), default=0) + 2
    lines = []
    for words, checks in checks_by_text.items():
        alone = len(checks) == 1
        start = f"{checks[0]:<{column}}" if alone else f"{', '.join(dict.fromkeys(checks))}: "
        lines += wrapped(start + words, width, indent=column if alone else 2)
    return lines


def _skipped(reported: Sequence[Reported], width: int) -> list[str]:
    """Return the skipped checks, those with the same reason on one line."""
    reasons: dict[str, dict[str, None]] = {}  # of several candidates a check is named once
    for _, verdict in reported:
        if verdict.outcome is Outcome.SKIPPED:
            reasons.setdefault(verdict.summary, {})[verdict.check] = None
    lines = [""] if reasons else []
    for reason, checks in reasons.items():
        lines += wrapped(f"skipped: {', '.join(checks)} ({reason})", width, indent=9)
    return lines
