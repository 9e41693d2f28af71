"""Declares arguments that several subcommands share, and loads the model that they describe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from swcheck.base.errors import OptionError
from swcheck.loading.parallel.launch import launch

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


def add_sharing(parser: argparse.ArgumentParser) -> None:
    """Add ``--device-map`` and ``--tensor-parallel``, for models larger than one device."""
    words = "spread the model over devices, memory and disk with accelerate: auto, balanced, sequential"
    parser.add_argument("--device-map", metavar="MAP", help=words)
    words = "share the model among the processes: torchrun --nproc-per-node=2 -m swcheck locate MODEL --tensor-parallel"
    parser.add_argument("--tensor-parallel", action="store_true", help=words)


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
    """Load ``options.model`` as the arguments of ``add_loading`` and ``add_sharing`` say; a quantizer makes it from ``reference``.

    Raises ``OptionError`` in several processes of torchrun that do not share the model, besides what loading raises.
    """
    from swcheck.loading.engines import load

    tensor_parallel, own = getattr(options, "tensor_parallel", False), launch()
    if own is not None and own.count > 1 and not tensor_parallel:
        attempt = "one process; swcheck locate shares its model with --tensor-parallel"
        raise OptionError(f"swcheck {options.command}", f"{own.count} processes of torchrun, each for itself", attempt)
    return load(
        options.model,
        reference=reference,
        device=options.device,
        dtype=options.dtype,
        offline=options.offline,
        trust_remote_code=options.trust_remote_code,
        device_map=getattr(options, "device_map", None),
        stream=options.stream,
        tensor_parallel=tensor_parallel,
    )
