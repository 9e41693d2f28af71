"""Looks inside a forward pass, and reads single scalars, without opening any module.

``observe`` is a ``with`` block: name what you want to see, run the model inside, read what passed by. It can end the
pass after the last layer that is needed. A linear map is a black box here: what a scalar writes is read from what the
map does, so that packed and plain storage are one. B batch, T time, H residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from swcheck.base.errors import NotObservedError
from swcheck.lens.anatomy import Anatomy, anatomy

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
        sight.inputs[layer] = as_floats(args[0]).detach()

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
    return as_floats(output[0] if isinstance(output, tuple) else output)


def as_floats(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` itself, or what its codes stand for: some quantizers hand tensors of codes from module to module."""
    if type(tensor).dequantize is torch.Tensor.dequantize:
        return tensor
    return tensor.dequantize()
