"""Compress a long tensor to a few numbers, so that the distance between two tensors can still be estimated.

The method is the count sketch (Charikar, Chen and Farach-Colton 2002). It multiplies each value by a random sign and
adds it to one of K random buckets. The norm of the difference of two sketches estimates the norm of the difference of
the two tensors, with a relative error of about 1 / sqrt(2 K). A difference in a single value shows as well as one that
is spread over all values; a random sample of the values would mostly miss it. A fixed seed gives the same buckets and
signs to both tensors.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch

SEED: Final = 0


def count_sketch(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return a sketch of ``values`` (any shape) in ``count`` numbers, float32 ``(count,)``.

    If ``values`` has at most ``count`` elements, they are returned as they are, with zeros in front.
    """
    flat = values.flatten().double()
    sketch = torch.zeros(count, dtype=torch.float64)
    if len(flat) <= count:
        sketch[count - len(flat) :] = flat
        return sketch.float()
    buckets, signs = _buckets_and_signs(len(flat), count)
    return sketch.index_add_(0, buckets, flat * signs).float()


@lru_cache(maxsize=8)
def _buckets_and_signs(length: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bucket, int64 ``(length,)``, and the sign, int8 ``(length,)``, of each of ``length`` values."""
    generator = torch.Generator().manual_seed(SEED)
    buckets = torch.randint(count, (length,), generator=generator)
    return buckets, (2 * torch.randint(2, (length,), generator=generator) - 1).to(torch.int8)


def generator_fingerprint() -> torch.Tensor:
    """Return random numbers that the seed gives on this machine, float32 ``(48,)``.

    Two sketches can be compared only if they were made on machines with the same fingerprint.
    """
    buckets, signs = _buckets_and_signs(16, 8)
    return torch.cat([torch.randn(16, generator=torch.Generator().manual_seed(SEED)), buckets, signs])
