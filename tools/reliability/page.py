"""Writes a row of the table in ``docs/reliability.md``; no figure there is typed by hand."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
BLOCK: Final = re.compile(r"(<!-- reliability -->\n)(.*?)(<!-- /reliability -->)", re.DOTALL)
HEAD: Final = "| what was tried | how much | what was found | command |\n| --- | --- | --- | --- |\n"
ORDER: Final = ("attack", "fuzz", "programs", "gates", "kill", "faults", "interrupt", "mutants")
"""The modules that have rows, in the order of the page."""


def write_rows(module: str, rows: list[tuple[str, str, str]], arguments: str = "") -> None:
    """Replace the rows of a module that try the same: what was tried, how much, what was found. They are printed as well."""
    command = f"python -m tools.reliability.{module}{f' {arguments}' if arguments else ''}"
    made = [f"| {' | '.join(row)} | `{command}` |" for row in rows]
    sys.stdout.write("\n".join(made) + "\n")
    text = PAGE.read_text(encoding="utf-8")
    found = BLOCK.search(text)
    present = [line for line in (found[2] if found else "").splitlines()[2:] if line.startswith("| ")]
    tried = {(module, row[0]) for row in rows}
    kept = [line for line in present if (_module_of(line), line[2:].partition(" |")[0]) not in tried]
    lines = sorted([*kept, *made], key=lambda line: ORDER.index(_module_of(line)))
    PAGE.write_text(
        BLOCK.sub(lambda block: block[1] + HEAD + "\n".join(lines) + "\n" + block[3], text), encoding="utf-8"
    )


def _module_of(line: str) -> str:
    """Return the module whose command a row names."""
    found = re.search(r"python -m tools\.reliability\.(\w+)", line)
    return found[1] if found and found[1] in ORDER else ""


def machine() -> str:
    """Return the Python and the system that something ran on."""
    return f"Python {platform.python_version()}, {platform.system()}"
