"""Compares the linear maps of two models by their outputs for the same fixed random inputs.

Of each output only its norm and a count sketch of a few numbers are kept. That is enough to tell how far the output of
another model's map differs, so a baseline file can hold it, and a reference can be freed before its candidate is loaded.
N maps, K numbers kept of each.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from swcheck.base.count_sketch import count_sketch, generator_fingerprint
from swcheck.base.terminal.progress import with_bar
from swcheck.lens.architecture.anatomy import Anatomy
from swcheck.lens.architecture.storage import device_of, first_tensor, input_width

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBES: Final = 8
"""The number of random inputs that each map gets."""
VALUES_KEPT: Final = 2**15
"""At most this many numbers are kept of all maps together, 160 kB in a file."""
MOST_PER_MAP: Final = 256
"""At most this many numbers are kept of one map. They give its error to within 4 %."""
FEWEST_PER_MAP: Final = 16
"""At least this many numbers are kept of one map.

With fewer, among some thousand maps in 8 bits one would look as if it had not been quantized.
"""

ROUNDING: Final = 0.02
"""The same map in two formats of two bytes differs by less than this, relative to the norm; bfloat16 rounds to 0.4 %."""


@dataclass(frozen=True)
class MapResponses:
    """The outputs of the linear maps of a model for the fixed inputs.

    ``names`` are ``layer.path``, as ``1.mlp.down_proj``; ``widths`` int64 ``(N,)`` are the input widths; ``norms``
    float32 ``(N,)`` are the norms of the outputs, and ``values`` float32 ``(N, K)`` are their count sketches. ``drawn``
    is the fingerprint of the random generator that the inputs came from.
    """

    names: tuple[str, ...]
    widths: torch.Tensor
    norms: torch.Tensor
    values: torch.Tensor
    drawn: torch.Tensor

    @property
    def fits_in_baseline(self) -> bool:
        """Whether the numbers are few enough for a baseline file."""
        return self.values.numel() <= VALUES_KEPT

    @property
    def is_comparable(self) -> bool:
        """Whether the random generator of this machine gives the same inputs."""
        here = generator_fingerprint()
        return here.shape == self.drawn.shape and torch.allclose(here, self.drawn, rtol=0, atol=1e-5)


class ResponseReader:
    """Reads the outputs of the linear maps of the decoder layers for the fixed inputs, layer by layer."""

    def __init__(self, body: Anatomy) -> None:
        self._maps = list(_named_maps(body))
        self._count = min(MOST_PER_MAP, max(FEWEST_PER_MAP, VALUES_KEPT // max(1, len(self._maps))))
        self._read: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def visit(self, layer: int) -> None:
        """Read the maps of one layer."""
        for one in self._maps:
            if one[0].startswith(f"{layer}."):
                self._read_map(*one)

    def responses(self) -> MapResponses:
        """Return the outputs; what was not visited is read now."""
        for one in with_bar(self._maps, "reading linear maps", len(self._maps)):
            if one[0] not in self._read:
                self._read_map(*one)
        norms, values = torch.zeros(len(self._maps)), torch.zeros(len(self._maps), self._count)
        for number, (name, *_) in enumerate(self._maps):
            norms[number], values[number] = self._read[name]
        widths = torch.tensor([width for *_, width in self._maps], dtype=torch.int64)
        return MapResponses(tuple(name for name, *_ in self._maps), widths, norms, values, generator_fingerprint())

    def _read_map(self, name: str, module: nn.Module, width: int) -> None:
        output = _output_for_probes(module, width)
        self._read[name] = output.norm(), count_sketch(output, self._count)


def responses_of(body: Anatomy) -> MapResponses:
    """Return the outputs of every linear map of the decoder layers for the fixed inputs."""
    return ResponseReader(body).responses()


def response_errors(body: Anatomy, expected: MapResponses) -> dict[str, float]:
    """Return by name how far the output of each map differs from the expected one, relative to the expected norm.

    A map that this model does not have, or that does not accept the input, is left out.
    """
    layers, errors = dict(enumerate(body.layers)), {}
    wanted = zip(expected.names, expected.widths.tolist(), expected.norms, expected.values, strict=True)
    for name, width, norm, values in with_bar(wanted, "comparing linear maps", len(expected.names)):
        layer, _, path = name.partition(".")
        with suppress(AttributeError, KeyError, RuntimeError):
            sketch = count_sketch(_output_for_probes(layers[int(layer)].get_submodule(path), width), len(values))
            errors[name] = float((sketch - values).norm() / norm.clamp_min(1e-12))
    return errors


def gives_response(weight: torch.Tensor, bias: torch.Tensor | None, name: str, expected: MapResponses) -> bool:
    """Return whether a plain weight ``(out, in)`` gives the output of the map ``name``, up to rounding to two bytes.

    False for a weight of another input width and for one that is not stored as floats of two bytes or more.
    """
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
    return bool((count_sketch(_output_for_probes(module, width), len(values)) - values).norm() <= ROUNDING * norm)


def _named_maps(body: Anatomy) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield the name, the module and the input width of every linear map of the decoder layers."""
    for number, layer in enumerate(body.layers):
        for path, module in layer.named_modules():
            width = input_width(module)
            # experts in one parameter also want to know which token is whose
            is_stack = any(weight.ndim > 2 for weight in module.parameters(recurse=False))
            if width and not is_stack and (isinstance(module, nn.Linear) or not any(True for _ in module.children())):
                yield f"{number}.{path}", module, int(width)


def _output_for_probes(module: nn.Module, width: int) -> torch.Tensor:
    """Return the output for ``PROBES`` seeded random inputs of unit variance, float32 ``(PROBES, out)`` on the CPU."""
    tensor = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    dtype = tensor.dtype if tensor is not None and tensor.dtype.itemsize > 1 else torch.float32
    inputs = torch.randn(PROBES, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = first_tensor(module(inputs.to(dtype=dtype, device=device_of(module))))
    return output.float().cpu()
