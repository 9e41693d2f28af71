"""Lays out the output of a subcommand: aligns columns, and wraps lines to the width of the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from swcheck.base.terminal.wrapping import wrapped


def wrap_lines(lines: Sequence[str], width: int | None) -> list[str]:
    """Return the lines, those wider than ``width`` wrapped with two more spaces of indent; None means no wrapping."""
    return [
        part
        for line in lines
        for part in (
            wrapped(line, width, len(line) - len(line.lstrip()) + 2) if width and len(line) > width else [line]
        )
    ]


def terminal_width() -> int | None:
    """Return the width of the terminal that stdout goes to; None if it goes to a file or another program."""
    out = sys.__stdout__
    return shutil.get_terminal_size().columns if out is not None and out.isatty() else None


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines with left-aligned columns, indented by two."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
