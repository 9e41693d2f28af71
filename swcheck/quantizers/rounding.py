"""Round-to-nearest on bare tensors: what the super weight paper does to a matrix. It needs torch and no model.

Sources: arXiv 2411.07191, section 4, and its official code. Every function takes a floating tensor of any shape and
returns a new one of the same shape and dtype, already dequantized; no codes are stored. The grid is computed in float64
and rounded once to the dtype. NaN and infinity spoil their block, as in any quantizer.

A *block* is a run of ``block`` consecutive elements in row-major order, not a square tile: the paper's "128x128" is in
its code a run of 16,384. The last block is shorter if the number of elements is no multiple (the official code then
silently takes the whole tensor as one block). ``block`` None is the whole tensor; a pair ``(rows, columns)`` is a tile
of a matrix, as the paper's text has it, and tiles at the right and lower edge may be smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, TypeAlias

import torch

from swcheck.base.errors import OptionError

Block: TypeAlias = int | tuple[int, int] | None
"""A run of so many elements, a tile of (rows, columns), or None for the whole tensor."""

MAX_BITS: Final = 16
"""More bits than this are no quantization, and their codes would not be worth storing."""

ELEMENTS_AT_ONCE: Final = 2**20
"""How many elements are in float64 at a time, if blocks are smaller: a whole large matrix would take gigabytes."""


class Reading(StrEnum):
    """How the step of an asymmetric grid of N bits is computed. The paper and its own code disagree.

    ``code``: ``(max - min) / (2**N - 1)``, with codes 0 to 2**N - 1, which uses all N bits. ``paper``: the formula as
    printed, ``(max - min) / (2**(N - 1) - 1)``, which leaves half of the codes unused.
    """

    CODE = "code"
    PAPER = "paper"


def minmax(weight: torch.Tensor, bits: int, *, block: Block = None, reading: str = Reading.CODE) -> torch.Tensor:
    """Round to the nearest of an asymmetric grid between the minimum and maximum of each block; both stay exact."""
    largest_code = _largest_code(bits, reading)

    def grid(blocks: torch.Tensor) -> torch.Tensor:
        low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
        step = (high - low) / largest_code
        codes = ((blocks - low) / step).round()
        inner = torch.where(codes == largest_code, high, low + codes * step)
        return torch.where(high == low, blocks, inner)

    return _map_blocks(weight, block, grid)


def absmax(weight: torch.Tensor, bits: int, *, block: Block = None) -> torch.Tensor:
    """Round to the nearest of a symmetric grid per block, of step ``max|w| / (2**(N - 1) - 1)``.

    Zero and the largest magnitude stay exact.
    """
    _check_bits(bits, 2)
    largest_code = 2 ** (bits - 1) - 1

    def grid(blocks: torch.Tensor) -> torch.Tensor:
        peak = blocks.abs().amax(1, keepdim=True)
        codes = (blocks / (peak / largest_code)).round()
        inner = torch.where(codes.abs() == largest_code, codes.sign() * peak, codes * (peak / largest_code))
        return torch.where(peak == 0, blocks, inner)

    return _map_blocks(weight, block, grid)


def clip_z_score(weight: torch.Tensor, z: float, *, block: Block = None) -> torch.Tensor:
    """Clip magnitudes at ``mean(|w|) + z * std(|w|)`` of their block, signs kept: the paper's CLIP, with z near 9.

    It is not a z-score of w around its own mean. The standard deviation is the unbiased one. A block of one element is
    not clipped.
    """
    if not z >= 0:
        raise OptionError(f"clip at z = {z}", "a cut below the mean magnitude", "the paper uses 9 to 20")

    def clip(blocks: torch.Tensor) -> torch.Tensor:
        sizes = blocks.abs()
        limit = sizes.mean(1, keepdim=True) + z * sizes.std(1, keepdim=True, correction=min(1, blocks.shape[1] - 1))
        return blocks.clamp(-limit, limit)

    return _map_blocks(weight, block, clip)


def clip_share(weight: torch.Tensor, share: float, *, block: Block = None) -> torch.Tensor:
    """Clip magnitudes at the k-th largest of their block of n elements, ``k = int(n * share + 1)``, signs kept.

    It is the official code's "block percentage", 1e-5 in its examples, or "tensor percentage", 1e-6, if the block is
    the whole tensor. A share below 1 / n clips nothing.
    """
    if not 0 <= share < 1:
        raise OptionError(f"clip a share of {share}", "a part of a block lies from 0 to below 1", "the paper uses 1e-5")

    def clip(blocks: torch.Tensor) -> torch.Tensor:
        size = blocks.shape[1]
        limit = _ranked_element(blocks.abs(), size - min(size, int(size * share + 1)))
        return blocks.clamp(-limit, limit)

    return _map_blocks(weight, block, clip)


def clip_iqr(weight: torch.Tensor, times: float, *, block: Block = None) -> torch.Tensor:
    """Clip magnitudes at ``q3 + times * (q3 - q1)``, with the quartiles of |w| in their block, signs kept.

    A quartile is an element of the block, the lower one if it falls between two.
    """
    if not times >= 0:
        raise OptionError(f"clip at {times} times the interquartile range", "a cut below the third quartile", "3 to 20")

    def clip(blocks: torch.Tensor) -> torch.Tensor:
        sizes, last = blocks.abs(), blocks.shape[1] - 1
        first, third = _ranked_element(sizes, last // 4), _ranked_element(sizes, 3 * last // 4)
        limit = third + times * (third - first)
        return blocks.clamp(-limit, limit)

    return _map_blocks(weight, block, clip)


def _ranked_element(blocks: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the element of every row that has ``rank`` others below it, ``(count, 1)``."""
    return blocks.kthvalue(rank + 1, dim=1, keepdim=True).values


