"""The text of a red verdict: the cause in the first line, then details, the limit, and what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from swcheck.base.formatting import format_number
from swcheck.base.records import NOT_ENOUGH, Verdict
from swcheck.base.terminal.visible import visible
from swcheck.base.terminal.wrapping import MAX_WIDTH, wrapped, wrapped_rows

FOUND: Final = "found"
PROOF: Final = "proof"
TRY: Final = "try"
LIMIT: Final = "limit"
CAUSE: Final = "cause"
FIX: Final = "fix"
BRIEF: Final = (PROOF, FIX, "worst prompt", "perplexity")
"""The details that a brief message has; the others are named."""

FEWEST_LINES: Final = 2
"""From this many lines on, lines that were shown before are replaced by a reference to the test that showed them."""


def verdict_message(
    verdict: Verdict,
    shown: Mapping[tuple[str, str], str] | None = None,
    *,
    width: int | None = None,
    brief: bool = False,
) -> str:
    """Return the text of a red verdict: cause and check in the first line, then details, the limit, and what to try.

    ``shown`` maps rows (name, text) that another test has shown already to the name of that test. ``FEWEST_LINES`` such
    lines or more are replaced by a reference to it. ``width`` is that of the terminal: prose is wrapped to it, snippets
    to paste are not. ``brief`` leaves out what was ruled out and what the diagnosis has measured on its way; of a cause
    that another test has shown it repeats nothing.
    """
    known = shown or {}
    if brief and (CAUSE, verdict.cause) in known:
        return _same_cause(verdict, known, width)
    lines = wrapped(f"{verdict.cause or verdict.summary}: {verdict.check} of {verdict.who}", width, 2)
    attempts, rows = _attempt_lines(verdict.attempt, width), message_rows(verdict)
    repeated = [row for row in rows if row in known and row[0] not in {LIMIT, CAUSE} and (brief or row[0] != PROOF)]
    if sum(len(attempts) if name == TRY else 1 for name, _ in repeated) < (1 if brief else FEWEST_LINES):
        repeated = []
    new = [row for row in verdict.detail if row not in repeated]
    if verdict.cause and verdict.summary and (FOUND, verdict.summary) not in repeated:
        lines += wrapped(f"  {verdict.summary}", width, 4)
    lines += wrapped_rows([row for row in new if not brief or row[0] in BRIEF], width)
    if verdict.limit is not None:
        lines += wrapped(f"  limit {verdict.limit}{_new_source(verdict.limit.source, known)}", width, 4)
    if (TRY, verdict.attempt) not in repeated:
        lines += attempts
    told = [row for row in repeated if not brief or row[0] in {*BRIEF, TRY}]
    for place in dict.fromkeys(known[row] for row in told):
        lines += wrapped(f"  as under {place}: {_names([row[0] for row in told if known[row] == place])}", width, 4)
    hidden = [name for name, _ in new if brief and name not in BRIEF]
    lines += wrapped(f"  more with -v: {_names(hidden)}", width, 4) if hidden else []
    return visible("\n".join(lines))


def message_rows(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the rows that need no repetition: cause, details, the source of the limit, advice; the summary if nothing was measured."""
    found = [(FOUND, verdict.summary)] if verdict.cause and verdict.measured is None else []
    found += [(CAUSE, verdict.cause)] if verdict.cause else []
    found += [*verdict.detail, *([(LIMIT, verdict.limit.source)] if verdict.limit is not None else [])]
    return [*found, (TRY, verdict.attempt)] if verdict.attempt else found


def _same_cause(verdict: Verdict, shown: Mapping[tuple[str, str], str], width: int | None) -> str:
    """Return the message of a check whose cause another test has shown: the number and its limit."""
    start = f"the same cause as under {shown[CAUSE, verdict.cause]}: {verdict.check} of {verdict.who}"
    number = verdict.summary
    if verdict.measured is not None and verdict.limit is not None:
        unit = f" {verdict.unit}" if verdict.unit not in {"", "x"} else ""
        number = f"{format_number(verdict.measured, verdict.unit)}{unit}, limit {verdict.limit}"
        number += "; that fix is not enough" * any(text.endswith(NOT_ENOUGH) for _, text in verdict.detail)
    return visible("\n".join([*wrapped(start, width, 2), *wrapped(f"  {number}", width, 4)]))


def _names(names: Sequence[str]) -> str:
    """Return the names of rows, each once, those of single matrices as one."""
    return ", ".join(dict.fromkeys("layers" if name.startswith("layers.") else name for name in names))


def _new_source(source: str, shown: Mapping[tuple[str, str], str]) -> str:
    """Return the source of a limit in parentheses, without what another test has shown of it."""
    known = max((text for name, text in shown if name == LIMIT and source.startswith(text)), key=len, default="")
    rest = source.removeprefix(known).lstrip(", ")
    return f" ({rest})" if rest else ""


def _attempt_lines(attempt: str, width: int | None) -> list[str]:
    """Return the lines with what to try. A list that does not fit into one line gets a line for each entry."""
    head, colon, rest = attempt.partition(": ")
    if len(attempt) + len("  try: ") <= (width or MAX_WIDTH) or not colon:
        return wrapped(f"  try: {attempt}", width, len("  try: ")) if attempt else []
    return [*wrapped(f"  try: {head}:", width, len("  try: ")), *(f"    {entry}" for entry in rest.split("; "))]
