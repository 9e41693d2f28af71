"""The text of a red verdict: the cause in the first line, then details, the limit, and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from swcheck.base.records import Verdict
from swcheck.base.terminal import visible
from swcheck.base.wrapping import MAX_WIDTH, wrapped, wrapped_rows

FOUND: Final = "found"
PROOF: Final = "proof"
TRY: Final = "try"
FEWEST_LINES: Final = 2
"""From this many lines on, lines that were shown before are replaced by a reference to the test that showed them."""


def verdict_message(
    verdict: Verdict, shown: Mapping[tuple[str, str], str] | None = None, *, width: int | None = None
) -> str:
    """Return the text of a red verdict: cause and check in the first line, then details, the limit, and what to try.

    ``shown`` maps rows (name, text) that another test has shown already to the name of that test. ``FEWEST_LINES`` such
    lines or more are replaced by a reference to it. ``width`` is that of the terminal: prose is wrapped to it, snippets
    to paste are not.
    """
    lines = [f"{verdict.cause or verdict.summary}: {verdict.check} of {verdict.who}"]
    if width is not None and len(lines[0]) > width:
        lines = [
            *wrapped(f"{verdict.cause or verdict.summary}:", width, 2),
            *wrapped(f"  {verdict.check} of {verdict.who}", width, 4),
        ]
    attempts = _attempt_lines(verdict.attempt, width)
    repeated = [row for row in message_rows(verdict) if row in (shown or {})]
    if shown is None or sum(len(attempts) if name == TRY else 1 for name, _ in repeated) < FEWEST_LINES:
        shown, repeated = {}, []
    if verdict.cause and verdict.summary and (FOUND, verdict.summary) not in repeated:
        lines += wrapped(f"  {verdict.summary}", width, 4)
    lines += wrapped_rows([row for row in verdict.detail if row not in repeated], width)
    if verdict.limit is not None:
        lines += wrapped(f"  limit {verdict.limit} ({verdict.limit.source})", width, 4)
    if (TRY, verdict.attempt) not in repeated:
        lines += attempts
    for place in dict.fromkeys(shown[row] for row in repeated):
        rows_there = (name for name, text in repeated if shown[name, text] == place)
        names = dict.fromkeys("layers" if name.startswith("layers.") else name for name in rows_there)
        lines += wrapped(f"  as under {place}: {', '.join(names)}", width, 4)
    return visible("\n".join(lines))


def message_rows(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the rows that need no repetition: details except proofs, advice, the summary if nothing was measured."""
    found = [row for row in verdict.detail if row[0] != PROOF]
    found = [(FOUND, verdict.summary), *found] if verdict.cause and verdict.measured is None else found
    return [*found, (TRY, verdict.attempt)] if verdict.attempt else found


def _attempt_lines(attempt: str, width: int | None) -> list[str]:
    """Return the lines with what to try. A list that does not fit into one line gets a line for each entry."""
    head, colon, rest = attempt.partition(": ")
    if len(attempt) + len("  try: ") <= (width or MAX_WIDTH) or not colon:
        return wrapped(f"  try: {attempt}", width, len("  try: ")) if attempt else []
    return [*wrapped(f"  try: {head}:", width, len("  try: ")), *(f"    {entry}" for entry in rest.split("; "))]
