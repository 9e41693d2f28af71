"""Which process of torchrun this is. The first one, of rank 0, speaks and writes for all; the others are silent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MARK: Final = "TORCHELASTIC_RUN_ID"
"""The variable that torchrun alone sets; other launchers and notebooks set the rest as well."""


ERROR_SECONDS: Final = 10
"""So long the other processes wait with an error that the first may tell too: when that ends, torchrun ends them."""


@dataclass(frozen=True)
class Launch:
    """One of the ``count`` processes that torchrun has started, on all machines together.

    ``rank`` is its number, ``local_rank`` that among the processes of its machine.
    """

    rank: int
    count: int
    local_rank: int

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0


def launch(environment: Mapping[str, str] | None = None) -> Launch | None:
    """Return which process of torchrun this is, as torchrun's variables say; None for one that torchrun did not start.

    ``environment`` is ``os.environ`` if it is not given.
    """
    known = os.environ if environment is None else environment
    values = [known.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if MARK not in known or not all(value.isdecimal() for value in values):
        return None
    return Launch(*map(int, values))
