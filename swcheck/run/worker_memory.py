"""Whether the models that the workers of pytest-xdist hold at a time fit into memory together: told before any is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from typing import TYPE_CHECKING

from swcheck.base.errors import OptionError, SwcheckError
from swcheck.base.formatting import format_size
from swcheck.loading import engines
from swcheck.loading.files.checkpoint_size import BYTES, checkpoint_size
from swcheck.loading.streaming.free_memory import free_memory
from swcheck.loading.streaming.streamable import too_large

if TYPE_CHECKING:
    from swcheck.run.settings import Settings


def check_room_for_workers(settings: Settings, workers: int) -> None:
    """Raise ``OptionError`` if the largest models, one in each worker, do not fit into the free memory together.

    A worker frees the reference before it loads a candidate. Models that are streamed, on an accelerator or placed by a device
    map, and those whose size is not known, are left out.
    """
    free = free_memory()
    if (
        free is None
        or settings.stream
        or settings.device_map is not None
        or engines.device_of(settings.device) != "cpu"
    ):
        return
    sizes = sorted(_sizes(settings), reverse=True)[:workers]
    fitting = sum(total <= free.size for total in accumulate(sizes))
    if 0 < fitting < len(sizes):
        raise OptionError(
            f"pytest -n {workers}: {len(sizes)} models in memory at a time, one in each worker",
            f"they take {format_size(sum(sizes))} together, and {format_size(free.size)} are free: {free.source}",
            f"-n {fitting}, or --swcheck-stream, which keeps weights on the disk",
        )


def _sizes(settings: Settings) -> Iterator[int]:
    """Yield the bytes that each model takes which is loaded whole."""
    for spec in settings.models_to_load:
        with suppress(SwcheckError, OSError, ValueError, KeyError):  # the error is reported when the model is loaded
            directory = engines.directory_of(spec)
            weights = None if directory is None else checkpoint_size(directory)
            if directory is not None and weights is not None and not too_large(directory):
                yield weights.size if settings.dtype is None else weights.parameters * BYTES[settings.dtype]