def with_kept(quantized: torch.Tensor, weight: torch.Tensor, places: Iterable[tuple[int, ...]]) -> torch.Tensor:
    """Return ``quantized`` with the values of ``weight`` put back at ``places`` (one index per dimension): RESTORE."""
    restored = quantized.clone()
    for place in places:
        restored[place] = weight[place]
    return restored


def with_largest_kept(quantized: torch.Tensor, weight: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``quantized`` with the ``count`` largest magnitudes of ``weight`` put back."""
    if not 0 <= count <= weight.numel():
        raise OptionError(f"keep {count} values", f"the tensor has {weight.numel()}")
    if not count:
        return quantized.clone()
    restored, flat = quantized.flatten().clone(), weight.flatten()
    places = flat.abs().double().topk(count).indices
    restored[places] = flat[places]
    return restored.view_as(quantized)


def row_block(weight: torch.Tensor) -> int:
    """Return the ``block`` that makes every row (the last dimension) one block."""
    return weight.shape[-1]


def _map_blocks(weight: torch.Tensor, block: Block, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply ``change`` to the blocks of ``weight``, float64 ``(count, size)``; a shorter last block comes alone."""
    if not weight.is_floating_point():
        raise OptionError("a tensor of floating numbers", str(weight.dtype), "dequantize it first")
    sides = block if isinstance(block, tuple) else () if block is None else (block,)
    if any(side < 1 for side in sides):
        raise OptionError(f"blocks of {block} elements", "nothing to quantize", "a power of two, such as 128")
    if isinstance(block, tuple):
        return _map_tiles(weight, block, change)
    flat = weight.detach().flatten()
    size = min(block or flat.numel(), flat.numel())
    if not size:
        return weight.detach().clone()
    result, end = torch.empty_like(flat), flat.numel() // size * size
    step = max(1, ELEMENTS_AT_ONCE // size) * size
    for start in range(0, end, step):
        blocks = flat[start : min(start + step, end)].double().view(-1, size)
        result[start : start + blocks.numel()] = change(blocks).flatten().to(weight.dtype)
    if end < flat.numel():
        result[end:] = change(flat[end:].double()[None])[0].to(weight.dtype)
    return result.view(weight.shape)


def _map_tiles(
    weight: torch.Tensor, tile: tuple[int, int], change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    if weight.ndim != 2:
        raise OptionError("tiles of a matrix", f"a tensor of {weight.ndim} dimensions", "a run: block=128")
    result = weight.detach().clone()
    for rows, height in _tile_ranges(weight.shape[0], tile[0]):
        for columns, width in _tile_ranges(weight.shape[1], tile[1]):
            part = weight.detach()[rows, columns].double()
            tiles = part.reshape(-1, height, part.shape[1] // width, width).transpose(1, 2)
            changed = change(tiles.flatten(2).flatten(0, 1)).view(tiles.shape)
            result[rows, columns] = changed.transpose(1, 2).flatten(2).flatten(0, 1).to(weight.dtype)
    return result


def _tile_ranges(length: int, side: int) -> list[tuple[slice, int]]:
    """Return how one dimension is divided: (range, tile side) for the whole tiles, then for the rest."""
    end = length // side * side
    parts = [(slice(0, end), side), (slice(end, length), length - end)]
    return [(part, height) for part, height in parts if part.stop > part.start]


def _largest_code(bits: int, reading: str) -> int:
    """Return the largest code of an asymmetric grid. Raises ``OptionError`` for an unknown reading or too few bits."""
    if reading not in set(Reading):
        raise OptionError(
            f"reading {reading!r} of the step", f"known: {', '.join(Reading)}", "the paper's code is `code`"
        )
    _check_bits(bits, 1 if reading == Reading.CODE else 2)
    return int(2**bits - 1 if reading == Reading.CODE else 2 ** (bits - 1) - 1)


def _check_bits(bits: int, least: int) -> None:
    if not least <= bits <= MAX_BITS:
        raise OptionError(f"{bits} bits", f"possible here: {least} to {MAX_BITS}", "4 and 8 are common")
