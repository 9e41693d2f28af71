"""``swcheck index [MODEL]``: show the published coordinates of super weights."""

from __future__ import annotations

import argparse
from typing import Any

from swcheck.base.json_text import json_text
from swcheck.loading import published_index
from swcheck.run.command_line.common.arguments import add_json
from swcheck.run.command_line.common.layout import terminal_width, wrap_lines


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    parser = commands.add_parser("index", help="show the published coordinates")
    parser.add_argument("model", nargs="?", help="one model; all of them if left out")
    add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Return the entries as text or JSON. Raises ``UnknownModelError`` for a name without an entry."""
    chosen = list(published_index.entries()) if options.model is None else [published_index.entry(options.model)]
    if options.json:
        return json_text([published_index.as_json(entry) for entry in chosen])
    lines = [line for entry in chosen for line in published_index.as_text(entry, full=options.model is not None)]
    return "\n".join(wrap_lines(lines, terminal_width()))
