"""Describes how a tensor of the candidate differs from the reference's: zeroed, scaled, transposed, rows moved.

R rows, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

SAME: Final = 0.02
"""Two tensors are the same if they differ by less than this, relative to the norm; 8 bits differ by 0.6 %."""

LEAST_SCALE: Final = 0.05
"""A tensor is scaled if its factor differs from 1 by more than this."""

SAME_ROW: Final = 0.95
"""Two rows are the same if their cosine similarity is at least this; rounding to 4 bits keeps 0.99, to 3 bits 0.97."""

MOVED_ROWS: Final = 0.02
"""The rows of a matrix are moved if at least this share of them stands at another place."""

MATCHED_ROWS: Final = 0.98
"""and at least this share of all has a place."""

SAME_TRANSPOSED: Final = 0.3
"""A transposed matrix may be quantized as well."""

UNRELATED: Final = 0.1
"""Two tensors with a smaller cosine similarity are unrelated."""

GROUPS: Final = (256, 128, 64, 32)
"""The widths of the groups in which quantizers scale."""

LEFT_BY_FACTORS: Final = 0.4
"""Factors explain a change if they leave less than this share of it."""

LARGEST_MATCHED: Final = 2**13
"""Rows are compared with each other in matrices of at most this many."""

FEW_VALUES: Final = 16
"""At most this many values, and a hundredth of all, are few."""

IN_FEW: Final = 0.99
"""A tensor differs in few values if they have this share of the squared difference; 8 bits of the others leave 0.5 %."""


@dataclass(frozen=True)
class TensorChange:
    """How a tensor differs: ``words``, ``size`` relative to the norm, and whether the form of the change is known.

    ``places`` are the indices of the values that differ, if they are few.
    """

    words: str
    size: float
    is_structural: bool = False
    places: tuple[tuple[int, ...], ...] = ()


def tensor_change(ours: torch.Tensor, theirs: torch.Tensor, *, match_rows: bool = True) -> TensorChange | None:
    """Return how ``ours`` differs from ``theirs``, both ``(R,)`` or ``(R, C)``; None if they are the same.

    A change is structural if it is no rounding and no training: all values zeroed, constant, scaled or negated, rows or
    columns moved, the matrix transposed. Moved rows are sought with ``match_rows`` only, which costs R^2 C operations.
    """
    ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
    if ours.shape != theirs.shape:
        return TensorChange(f"has the shape {_shape(ours)} for {_shape(theirs)}", 1.0, is_structural=True)
    size = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
    if not size > SAME:
        return None
    if not ours.any():
        return TensorChange("is all zeros", size, is_structural=True)
    if _is_constant(ours) and not (_is_constant(theirs) and theirs.any()):  # from one constant to another is a factor
        words = f"is the constant {float(ours.flatten()[0]):g}"
        return TensorChange(words, size, is_structural=not _is_constant(theirs))
    return _known_form(ours, theirs, size, match_rows=match_rows) or TensorChange(f"differs by {size:.0%}", size)


def _is_constant(values: torch.Tensor) -> bool:
    return values.numel() > 1 and bool((values == values.flatten()[0]).all())


def _known_form(ours: torch.Tensor, theirs: torch.Tensor, size: float, *, match_rows: bool) -> TensorChange | None:
    """Return the change of a tensor that is scaled, differs in few values, or has its rows moved; None for another."""
    few = change_in_few_values(ours, theirs)
    if few is not None:
        return few
    norm = theirs.norm().clamp_min(1e-30)
    factor = float((ours * theirs).sum() / (theirs * theirs).sum().clamp_min(1e-30))
    left, kept = float((ours - factor * theirs).norm() / norm), float(ours.norm() / norm)
    if abs(factor - 1) > LEAST_SCALE and left < LEFT_BY_FACTORS * min(size, kept):
        return TensorChange(f"is scaled x{factor:.4g}", size, is_structural=True)
    form = _scaled_in_parts(ours, theirs, LEFT_BY_FACTORS * min(size, kept)) if ours.dim() == 2 else ""
    if not form and ours.dim() == 2 and match_rows:
        form = _moved(ours, theirs)
    if not form and abs(factor) * float(norm) < UNRELATED * float(ours.norm()):
        form = "is unrelated to the reference's, as if drawn again"
    return TensorChange(form, size, is_structural=True) if form else None


def change_in_few_values(ours: torch.Tensor, theirs: torch.Tensor) -> TensorChange | None:
    """Return the change of a tensor of which at most ``FEW_VALUES`` values differ, beside rounding; else None.

    However small they are beside the norm, a few values can hold a model up.
    """
    ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
    squares = (ours - theirs).square().flatten()
    most = min(FEW_VALUES, squares.numel() // 100)
    if ours.shape != theirs.shape or not most or not bool(squares.any()):
        return None
    largest = squares.topk(most)
    shares = largest.values.double().cumsum(0) / squares.double().sum()
    count = int((shares < IN_FEW).sum()) + 1
    if count > most:
        return None
    places = tuple(tuple(map(int, torch.unravel_index(one, ours.shape))) for one in largest.indices[:count])
    first = f"{list(places[0])}: {float(ours[places[0]]):.4g} for {float(theirs[places[0]]):.4g}"
    words = f"differs in 1 value, {first}" if count == 1 else f"differs in {count} values, first {first}"
    size = float(squares.sum().sqrt() / theirs.norm().clamp_min(1e-30))
    return TensorChange(words, size, is_structural=True, places=places)


def _scaled_in_parts(ours: torch.Tensor, theirs: torch.Tensor, most_left: float) -> str:
    """Return words for a matrix whose rows, columns or groups are each scaled by a factor of their own; else empty.

    The factors may leave a difference of ``most_left``, relative to the norm.
    """
    rows, columns = theirs.shape
    parts = {"row": rows, "column": columns}
    parts |= {f"group of {width} columns": rows * columns // width for width in GROUPS if columns % width == 0}
    words, least = "", most_left
    for what, count in parts.items():  # finer parts only where they leave far less
        one, other = ((m.T if what == "column" else m).reshape(count, -1) for m in (ours, theirs))
        factors = (one * other).sum(1) / (other * other).sum(1).clamp_min(1e-30)
        left = float((one - factors[:, None] * other).norm() / theirs.norm().clamp_min(1e-30))
        low, high = (float(factors.quantile(share)) for share in (0.05, 0.95))
        if left < least and high - low > LEAST_SCALE:
            words, least = f"has a factor of its own in each {what} (x{low:.2g} to x{high:.2g})", left / 2
    return words


def _moved(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Return words for rows or columns that stand at other places, or a transposed matrix; empty if neither is so."""
    if len(ours) == ours.shape[1] and float((ours.T - theirs).norm()) <= SAME_TRANSPOSED * float(theirs.norm()):
        return "is transposed"
    for what, one, other in (("rows", ours, theirs), ("columns", ours.T, theirs.T)):
        places = places_of_rows(one, other)
        if places is not None:
            return f"has its {what} {_order_words(places)}"
    return ""


