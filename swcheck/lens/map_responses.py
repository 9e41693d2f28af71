"""What every linear map of a model answers to the same fixed inputs, by which maps of two models are compared.

Of each answer a few folded numbers are kept and its norm: enough to tell how far another model's answer is off, for a
baseline's file as for a reference that is freed before its candidate is loaded. N maps, K numbers of each.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from swcheck.base.count_sketch import count_sketch, generator_fingerprint
from swcheck.lens.anatomy import Anatomy, device_of
from swcheck.lens.observe import first_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBES: Final = 8
KEPT: Final = 2**15
"""So many numbers are kept of all maps together, 160 kB in a file."""
MOST: Final = 256
"""And so many of one map at most: they tell its error to 4 %."""
FEWEST: Final = 16
"""And at least: with fewer, one of some thousand maps in 8 bits would pass for one that was not quantized."""

ROUNDED: Final = 0.02
"""So far off may the same map be in two formats of two bytes; bfloat16 rounds to 0.4 %."""


@dataclass(frozen=True)
class MapResponses:
    """What the linear maps of a model answered: names (layer.path), input widths int64 and norms float32 ``(N,)``.

    ``values`` float32 ``(N, K)`` are the answers folded; ``drawn`` is the fingerprint of the fixed inputs.
    """

    names: tuple[str, ...]
    widths: torch.Tensor
    norms: torch.Tensor
    values: torch.Tensor
    drawn: torch.Tensor

    @property
    def fits(self) -> bool:
        """Whether they are few enough for a file."""
        return self.values.numel() <= KEPT

    @property
    def comparable(self) -> bool:
        """Whether the same inputs are drawn here."""
        now = generator_fingerprint()
        return now.shape == self.drawn.shape and torch.allclose(now, self.drawn, rtol=0, atol=1e-5)


def responses_of(body: Anatomy) -> MapResponses:
    """Ask every linear map of the layers."""
    maps = list(_maps(body))
    count = min(MOST, max(FEWEST, KEPT // max(1, len(maps))))
    widths = torch.tensor([width for *_, width in maps], dtype=torch.int64)
    norms, values = torch.zeros(len(maps)), torch.zeros(len(maps), count)
    for number, (_, module, width) in enumerate(maps):
        given = answer(module, width)
        norms[number], values[number] = given.norm(), count_sketch(given, count)
    return MapResponses(tuple(name for name, *_ in maps), widths, norms, values, generator_fingerprint())


def response_errors(body: Anatomy, expected: MapResponses) -> dict[str, float]:
    """By name, how far each map's answer is off here, relative to the norm of the expected one; absent maps left out."""
    layers, errors = dict(enumerate(body.layers)), {}
    for name, width, norm, values in zip(
        expected.names, expected.widths.tolist(), expected.norms, expected.values, strict=True
    ):
        layer, _, path = name.partition(".")
        with suppress(AttributeError, KeyError, RuntimeError):
            folded = count_sketch(answer(layers[int(layer)].get_submodule(path), width), len(values))
            errors[name] = float((folded - values).norm() / norm.clamp_min(1e-12))
    return errors


def answers_like(weight: torch.Tensor, bias: torch.Tensor | None, name: str, expected: MapResponses) -> bool:
    """Whether a plain weight ``(out, in)`` answers as the map of this name did, but for rounding to two bytes."""
    if name not in expected.names or weight.ndim != 2 or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return False
    number = expected.names.index(name)
    width, norm, values = int(expected.widths[number]), expected.norms[number], expected.values[number]
    if weight.shape[1] != width:
        return False
    module = nn.Linear(width, len(weight), bias=bias is not None, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    return bool((count_sketch(answer(module, width), len(values)) - values).norm() <= ROUNDED * norm)


def _maps(body: Anatomy) -> Iterator[tuple[str, nn.Module, int]]:
    """Every linear map of the layers: its name, itself, its input width."""
    for number, layer in enumerate(body.layers):
        for path, module in layer.named_modules():
            width = getattr(module, "in_features", None)
            if width and (isinstance(module, nn.Linear) or not any(True for _ in module.children())):
                yield f"{number}.{path}", module, int(width)


def answer(module: nn.Module, width: int) -> torch.Tensor:
    """The map's output for ``PROBES`` random inputs of unit variance, seeded, float32 ``(PROBES, out)``."""
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    dtype = tensor.dtype if tensor is not None and tensor.dtype.itemsize > 1 else torch.float32
    inputs = torch.randn(PROBES, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = first_tensor(module(inputs.to(dtype=dtype, device=device_of(module))))
    return answer.float().cpu()
