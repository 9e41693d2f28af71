"""The causes of several red candidates in one table, which comes before the details of each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from tabulate import tabulate

from swcheck.base.terminal.wrapping import MAX_WIDTH
from swcheck.run.reports.margins import Reported

FEWEST: Final = 2
"""From this many red candidates on there is a table."""

WIDEST_NAME: Final = 0.4
"""The names of the candidates take at most this share of the width."""


def causes_table(reported: Sequence[Reported], width: int = MAX_WIDTH) -> list[str]:
    """Return a table with each cause of each red candidate, and the checks that gave it; empty for fewer than two.

    It is at most ``width`` characters wide.
    """
    causes: dict[tuple[str, str], dict[str, list[str]]] = {}
    for _, verdict in reported:
        if verdict.red and verdict.candidate is not None:
            words = verdict.cause or verdict.summary
            causes.setdefault((verdict.model, verdict.candidate), {}).setdefault(words, []).append(verdict.check)
    if len(causes) < FEWEST:
        return []
    width = min(width, MAX_WIDTH)
    models = {model for model, _ in causes}
    names = {pair: pair[1] if len(models) == 1 else f"{pair[1]} against {pair[0]}" for pair in causes}
    head = ["candidate", "cause (checks)"]
    room = max(len(head[0]), min(max(map(len, names.values())), int(WIDEST_NAME * width)))
    rows = [
        [_folded(names[pair] if number == 0 else "", room), _folded(_with_checks(cause, checks), width - room - 2)]
        for pair, found in causes.items()
        for number, (cause, checks) in enumerate(found.items())
    ]
    return tabulate(
        [head, ["-" * room, "-" * (width - room - 2)], *rows], tablefmt="plain", disable_numparse=True
    ).splitlines()


def _with_checks(cause: str, checks: Sequence[str]) -> str:
    return f"{cause} ({', '.join(dict.fromkeys(checks))})"


def _folded(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, subsequent_indent="  "))
