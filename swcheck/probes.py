"""What every linear map of a model answers to the same fixed inputs, by which maps of two models are compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import nn

from swcheck.anatomy import Anatomy, device_of
from swcheck.observe import first_tensor

PROBES: Final = 8


def probes(body: Anatomy) -> Iterator[tuple[str, tuple[int, torch.Tensor]]]:
    """The name of every linear map of the layers, its input width, and its answers."""
    for number, layer in enumerate(body.layers):
        for path, module in layer.named_modules():
            width = getattr(module, "in_features", None)
            if width and (isinstance(module, nn.Linear) or not any(True for _ in module.children())):
                yield f"{number}.{path}", (int(width), answer(module, int(width)))


def answer(module: nn.Module, width: int) -> torch.Tensor:
    """The map's output for ``PROBES`` random inputs of unit variance, seeded, float32 ``(PROBES, out)``."""
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    dtype = tensor.dtype if tensor is not None and tensor.dtype.itemsize > 1 else torch.float32
    inputs = torch.randn(PROBES, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = first_tensor(module(inputs.to(dtype=dtype, device=device_of(module))))
    return answer.float().cpu()
