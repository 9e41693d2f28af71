"""``swcheck cache``: what is kept of measured references, and how to remove it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from swcheck.base.errors import SwcheckError
from swcheck.base.formatting import format_size
from swcheck.gate.baseline.document import read_document
from swcheck.run.command_line.common.layout import aligned
from swcheck.run.reference_cache import LARGEST_ENTRY, cache_folder, entries


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    parser = commands.add_parser("cache", help="list what is kept of measured references, or remove it")
    parser.add_argument("--clear", action="store_true", help="remove all of it; the next run measures anew")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Return the list of what is kept, or remove it and return how much that was."""
    found = entries()
    size = sum(file.stat().st_size for file in found)
    words = f"{len(found)} measured reference{'s' * (len(found) != 1)}, {format_size(size)}"
    if options.clear:
        for file in found:
            file.unlink(missing_ok=True)
        return f"removed: {words}, from {cache_folder()}"
    if not found:
        return f"{cache_folder()}: nothing is kept"
    head = f"{cache_folder()}: {words}"
    rows = [("model", "tier", "device", "dtype", "size", "last used"), *map(_row, found)]
    return "\n".join([head, *aligned(rows)])


def _row(file: Path) -> tuple[str, ...]:
    status = file.stat()
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
    try:
        from swcheck.base.reading.bounded import read_bytes

        facts = read_document(read_bytes(file, LARGEST_ENTRY, f"cache {file}"), str(file))
    except SwcheckError:
        return (file.name, "damaged", "-", "-", format_size(status.st_size), used)
    words = (str(facts.get(name, "-")) for name in ("model", "tier", "device", "dtype"))
    return (*words, format_size(status.st_size), used)
