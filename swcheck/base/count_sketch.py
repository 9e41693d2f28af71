"""Long answers folded to a few numbers that still tell how far two of them are apart.

Every value is added, with a random sign, to one of a few random places: a count sketch (Charikar, Chen and
Farach-Colton 2002). The norm of the difference of two folded answers is that of their difference, with a relative error
of about one over the root of twice the places; a single value that differs shows as well as all of them do, where a
sample of values would mostly miss it. Both sides draw the same places and signs, by a fixed seed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch

SEED: Final = 0


def count_sketch(values: torch.Tensor, count: int) -> torch.Tensor:
    """``values``, whatever their shape, in ``count`` numbers, float32; as they are, behind zeros, where they are fewer."""
    flat = values.flatten().double()
    folded = torch.zeros(count, dtype=torch.float64)
    if len(flat) <= count:
        folded[count - len(flat) :] = flat
        return folded.float()
    places, signs = _drawn(len(flat), count)
    return folded.index_add_(0, places, flat * signs).float()


@lru_cache(maxsize=8)
def _drawn(length: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of ``length`` values its place, int64, and its sign, int8."""
    chance = torch.Generator().manual_seed(SEED)
    places = torch.randint(count, (length,), generator=chance)
    return places, (2 * torch.randint(2, (length,), generator=chance) - 1).to(torch.int8)


def generator_fingerprint() -> torch.Tensor:
    """What the seed gives here, float32: folded on machines that draw other numbers, two answers do not compare."""
    places, signs = _drawn(16, 8)
    return torch.cat([torch.randn(16, generator=torch.Generator().manual_seed(SEED)), places, signs])
