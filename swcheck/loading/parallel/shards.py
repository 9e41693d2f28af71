"""Shared weights as whole matrices: what a process keeps is some rows, what is read is all of them.

A whole matrix is a copy, made by all processes together. ``own_rows`` leads from it to what this process computes with.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Rows:
    """The rows of a matrix ``(out, in)`` that this process computes with: ``tensor``, which begins at row ``first``.

    A write into ``tensor`` changes what the next pass computes.
    """

    tensor: torch.Tensor
    first: int = 0

    def at(self, row: int) -> torch.Tensor | None:
        """Return a row itself, ``(in,)``, not a copy; None where another process keeps it."""
        return self.tensor[row - self.first] if 0 <= row - self.first < len(self.tensor) else None

    def among(self, rows: torch.Tensor) -> torch.Tensor:
        """Return which of ``rows``, int64 ``(N,)``, are kept here: bool ``(N,)``."""
        return (rows >= self.first) & (rows < self.first + len(self.tensor))

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the part of a whole matrix that lies in these rows."""
        return whole[self.first : self.first + len(self.tensor)]


_KEPT: Any = WeakTensorKeyDictionary()
"""What this process keeps of each whole matrix that was made."""


def is_shared(tensor: torch.Tensor) -> bool:
    """Return whether each process keeps some rows of a tensor alone."""
    distributed = sys.modules.get("torch.distributed.tensor")  # slow to import, and no tensor is shared without it
    if distributed is None or not isinstance(tensor, distributed.DTensor):
        return False
    return any(place.is_shard() for place in tensor.placements)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a shared tensor with the rows of all processes, a copy that every process gets; any other tensor unchanged.

    All processes have to call it.
    """
    if not is_shared(tensor):
        return tensor
    shared: Any = tensor.detach()
    found: torch.Tensor = shared.full_tensor()
    kept = shared.to_local()
    _KEPT[found] = Rows(kept, shared.device_mesh.get_local_rank() * len(kept))
    return found


def own_rows(matrix: torch.Tensor) -> Rows:
    """Return the rows of a matrix that this process computes with: all of them, itself, where it is not shared."""
    found: Rows | None = _KEPT.get(matrix)
    return Rows(matrix) if found is None else found


def shared_like(matrix: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return a whole matrix shared among the processes as ``other`` is; unchanged where that is not shared."""
    if not is_shared(other):
        return matrix
    from torch.distributed.tensor import distribute_tensor

    like: Any = other
    return distribute_tensor(matrix, like.device_mesh, like.placements, src_data_rank=None)


def is_shared_map(module: nn.Module) -> bool:
    """Return whether the processes share the weight of a linear map."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and is_shared(weight)
