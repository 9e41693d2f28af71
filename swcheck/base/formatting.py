"""How numbers and tables are written for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tabulate import tabulate

from swcheck.base.records import SuperWeight


def format_number(value: float | None, unit: str = "") -> str:
    """A measured value as people read it: four digits, thousands separated, a ratio with its x."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}"
    if unit == "x":
        return f"x{value:z.3f}" if abs(value) < 10 else f"x{text}"
    return text


def format_shortened(text: str, width: int) -> str:
    """``text`` in one line of at most ``width`` characters, control characters escaped, cut in the middle."""
    flat = "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)
    kept = width - 3
    return flat if len(flat) <= width else f"{flat[: kept - kept // 2]}...{flat[len(flat) - kept // 2 :]}"


def table_lines(rows: Sequence[Sequence[str]], head: Sequence[str], *, style: str = "simple") -> list[str]:
    """Rows of text under their head, as the lines of a table; ``style`` is one of tabulate's."""
    return tabulate(rows, headers=head, tablefmt=style, disable_numparse=True).splitlines()


def format_count(weights: Sequence[SuperWeight]) -> str:
    """How many weights, in words."""
    return f"{len(weights)} weight{'s' * (len(weights) > 1)}"


def format_ratio(ratio: float) -> str:
    """A ratio with its x."""
    return f"x{ratio:,.0f}" if 1000 <= ratio < math.inf else f"x{ratio:.4g}"


def format_perplexity(perplexity: float) -> str:
    """A perplexity as people read it, as in the table: four digits, thousands separated, no powers of ten below 1e7."""
    return f"{perplexity:,.0f}" if 1000 <= perplexity < 1e7 else f"{perplexity:.4g}"


def format_duration(span: float) -> str:
    """A time as people say it: ``~3 s``, ``~4 min``, ``~2 h``."""
    if span < 90:
        return f"~{max(1, round(span))} s"
    return f"~{round(span / 60)} min" if span < 5400 else f"~{round(span / 3600)} h"


def format_size(size: int) -> str:
    """A size as people say it: ``7 MB``, ``13.5 GB``."""
    return f"{max(1, round(size / 1e6))} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
