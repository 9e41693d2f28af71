"""Round-to-nearest on bare tensors: what the paper of the super weights does to a matrix. Torch only, no model.

Sources: arXiv 2411.07191, section 4, and its official code. Every function takes a floating tensor of any shape and
returns a new one of the same shape and dtype, already dequantized; nothing is stored as codes. The grid is laid through
float64, so that what is said here holds up to one rounding to the dtype. NaN and infinity spoil their block, as they
do in any quantizer.

A *block* is a run of ``block`` consecutive elements in row-major order, not a square tile: what the paper calls
"128x128" is in its code a run of 16,384. Where the number of elements is no multiple, the last block is shorter (the
official code then takes the whole tensor as one block, without a word). ``block`` None is the whole tensor, a pair
``(rows, columns)`` a tile of a matrix, as the paper's words have it; tiles at the right and lower edge may be smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, TypeAlias

import torch

from swcheck.base.errors import OptionError

Block: TypeAlias = int | tuple[int, int] | None
"""A run of so many elements, a tile of so many rows and columns, or the whole tensor."""

MOST_BITS: Final = 16
"""More bits than this are no quantization, and codes would outgrow what is worth storing."""

AT_ONCE: Final = 2**20
"""So many elements are in float64 at a time, where blocks are smaller: a matrix of a large model would be gigabytes."""


class Reading(StrEnum):
    """How the step of an N-bit asymmetric grid is computed; the paper and its own code disagree.

    ``code``: ``(max - min) / (2**N - 1)``, codes 0 to 2**N - 1, all of N bits. ``paper``: the formula as printed,
    ``(max - min) / (2**(N - 1) - 1)``, which leaves half of the codes unused.
    """

    CODE = "code"
    PAPER = "paper"


def minmax(weight: torch.Tensor, bits: int, *, block: Block = None, reading: str = Reading.CODE) -> torch.Tensor:
    """Asymmetric round-to-nearest between the minimum and the maximum of each block, which both stay exact."""
    top = _top(bits, reading)

    def grid(part: torch.Tensor) -> torch.Tensor:
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        step = (high - low) / top
        codes = ((part - low) / step).round()
        inner = torch.where(codes == top, high, low + codes * step)
        return torch.where(high == low, part, inner)

    return _per_block(weight, block, grid)


def absmax(weight: torch.Tensor, bits: int, *, block: Block = None) -> torch.Tensor:
    """Symmetric round-to-nearest: step ``max|w| / (2**(N - 1) - 1)`` per block; zero and the largest magnitude stay exact."""
    _check_bits(bits, 2)
    top = 2 ** (bits - 1) - 1

    def grid(part: torch.Tensor) -> torch.Tensor:
        peak = part.abs().amax(1, keepdim=True)
        codes = (part / (peak / top)).round()
        inner = torch.where(codes.abs() == top, codes.sign() * peak, codes * (peak / top))
        return torch.where(peak == 0, part, inner)

    return _per_block(weight, block, grid)


def clipped(weight: torch.Tensor, z: float, *, block: Block = None) -> torch.Tensor:
    """Magnitudes cut at ``mean(|w|) + z * std(|w|)`` of their block, signs kept; the paper's CLIP, with z near 9.

    It is no z-score of w around its own mean. The deviation is the unbiased one; a block of one element is not cut.
    """
    if not z >= 0:
        raise OptionError(f"clip at z = {z}", "a cut below the mean magnitude", "the paper uses 9 to 20")

    def cut(part: torch.Tensor) -> torch.Tensor:
        size = part.abs()
        limit = size.mean(1, keepdim=True) + z * size.std(1, keepdim=True, correction=min(1, part.shape[1] - 1))
        return part.clamp(-limit, limit)

    return _per_block(weight, block, cut)


def clipped_share(weight: torch.Tensor, share: float, *, block: Block = None) -> torch.Tensor:
    """Magnitudes cut at the k-th largest of their block of n, ``k = int(n * share + 1)``, signs kept.

    The official code's rule of a "block percentage", 1e-5 in its examples, or of a "tensor percentage", 1e-6, where the
    block is the whole tensor. A share below 1 / n cuts nothing.
    """
    if not 0 <= share < 1:
        raise OptionError(f"clip a share of {share}", "a part of a block lies from 0 to below 1", "the paper uses 1e-5")

    def cut(part: torch.Tensor) -> torch.Tensor:
        size = part.shape[1]
        limit = _ranked(part.abs(), size - min(size, int(size * share + 1)))
        return part.clamp(-limit, limit)

    return _per_block(weight, block, cut)


def clipped_iqr(weight: torch.Tensor, times: float, *, block: Block = None) -> torch.Tensor:
    """Magnitudes cut at ``q3 + times * (q3 - q1)``, the quartiles of |w| in their block, signs kept.

    A quartile is an element of the block, the lower one where it falls between two.
    """
    if not times >= 0:
        raise OptionError(f"clip at {times} times the interquartile range", "a cut below the third quartile", "3 to 20")

    def cut(part: torch.Tensor) -> torch.Tensor:
        size, last = part.abs(), part.shape[1] - 1
        first, third = _ranked(size, last // 4), _ranked(size, 3 * last // 4)
        limit = third + times * (third - first)
        return part.clamp(-limit, limit)

    return _per_block(weight, block, cut)


def _ranked(part: torch.Tensor, rank: int) -> torch.Tensor:
    """The element of every row that ``rank`` others stand below, ``(count, 1)``."""
    return part.kthvalue(rank + 1, dim=1, keepdim=True).values


def keep(quantized: torch.Tensor, weight: torch.Tensor, places: Iterable[tuple[int, ...]]) -> torch.Tensor:
    """``quantized`` with the values of ``weight`` put back at ``places`` (one index per dimension): the paper's RESTORE."""
    kept = quantized.clone()
    for place in places:
        kept[place] = weight[place]
    return kept


