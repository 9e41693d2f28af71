"""The text of a red verdict: a first line that is enough alone, then details, then what to try."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from swcheck.base.records import Verdict
from swcheck.base.wrapping import WIDEST, wrapped, wrapped_rows

FOUND: Final = "found"
PROOF: Final = "proof"
TRY: Final = "try"
FEWEST_LINES: Final = 2
"""So many lines that were shown before are replaced by a pointer."""


def verdict_message(
    verdict: Verdict, told: Mapping[tuple[str, str], str] | None = None, *, width: int | None = None
) -> str:
    """The words of a red verdict: a first line that stands alone, then its details, then what to try.

    ``told`` are rows (name, text) that stand elsewhere already, with the name of that place: several such lines are not
    said again, a pointer takes their place. For a terminal prose is folded to its ``width``, what is to be pasted never.
    """
    lines = [f"{verdict.cause or verdict.summary}: {verdict.check} of {verdict.who}"]
    if width is not None and len(lines[0]) > width:
        lines = [
            *wrapped(f"{verdict.cause or verdict.summary}:", width, 2),
            *wrapped(f"  {verdict.check} of {verdict.who}", width, 4),
        ]
    attempts, known = _attempts(verdict.attempt, width), [row for row in message_rows(verdict) if row in (told or {})]
    if told is None or sum(len(attempts) if name == TRY else 1 for name, _ in known) < FEWEST_LINES:
        told, known = {}, []
    if verdict.cause and verdict.summary and (FOUND, verdict.summary) not in known:
        lines += wrapped(f"  {verdict.summary}", width, 4)
    lines += wrapped_rows([row for row in verdict.detail if row not in known], width)
    if verdict.limit is not None:
        lines += wrapped(f"  limit {verdict.limit} ({verdict.limit.source})", width, 4)
    if (TRY, verdict.attempt) not in known:
        lines += attempts
    for place in dict.fromkeys(told[row] for row in known):
        rows_there = (name for name, text in known if told[name, text] == place)
        names = dict.fromkeys("layers" if name.startswith("layers.") else name for name in rows_there)
        lines += wrapped(f"  as under {place}: {', '.join(names)}", width, 4)
    return "\n".join(lines)


def message_rows(verdict: Verdict) -> list[tuple[str, str]]:
    """What a message need not say twice: what was found where nothing was measured, details but a proof, the advice."""
    found = [row for row in verdict.detail if row[0] != PROOF]
    found = [(FOUND, verdict.summary), *found] if verdict.cause and verdict.measured is None else found
    return [*found, (TRY, verdict.attempt)] if verdict.attempt else found


def _attempts(attempt: str, width: int | None) -> list[str]:
    """What to try; a list that is too long for a line has one entry on each, and none of them is broken."""
    head, colon, rest = attempt.partition(": ")
    if len(attempt) + len("  try: ") <= (width or WIDEST) or not colon:
        return wrapped(f"  try: {attempt}", width, len("  try: ")) if attempt else []
    return [*wrapped(f"  try: {head}:", width, len("  try: ")), *(f"    {entry}" for entry in rest.split("; "))]
