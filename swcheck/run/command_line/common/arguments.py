"""Declares arguments that several subcommands share, and loads the model that they describe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swcheck.base.records import Loaded


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, ``--dtype``, ``--stream``, ``--offline`` and ``--trust-remote-code``."""
    parser.add_argument("--device", help="an accelerator if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; the checkpoint's own by default")
    words = "read weights from the disk when they are used; chosen by itself for a model larger than memory"
    parser.add_argument("--stream", action="store_true", default=None, help=words)
    parser.add_argument("--offline", action="store_true", help="never download")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the Python that the checkpoint brings")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="write JSON, and nothing else, to stdout")


def add_tasks(parser: argparse.ArgumentParser) -> None:
    """Add ``--tasks``, the names of zero-shot tasks."""
    words = (
        "zero-shot tasks of lm-evaluation-harness with commas between, `paper` for its seven; offline ones by default"
    )
    parser.add_argument("--tasks", type=_names, metavar="NAMES", help=words)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def load_model(options: argparse.Namespace, reference: str | None = None) -> Loaded:
    """Load ``options.model`` as the arguments of ``add_loading`` say; a quantizer makes it from ``reference``."""
    from swcheck.loading.engines import load

    return load(
        options.model,
        reference=reference,
        device=options.device,
        dtype=options.dtype,
        offline=options.offline,
        trust_remote_code=options.trust_remote_code,
        stream=options.stream,
    )
