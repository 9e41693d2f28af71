"""Format numbers and tables for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate

from swcheck.base.records import SuperWeight
from swcheck.base.terminal.visible import visible_line


def format_number(value: float | None, unit: str = "") -> str:
    """Return a measured value as text: four significant digits, thousands separated, "-" for None.

    ``unit`` "x" marks a ratio: its text starts with an x, and has three decimals below 10.
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    if unit == "x":
        return f"x{value:z.3f}" if abs(value) < 10 else f"x{text}"
    return text


def format_shortened(text: str, width: int) -> str:
    """Return ``text`` as one line of at most ``width`` characters, control characters escaped, the middle cut out."""
    line = visible_line(text)
    remaining = width - 3
    return (
        line if len(line) <= width else f"{line[: remaining - remaining // 2]}...{line[len(line) - remaining // 2 :]}"
    )


def table_lines(rows: Sequence[Sequence[str]], head: Sequence[str], *, style: str = "simple") -> list[str]:
    """Return the lines of a table with the column names ``head``. ``style`` is a table format of tabulate."""
    return tabulate(rows, headers=head, tablefmt=style, disable_numparse=True).splitlines()


def format_count(weights: Sequence[SuperWeight]) -> str:
    """Return the number of weights as text: ``1 weight``, ``3 weights``."""
    return f"{len(weights)} weight{'s' * (len(weights) > 1)}"


def format_ratio(ratio: float) -> str:
    """Return a ratio as text with an x: four significant digits, a whole number with separators from 1,000 on."""
    return f"x{ratio:,.0f}" if 1000 <= ratio < math.inf else f"x{ratio:.4g}"


def format_perplexity(perplexity: float) -> str:
    """Return a perplexity as text, as in the table of a run: four significant digits, no powers of ten below 1e7."""
    return f"{perplexity:,.0f}" if 1000 <= perplexity < 1e7 else f"{perplexity:.4g}"


def format_duration(seconds: float) -> str:
    """Return a duration, given in seconds, as text: ``~3 s``, ``~4 min``, ``~2 h``."""
    if seconds < 90:
        return f"~{max(1, round(seconds))} s"
    return f"~{round(seconds / 60)} min" if seconds < 5400 else f"~{round(seconds / 3600)} h"


def format_size(size: int) -> str:
    """Return a size, given in bytes, as text: ``7 MB``, ``13.5 GB``."""
    return f"{max(1, round(size / 1e6))} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