def places_of_rows(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor | None:
    """Return for each row of ``ours`` the row of ``theirs`` that it is, int64 ``(R,)``, if some are at other places.

    None if too few rows are moved or have a place, or the matrix is too large. Rows of zeros stay where they are.
    """
    if len(ours) > LARGEST_MATCHED or ours.shape != theirs.shape:
        return None
    one, other = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) for rows in (ours, theirs))
    empty = ours.norm(dim=1) == 0
    if float((((one * other).sum(1) < SAME_ROW) & ~empty).float().mean()) < MOVED_ROWS:
        return None
    best = (one @ other.T).max(1)
    found = (best.values >= SAME_ROW) | empty
    places = torch.where(empty, torch.arange(len(ours)), best.indices)
    if float(found.float().mean()) < MATCHED_ROWS or len(torch.unique(places[found])) < MATCHED_ROWS * int(found.sum()):
        return None
    return places


def _order_words(places: torch.Tensor) -> str:
    """Return words for an order of rows: rolled, reversed, moved in blocks, in a range, or shuffled."""
    count = len(places)
    own = torch.arange(count)
    shift = (places - own) % count
    common = int(shift.mode().values)
    if common and float((shift == common).float().mean()) > MATCHED_ROWS:
        by = common if common <= count // 2 else common - count
        return f"rolled by {-by}{', which exchanges its halves' * (2 * common == count)}"
    if bool((places == count - 1 - own).all()):
        return "reversed"
    interleaved = _interleaved(places)
    if interleaved:
        return f"in another order: interleaved for split halves in blocks of {interleaved} (another rope layout)"
    block = next((size for size in (256, 192, 128, 96, 80, 64, 48, 32, 16, 8) if _moves_blocks(places, size)), 0)
    if block:
        return f"moved in blocks of {block}, as heads are, or the parts of a fused matrix"
    moved = (places != own).nonzero().flatten()
    first, last = int(moved[0]), int(moved[-1])
    return "shuffled" if (first, last) == (0, count - 1) else f"{first} to {last} in another order"


def _moves_blocks(places: torch.Tensor, size: int) -> bool:
    """Return whether whole blocks of ``size`` rows are moved, in their own order."""
    if len(places) % size or len(places) == size:
        return False
    blocks = places.reshape(-1, size)
    return bool((blocks - blocks[:, :1] == torch.arange(size)).all() and (blocks[:, 0] % size == 0).all())


def _interleaved(places: torch.Tensor) -> int:
    """Return the size of the blocks in which halves and pairs of rows are exchanged as between two rope layouts, or 0."""
    for size in (256, 192, 128, 96, 80, 64, 32, 16):
        if len(places) % size == 0:
            block = torch.arange(size)
            pairs, halves = block.reshape(2, -1).T.flatten(), block.reshape(-1, 2).T.flatten()
            inner = places.reshape(-1, size) - size * torch.arange(len(places) // size)[:, None]
            if any(bool((inner == order).all()) for order in (pairs, halves)):
                return size
    return 0


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
