"""``swcheck preflight MODEL --scheme=...``: what will go wrong, in a second, from config and headers alone."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import Any

from swcheck.base.errors import SwcheckError, UnknownModelError
from swcheck.base.formatting import format_size
from swcheck.loading import engines
from swcheck.run.command_line.common.layout import terminal_width, wrap_lines
from swcheck.run.outline import outline_of
from swcheck.run.preflight import group_size, known_activation, quantization_of, remarks
from swcheck.run.settings import Settings


def add(commands: Any) -> None:
    """Add the subcommand to argparse's ``commands``."""
    parser = commands.add_parser("preflight", help="what a scheme will stumble over, before anything is loaded")
    parser.add_argument("model", help="tiny, a directory, or a known name or hub id that is in the local cache")
    words = "how it will be quantized, in the words of any tool: W4A16-g128, q4_k, nvfp4, ENGINE:SCHEME"
    parser.add_argument("--scheme", default="", help=words)
    parser.add_argument("--dtype", help="in which it will be loaded: float32, bfloat16 or float16")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Return what was seen, one remark a line; the exit code is 1 if a quantizer will fail or skip weights.

    Raises ``UnknownModelError`` for a model whose files are not on this machine.
    """
    directory = engines.directory_of(options.model, whole=False)
    if directory is None:
        engines.check(options.model)
        attempt = f"hf download {options.model} config.json, which is enough"
        raise UnknownModelError(f"the files of {options.model}", "not on this machine", attempt)
    if options.dtype is not None:
        engines.check_dtype(options.dtype)
    seen, size = outline_of(directory), group_size(options.scheme)
    known = _known(options.model) if (options.dtype or seen.dtype) == "float16" else None
    found = remarks(directory, options.scheme, options.dtype, known)
    facts = [
        f"{seen.parameters:,} parameters, {'no weights here' if seen.size is None else format_size(seen.size)}, {seen.dtype}",
        quantization_of(directory),
        f"groups of {size}"
        if size
        else f"no group size in {options.scheme!r}: widths are not looked at" * bool(options.scheme),
    ]
    lines = [f"{options.model}: {'; '.join(filter(None, facts))}", *(f"  {remark}" for remark in found)]
    lines += [] if found else ["  nothing to stumble over in config and headers"]
    options.code = int(any(remark.blocks for remark in found))
    return "\n".join(wrap_lines(lines, terminal_width()))


def _known(spec: str) -> float | None:
    """Return the largest super activation of a model as an earlier run has measured it; None if none has."""
    with suppress(SwcheckError):
        return known_activation(Settings(models=(spec,)), spec)
    return None
