"""``swcheck merge-experts MODEL OUT``: a copy of a mixture of experts that can be streamed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from swcheck.base.errors import UnknownModelError
from swcheck.base.formatting import format_size
from swcheck.loading import engines


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    words = "copy a mixture of experts so that it can be streamed: the experts of a layer as one tensor"
    parser = commands.add_parser("merge-experts", help=words)
    parser.add_argument("model", help="a directory, or a known name or hub id that is in the local cache")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not be there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Write the copy, and return what was written. Raises ``UnknownModelError`` for files that are not on this machine."""
    from swcheck.loading.merged_copy import write_merged

    directory = engines.directory_of(options.model)
    if directory is None:
        engines.check(options.model)
        raise UnknownModelError(f"the files of {options.model}", "not on this machine", f"hf download {options.model}")
    written = write_merged(directory, options.out.expanduser())
    what = f"{written.merged} tensors put together of {written.parts}" if written.merged else "no tensor was in parts"
    return f"written: {options.out}, {format_size(written.size)}; {what}"