def keep_largest(quantized: torch.Tensor, weight: torch.Tensor, count: int) -> torch.Tensor:
    """``quantized`` with the ``count`` largest magnitudes of ``weight`` put back."""
    if not 0 <= count <= weight.numel():
        raise OptionError(f"keep {count} values", f"the tensor has {weight.numel()}")
    if not count:
        return quantized.clone()
    kept, flat = quantized.flatten().clone(), weight.flatten()
    places = flat.abs().double().topk(count).indices
    kept[places] = flat[places]
    return kept.view_as(quantized)


def per_row(weight: torch.Tensor) -> int:
    """The ``block`` that makes every row (the last dimension) one block."""
    return weight.shape[-1]


def _per_block(weight: torch.Tensor, block: Block, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``change`` applied to the blocks, float64 ``(count, size)``; shorter last blocks come alone."""
    if not weight.is_floating_point():
        raise OptionError("a tensor of floating numbers", str(weight.dtype), "dequantize it first")
    sides = block if isinstance(block, tuple) else () if block is None else (block,)
    if any(side < 1 for side in sides):
        raise OptionError(f"blocks of {block} elements", "nothing to quantize", "a power of two, such as 128")
    if isinstance(block, tuple):
        return _per_tile(weight, block, change)
    flat = weight.detach().flatten()
    size = min(block or flat.numel(), flat.numel())
    if not size:
        return weight.detach().clone()
    made, whole = torch.empty_like(flat), flat.numel() // size * size
    step = max(1, AT_ONCE // size) * size
    for start in range(0, whole, step):
        part = flat[start : min(start + step, whole)].double().view(-1, size)
        made[start : start + part.numel()] = change(part).flatten().to(weight.dtype)
    if whole < flat.numel():
        made[whole:] = change(flat[whole:].double()[None])[0].to(weight.dtype)
    return made.view(weight.shape)


def _per_tile(
    weight: torch.Tensor, tile: tuple[int, int], change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    if weight.ndim != 2:
        raise OptionError("tiles of a matrix", f"a tensor of {weight.ndim} dimensions", "a run: block=128")
    made = weight.detach().clone()
    for rows, height in _cuts(weight.shape[0], tile[0]):
        for columns, width in _cuts(weight.shape[1], tile[1]):
            part = weight.detach()[rows, columns].double()
            tiles = part.reshape(-1, height, part.shape[1] // width, width).transpose(1, 2)
            changed = change(tiles.flatten(2).flatten(0, 1)).view(tiles.shape)
            made[rows, columns] = changed.transpose(1, 2).flatten(2).flatten(0, 1).to(weight.dtype)
    return made


def _cuts(length: int, side: int) -> list[tuple[slice, int]]:
    """Where one dimension is cut: the part of whole sides, and what is left."""
    whole = length // side * side
    parts = [(slice(0, whole), side), (slice(whole, length), length - whole)]
    return [(part, height) for part, height in parts if part.stop > part.start]


def _top(bits: int, reading: str) -> int:
    """The largest code of an asymmetric grid."""
    if reading not in set(Reading):
        raise OptionError(
            f"reading {reading!r} of the step", f"known: {', '.join(Reading)}", "the paper's code is `code`"
        )
    _check_bits(bits, 1 if reading == Reading.CODE else 2)
    return int(2**bits - 1 if reading == Reading.CODE else 2 ** (bits - 1) - 1)


def _check_bits(bits: int, least: int) -> None:
    if not least <= bits <= MOST_BITS:
        raise OptionError(f"{bits} bits", f"possible here: {least} to {MOST_BITS}", "4 and 8 are common")
