"""The linear maps of the decoder layers: their weights, their inputs, and what single scalars of them write.

A linear map is treated as a black box: what a scalar writes is computed from outputs of the map, so that packed and
plain storage need no different code. B batch, T tokens, H residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from swcheck.base.errors import NotObservedError
from swcheck.lens.anatomy import anatomy, device_of, input_width
from swcheck.lens.likelihood import evaluating
from swcheck.lens.observe import dequantized, first_tensor

if TYPE_CHECKING:
    from torch import nn


def contributions(module: nn.Module, x: torch.Tensor, row: int, columns: Sequence[int]) -> torch.Tensor:
    """Return what each input channel adds to one output channel: ``f(x)[row] - f(x with x[column] = 0)[row]``.

    ``x`` is the recorded input of the module at one token, ``(F,)``. The result is float32 ``(len(columns),)``; for a
    down projection it is in the unit of the residual stream. This holds for any linear map, packed or not. Nothing is
    modified.
    """
    batch = x.repeat(len(columns) + 1, 1)
    batch[torch.arange(len(columns)), torch.tensor(list(columns), dtype=torch.int64)] = 0
    with torch.no_grad():
        out = first_tensor(module(batch))[:, row].float()
    return out[-1] - out[:-1]


def effective_weight(module: nn.Module, row: int, column: int, *, at: float = 1.0) -> float:
    """Return the scalar that the module applies from input ``column`` to output ``row``.

    It is read from the weight where the module keeps that plainly, else measured with a one-hot input of size ``at``.
    A module that quantizes its activations statically has a grid made for the inputs that it usually gets, and may
    round an input of 1 to a third of it: pass the recorded input of this column as ``at``. This value is for display;
    compare contributions instead. Raises ``NotObservedError`` where a probe is needed and the input width is unknown.
    """
    weight = plain_weight(module)
    if weight is not None:
        return float(weight[row, column])
    width, dtype, device = _input_format(module)
    probe = torch.zeros(2, width, dtype=dtype, device=device)
    probe[1, column] = at
    with torch.no_grad():
        out = first_tensor(module(probe))[:, row].double()
    return float(out[1] - out[0]) / float(probe[1, column])


def plain_weight(module: nn.Module) -> torch.Tensor | None:
    """Return the weight ``(out, in)`` of an ordinary ``nn.Linear`` itself, not a copy; None for any other module.

    None for packed storage, tensor subclasses, a replaced ``forward``, offloaded weights, and weights that are
    computed anew in every pass (parametrizations, ``torch.nn.utils.prune``). In those cases a write into the tensor
    need not change what the next pass computes with.
    """
    from torch import nn

    if type(module) is not nn.Linear or "forward" in vars(module):
        return None
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is None or type(weight.data) is not torch.Tensor or weight.is_meta or not weight.is_floating_point():
        return None
    return weight.data


@dataclass(frozen=True)
class LinearMap:
    """One linear map of a decoder layer whose weight is plain; ``path`` is its name inside the layer."""

    layer: int
    path: str
    module: nn.Module = field(repr=False)

    @property
    def weight(self) -> torch.Tensor:
        """The weight ``(out, in)`` itself, not a copy. Raises ``NotObservedError`` where it is no longer plain."""
        weight = plain_weight(self.module)
        if weight is None:
            raise NotObservedError(f"the weight of {self.path} in layer {self.layer}", "it is not kept plainly")
        return weight


def linear_maps(model: nn.Module) -> tuple[LinearMap, ...]:
    """Return every linear map of the decoder layers whose weight is plain, layer by layer, in the model's own order.

    Packed ones are left out; ``packed_maps`` names them.
    """
    return tuple(
        LinearMap(number, path, module)
        for number, layer in enumerate(anatomy(model).layers)
        for path, module in layer.named_modules()
        if plain_weight(module) is not None
    )


def packed_maps(model: nn.Module) -> tuple[str, ...]:
    """Return the qualified names of the linear maps of the decoder layers that have no plain weight.

    A module of an unknown class counts as a linear map only if it declares both widths.
    """
    from torch import nn

    body = anatomy(model)
    return tuple(
        f"{body.path}.{number}.{path}"
        for number, layer in enumerate(body.layers)
        for path, module in layer.named_modules()
        if (module is body.down_projections[number] or isinstance(module, nn.Linear) or _declares_widths(module))
        and plain_weight(module) is None
    )


def _declares_widths(module: nn.Module) -> bool:
    """Return whether a module has ``in_features`` and ``out_features``, as a linear map does, and no submodules."""
    return (
        hasattr(module, "in_features") and hasattr(module, "out_features") and not any(True for _ in module.children())
    )


def inputs_of(model: nn.Module, maps: Sequence[LinearMap], ids: torch.Tensor) -> dict[LinearMap, torch.Tensor]:
    """Return the input ``(B, T, in)`` of each map in one forward pass over ``ids``, int64 ``(B, T)``.

    The tensors are not copied, and maps that read the same tensor share it. A map that the pass does not reach is left
    out.
    """
    inputs: dict[LinearMap, torch.Tensor] = {}

    def recorder(linear_map: LinearMap) -> Any:
        return lambda _module, args: inputs.__setitem__(linear_map, dequantized(args[0]).detach())

    with ExitStack() as hooks, evaluating(model):
        for linear_map in maps:
            hooks.callback(linear_map.module.register_forward_pre_hook(recorder(linear_map)).remove)
        model(ids.to(device_of(model)), use_cache=False)
    return inputs


def _input_format(module: nn.Module) -> tuple[int, torch.dtype, torch.device]:
    """Return width, dtype and device that an input of the module must have.

    The dtype is that of its first floating tensor of two bytes or more; float32 where it has none.
    """
    width = input_width(module)
    if width is None:
        raise NotObservedError(
            f"the input width of {type(module).__name__}",
            "the module has no in_features",
            "compare contributions at a recorded input instead",
        )
    tensors = [*module.parameters(), *module.buffers()]
    dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dtype.itemsize > 1]
    return int(width), dtypes[0] if dtypes else torch.float32, device_of(module)
