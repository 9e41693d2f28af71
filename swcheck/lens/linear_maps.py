"""The linear maps of the decoder layers: their weights, their inputs, and what single scalars of them write.

A linear map is treated as a black box: what a scalar writes is computed from outputs of the map, so that packed and
plain storage need no different code. B batch, T tokens, H residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from swcheck.base.errors import NotObservedError
from swcheck.lens.architecture.anatomy import Anatomy, DownMap, MapKey, anatomy
from swcheck.lens.architecture.storage import (
    dequantized,
    device_of,
    evaluating,
    first_tensor,
    has_plain_weight,
    input_width,
    is_plain,
    plain_weight,
)

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


def scalar_of(down: DownMap, row: int, column: int) -> float:
    """Return ``effective_weight`` of a down projection; raises ``NotObservedError`` for a packed expert."""
    weight = down.weight
    if weight is not None:
        return float(weight[row, column])
    down.check_reachable("a weight")
    return effective_weight(down.module, row, column)


def written_by(down: DownMap, x: torch.Tensor, row: int, columns: Sequence[int]) -> torch.Tensor:
    """Return ``contributions`` of a down projection, float32 ``(len(columns),)``, for its input ``x`` ``(F,)``.

    An expert's are those before the router's weight. Raises ``NotObservedError`` for a packed expert.
    """
    weight = down.weight if down.is_routed else None
    if weight is None:
        down.check_reachable("a weight")
        return contributions(down.module, x, row, columns)
    written: torch.Tensor = x[list(columns)].float() * weight[row, list(columns)].float()
    return written


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


@dataclass(frozen=True, eq=False)
class Matrix:
    """One plain matrix ``(out, in)`` of a decoder layer: that of a linear map, or of one expert.

    ``path`` is its name inside the layer, ``down`` its address where it is a down projection. ``kind`` is the path without
    the number of an expert: the experts of a layer have matrices of the same kinds.
    """

    layer: int
    path: str
    weight: torch.Tensor = field(repr=False)
    down: MapKey | None = None
    kind: str = ""


def plain_matrices(body: Anatomy, layers: Iterable[int] | None = None) -> Iterator[Matrix]:
    """Yield every plain matrix of the decoder layers, layer by layer; those of experts come after their layer's others."""
    for number in range(len(body.layers)) if layers is None else layers:
        downs = {id(one.module): one for one in body.down_maps(number) if one.index is None}
        lists = {
            one.place.path.split(f".{one.key.expert}.")[0] for one in downs.values() if isinstance(one.key.expert, int)
        }
        for path, module in body.layers[number].named_modules():
            weight = plain_weight(module)
            if weight is not None:
                down = downs.get(id(module))
                yield Matrix(number, path, weight, None if down is None else down.key, _without_expert(path, lists))
        yield from _expert_matrices(body, number)


def _expert_matrices(body: Anatomy, layer: int) -> Iterator[Matrix]:
    """Yield the matrices in the parameters of the modules that hold those of all experts."""
    for place in body.structure.places[layer]:
        if place.parameter is None:
            continue
        downs = [one for one in body.down_maps(layer) if one.place == place]
        for name, parameter in downs[0].module.named_parameters(recurse=False) if downs else ():
            is_down = name == place.parameter
            stack = replace(place, parameter=name).stack(downs[0].module)
            if stack is None or stack.ndim != 3 or not is_plain(parameter):
                continue
            is_transposed = place.is_transposed and (is_down or place.rows is None)
            for index, matrix in enumerate(stack.data):
                path, key = f"{place.path}.{name}", downs[index].key if is_down else None
                yield Matrix(layer, f"{path}[{index}]", matrix.T if is_transposed else matrix, key, path)


def _without_expert(path: str, lists: Iterable[str]) -> str:
    """Return a path without the number behind the name of a list of experts."""
    for name in lists:
        if path.startswith(f"{name}."):
            return f"{name}.{path.removeprefix(f'{name}.').partition('.')[2]}"
    return path


def linear_maps(model: nn.Module) -> tuple[LinearMap, ...]:
    """Return every linear map of the decoder layers whose weight is plain, layer by layer, in the model's own order.

    Packed ones are left out; ``packed_maps`` names them.
    """
    return tuple(
        LinearMap(number, path, module)
        for number, layer in enumerate(anatomy(model).layers)
        for path, module in layer.named_modules()
        if has_plain_weight(module)
    )


def packed_maps(model: nn.Module) -> tuple[str, ...]:
    """Return the qualified names of the linear maps of the decoder layers that have no plain weight.

    A module of an unknown class counts as a linear map only if it declares both widths.
    """
    from torch import nn

    body = anatomy(model)
    downs = [{one.module for one in body.down_maps(number) if one.index is None} for number in range(len(body.layers))]
    return tuple(
        f"{body.path}.{number}.{path}"
        for number, layer in enumerate(body.layers)
        for path, module in layer.named_modules()
        if (isinstance(module, nn.Linear) or _declares_widths(module) or module in downs[number])
        and not has_plain_weight(module)
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
