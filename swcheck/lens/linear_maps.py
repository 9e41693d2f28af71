"""The linear maps of a model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from swcheck.base.errors import NotObservedError
from swcheck.lens.anatomy import anatomy, device_of, input_width
from swcheck.lens.likelihood import evaluating
from swcheck.lens.observe import as_floats, first_tensor

if TYPE_CHECKING:
    from torch import nn


def contributions(module: nn.Module, x: torch.Tensor, row: int, columns: Sequence[int]) -> torch.Tensor:
    """What each input channel adds to one output channel: ``[f(x) - f(x with x_column = 0)]_row``.

    ``x`` is the recorded input ``(F,)`` at one token; the result is float32 ``(len(columns),)``, in the unit of the
    residual stream. Holds for any linear map, packed or not; nothing is modified.
    """
    batch = x.repeat(len(columns) + 1, 1)
    batch[torch.arange(len(columns)), torch.tensor(list(columns), dtype=torch.int64)] = 0
    with torch.no_grad():
        out = first_tensor(module(batch))[:, row].float()
    return out[-1] - out[:-1]


def effective_weight(module: nn.Module, row: int, column: int, *, at: float = 1.0) -> float:
    """The scalar that stands between input ``column`` and output ``row``.

    Read from the tensor where the module keeps it plainly, else by a one-hot probe of size ``at``. A module that
    quantizes its activations statically has a grid for the inputs it usually gets: give the recorded input of this
    column there, at 1 the probe may be rounded to a third of itself. Compare contributions, show this.
    """
    weight = plain_weight(module)
    if weight is not None:
        return float(weight[row, column])
    width, dtype, device = _input_of(module)
    probe = torch.zeros(2, width, dtype=dtype, device=device)
    probe[1, column] = at
    with torch.no_grad():
        out = first_tensor(module(probe))[:, row].double()
    return float(out[1] - out[0]) / float(probe[1, column])


def plain_weight(module: nn.Module) -> torch.Tensor | None:
    """The weight ``(H, F)`` of a module that is an ordinary linear layer and nothing more, else None.

    None for packed storage, tensor subclasses, an exchanged ``forward``, offloaded weights, and weights that are made
    anew for every pass (parametrizations, ``torch.nn.utils.prune``): there a write into the tensor need not be what
    the next pass computes with.
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
    """One linear map of a decoder layer that keeps its weight plainly; ``path`` is its name inside the layer."""

    layer: int
    path: str
    module: nn.Module = field(repr=False)

    @property
    def weight(self) -> torch.Tensor:
        """Its weight ``(out, in)`` itself, not a copy."""
        weight = plain_weight(self.module)
        if weight is None:
            raise NotObservedError(f"the weight of {self.path} in layer {self.layer}", "it is not kept plainly")
        return weight


def linear_maps(model: nn.Module) -> tuple[LinearMap, ...]:
    """Every plain linear map of the decoder layers, layer by layer, in the model's own order.

    What is packed is left out: compare with ``packed_maps``.
    """
    return tuple(
        LinearMap(number, path, module)
        for number, layer in enumerate(anatomy(model).layers)
        for path, module in layer.named_modules()
        if plain_weight(module) is not None
    )


def packed_maps(model: nn.Module) -> tuple[str, ...]:
    """The qualified names of the linear maps of the layers that keep no plain weight, as far as they can be told."""
    from torch import nn

    body = anatomy(model)
    return tuple(
        f"{body.path}.{number}.{path}"
        for number, layer in enumerate(body.layers)
        for path, module in layer.named_modules()
        if (module is body.down_projections[number] or isinstance(module, nn.Linear) or _packs(module))
        and plain_weight(module) is None
    )


def _packs(module: nn.Module) -> bool:
    """Whether a module of another class says that it is a linear map, by its two widths."""
    return (
        hasattr(module, "in_features") and hasattr(module, "out_features") and not any(True for _ in module.children())
    )


def inputs_of(model: nn.Module, maps: Sequence[LinearMap], ids: torch.Tensor) -> dict[LinearMap, torch.Tensor]:
    """What each map reads in one pass over ``ids`` ``(B, T)``: the tensors as they passed, ``(B, T, in)``, not copied.

    Maps that read the same tensor share it. A map that the pass does not reach is left out.
    """
    seen: dict[LinearMap, torch.Tensor] = {}

    def look(one: LinearMap) -> Any:
        return lambda _module, args: seen.__setitem__(one, as_floats(args[0]).detach())

    with ExitStack() as hooks, evaluating(model):
        for one in maps:
            hooks.callback(one.module.register_forward_pre_hook(look(one)).remove)
        model(ids.to(device_of(model)), use_cache=False)
    return seen


def _input_of(module: nn.Module) -> tuple[int, torch.dtype, torch.device]:
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
