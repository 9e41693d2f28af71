"""Looks inside a forward pass, and reads single scalars, without opening any module.

``observe`` is a ``with`` block: name what you want to see, run the model inside, read what passed by. It can end the
pass after the last layer that is needed. A linear map is a black box here: what a scalar writes is read from what the
map does, so that packed and plain storage are one. B batch, T time, H residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from swcheck.anatomy import Anatomy, anatomy, device_of, input_width
from swcheck.errors import NotObservedError
from swcheck.measure import evaluating

if TYPE_CHECKING:
    from torch import nn


class _Enough(Exception):  # noqa: N818 - a signal, no error
    """Ends a forward pass; never leaves the ``with`` block whose ``Sight`` it carries."""


class _Seen(dict[int, torch.Tensor]):
    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def __missing__(self, layer: int) -> torch.Tensor:
        raise NotObservedError(
            f"{self._what} of layer {layer}",
            f"seen so far: {sorted(self) or 'nothing'}",
            f"name the layer when entering observe({self._what}=...), and run the model inside the block",
        )


@dataclass(frozen=True)
class Sight:
    """What the last forward pass showed, by layer: tensors as they passed, detached, not copied.

    ``residual`` is the output of the decoder layer ``(B, T, H)``, ``inputs`` and ``outputs`` are those of its down
    projection, ``(B, T, F)`` and ``(B, T, H)``.
    """

    residual: dict[int, torch.Tensor] = field(default_factory=lambda: _Seen("residual"))
    inputs: dict[int, torch.Tensor] = field(default_factory=lambda: _Seen("inputs"))
    outputs: dict[int, torch.Tensor] = field(default_factory=lambda: _Seen("outputs"))


@contextmanager
def observe(
    model: nn.Module,
    *,
    residual: Sequence[int] = (),
    inputs: Sequence[int] = (),
    outputs: Sequence[int] = (),
    stop: bool = False,
) -> Iterator[Sight]:
    """Watch the named layers during the forward passes run inside the block.

    With ``stop`` the pass ends right after the last thing asked for, and the rest of the block with it: read the
    ``Sight`` after the block. Hooks are placed on entering and removed on leaving, whatever happens in between. Raises
    ``CoordinateError`` for a layer that the model does not have.
    """
    body, sight = anatomy(model), Sight()
    body.check_layers((*residual, *inputs, *outputs))
    last = max((*residual, *inputs, *outputs), default=-1)

    def end(_module: nn.Module, _args: Any, _output: Any) -> None:
        raise _Enough(sight)

    with ExitStack() as hooks:
        for layer in sorted({*residual, *inputs, *outputs}):
            _watch(hooks, body, layer, sight, (layer in residual, layer in inputs, layer in outputs))
        if stop and last >= 0:
            final = body.layers[last] if last in residual else body.down_projections[last]
            hooks.callback(final.register_forward_hook(end).remove)
        try:
            yield sight
        except _Enough as signal:
            if signal.args[0] is not sight:
                raise


def _watch(hooks: ExitStack, body: Anatomy, layer: int, sight: Sight, want: tuple[bool, bool, bool]) -> None:
    residual, inputs, outputs = want
    down = body.down_projections[layer]

    def see_residual(_module: nn.Module, _args: Any, output: Any) -> None:
        sight.residual[layer] = first_tensor(output).detach()

    def see_inputs(_module: nn.Module, args: tuple[Any, ...]) -> None:
        sight.inputs[layer] = floats(args[0]).detach()

    def see_outputs(_module: nn.Module, _args: Any, output: Any) -> None:
        sight.outputs[layer] = first_tensor(output).detach()

    if residual:
        hooks.callback(body.layers[layer].register_forward_hook(see_residual).remove)
    if inputs:
        hooks.callback(down.register_forward_pre_hook(see_inputs).remove)
    if outputs:
        hooks.callback(down.register_forward_hook(see_outputs).remove)


def first_tensor(output: Any) -> torch.Tensor:
    """The tensor a layer returned, alone or first in a tuple, as transformers' versions have it; in plain floats."""
    return floats(output[0] if isinstance(output, tuple) else output)


def floats(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself, or what its codes stand for: some quantizers hand tensors of codes from module to module."""
    if type(tensor).dequantize is torch.Tensor.dequantize:
        return tensor
    return tensor.dequantize()


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


@dataclass(frozen=True)
class Breakdown:
    """The first module of a pass that makes NaN or infinity out of finite inputs.

    ``stored`` says whether its own weights hold them already; ``dtype`` is what these are stored in, else what the
    module computes in, and ``largest`` its largest finite number. ``overflow`` says whether a number was too large for
    it: made of finite ones, or stored as infinity.
    """

    module: str
    stored: bool
    overflow: bool
    dtype: str
    largest: float


def breakdown(model: nn.Module, token_ids: torch.Tensor) -> Breakdown | None:
    """Where a pass over ``token_ids`` ``(B, T)`` stops being finite; None where it does not.

    A module counts whose inputs are finite and whose output is not; an inner one finishes before the one around it, so
    that a sum of finite parts that overflows is blamed on the layer that makes it. Masks are no inputs.
    """
    found: list[Breakdown] = []

    def look(name: str, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        if found or _finite(output):
            return
        bad = next((t for t in (*module.parameters(), *module.buffers()) if not _finite(t)), None)
        if bad is None:
            if _finite([*args, *(value for key, value in options.items() if "mask" not in key)]):
                dtype = first_tensor(output).dtype
                found.append(Breakdown(name, False, True, str(dtype).removeprefix("torch."), torch.finfo(dtype).max))
            return
        kind = str(bad.dtype).removeprefix("torch.")
        found.append(Breakdown(name, True, not bool(bad.float().isnan().any()), kind, torch.finfo(bad.dtype).max))

    with ExitStack() as hooks, evaluating(model):
        for name, module in model.named_modules():
            hook = module.register_forward_hook(partial(look, name), with_kwargs=True)
            hooks.callback(hook.remove)
        model(token_ids, use_cache=False)
    return found[0] if found else None


def _finite(thing: Any) -> bool:
    """Whether all floats of a tensor, or of the tensors in a tuple or list, are finite."""
    if isinstance(thing, (tuple, list)):
        return all(_finite(part) for part in thing)
    return not isinstance(thing, torch.Tensor) or not thing.is_floating_point() or bool(torch.isfinite(thing.float()).all())  # fmt: skip


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
        return lambda _module, args: seen.__setitem__(one, floats(args[0]).detach())

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
