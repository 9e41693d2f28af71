"""What a norm multiplies by: its weight, or, in Gemma and others, 1 more than that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

if TYPE_CHECKING:
    from torch import nn


@torch.no_grad()
def gain_offset(norm: nn.Module) -> float:
    """Return what a norm adds to its weight ``(H,)`` before it multiplies by it: 1 or 0.

    It is seen from what the norm answers with a weight, and a bias, of zeros.
    """
    zeros = {name: torch.zeros(one.shape) for name, one in norm.named_parameters(recurse=False)}
    vector = torch.linspace(-1, 2, zeros["weight"].numel())
    return float(bool(functional_call(norm, zeros, (vector,)).any()))
