"""Records tensors of a forward pass: the residual stream, and inputs and outputs of the down projections.

``observe`` is a ``with`` block: name the layers, run the model inside, read the recorded tensors. It can end the pass
after the last layer that is needed. B batch, T tokens, H residual width, F inner width.
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


class _StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass. It never leaves the ``with`` block of the ``Observation`` that it carries."""


class _TensorsByLayer(dict[int, torch.Tensor]):
    """Recorded tensors by layer; a layer that was not recorded raises ``NotObservedError``."""

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
class Observation:
    """The tensors recorded in the last forward pass, by layer. They are detached, but not copied.

    ``residual`` is the output of the decoder layer, ``(B, T, H)``. ``inputs`` and ``outputs`` are those of its down
    projection, ``(B, T, F)`` and ``(B, T, H)``. Reading a layer that was not recorded raises ``NotObservedError``.
    """

    residual: dict[int, torch.Tensor] = field(default_factory=lambda: _TensorsByLayer("residual"))
    inputs: dict[int, torch.Tensor] = field(default_factory=lambda: _TensorsByLayer("inputs"))
    outputs: dict[int, torch.Tensor] = field(default_factory=lambda: _TensorsByLayer("outputs"))


@contextmanager
def observe(
    model: nn.Module,
    *,
    residual: Sequence[int] = (),
    inputs: Sequence[int] = (),
    outputs: Sequence[int] = (),
    stop: bool = False,
) -> Iterator[Observation]:
    """Record tensors of the named layers during the forward passes that run inside the block.

    Yields an ``Observation``. With ``stop`` the pass ends right after the last module that was asked for. The rest of the
    block is then skipped, so read the ``Observation`` after the block. The hooks are removed when the block is left, also by
    an exception. Raises ``CoordinateError`` for a layer that the model does not have.
    """
    body, observation = anatomy(model), Observation()
    body.check_layers((*residual, *inputs, *outputs))
    last = max((*residual, *inputs, *outputs), default=-1)

    def stop_forward(_module: nn.Module, _args: Any, _output: Any) -> None:
        raise _StopForward(observation)

    with ExitStack() as hooks:
        for layer in sorted({*residual, *inputs, *outputs}):
            _record_layer(hooks, body, layer, observation, (layer in residual, layer in inputs, layer in outputs))
        if stop and last >= 0:
            final = body.layers[last] if last in residual else body.down_projections[last]
            hooks.callback(final.register_forward_hook(stop_forward).remove)
        try:
            yield observation
        except _StopForward as signal:
            if signal.args[0] is not observation:  # it belongs to an outer block
                raise


def _record_layer(
    hooks: ExitStack, body: Anatomy, layer: int, observation: Observation, wanted: tuple[bool, bool, bool]
) -> None:
    """Add the hooks of one layer; ``wanted`` says whether to record residual, inputs and outputs."""
    residual, inputs, outputs = wanted
    down = body.down_projections[layer]

    def record_residual(_module: nn.Module, _args: Any, output: Any) -> None:
        observation.residual[layer] = first_tensor(output).detach()

    def record_inputs(_module: nn.Module, args: tuple[Any, ...]) -> None:
        observation.inputs[layer] = dequantized(args[0]).detach()

    def record_outputs(_module: nn.Module, _args: Any, output: Any) -> None:
        observation.outputs[layer] = first_tensor(output).detach()

    if residual:
        hooks.callback(body.layers[layer].register_forward_hook(record_residual).remove)
    if inputs:
        hooks.callback(down.register_forward_pre_hook(record_inputs).remove)
    if outputs:
        hooks.callback(down.register_forward_hook(record_outputs).remove)


def first_tensor(output: Any) -> torch.Tensor:
    """Return the tensor that a module returned, dequantized to plain floats.

    Depending on the version of transformers a decoder layer returns the tensor alone or first in a tuple.
    """
    return dequantized(output[0] if isinstance(output, tuple) else output)


def dequantized(tensor: torch.Tensor) -> torch.Tensor:
    """Return the dequantized values of a tensor whose class overrides ``dequantize``, else ``tensor`` itself.

    Some quantizers pass tensors of integer codes from module to module.
    """
    if type(tensor).dequantize is torch.Tensor.dequantize:
        return tensor
    return tensor.dequantize()
