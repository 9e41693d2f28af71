"""Runs the forward passes of a search: one over the whole prompt, then shorter ones with weights zeroed.

A later pass reuses the first pass up to the first edited layer, and ends before the last layer, whose output is not
used. T tokens, H residual width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from swcheck.base.records import SuperWeight
from swcheck.lens.anatomy import Anatomy, device_of
from swcheck.lens.intervene import zeroed
from swcheck.lens.observe import Observation, observe

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PassResult:
    """The tensors recorded in one pass, and its residual stream as one tensor, float32 ``(L, T, H)`` on the CPU."""

    sight: Observation
    residual: torch.Tensor


class Passes:
    """The passes over one prompt ``ids``, int64 ``(1, T)``; ``first`` is the one without any edit."""

    def __init__(self, model: nn.Module, body: Anatomy, ids: torch.Tensor) -> None:
        self.model, self.body, self.ids = model, body, ids
        self._in_tuple = False
        with ExitStack() as stack:
            sight = stack.enter_context(self._observed(len(body.layers)))
            stack.callback(body.layers[0].register_forward_hook(self._note_output_form).remove)
            model(ids.to(device_of(model)), use_cache=False)
        self.first = _result_of(sight)

    def run_without(self, removed: Sequence[SuperWeight], length: int) -> PassResult:
        """Run one pass over the first ``length`` tokens with ``removed`` zeroed.

        The layers before the first edited one are not computed: their tensors are those of the first pass.
        """
        start, first = min(weight.layer for weight in removed), self.first.sight
        with zeroed(self.model, removed), ExitStack() as stack:
            sight = stack.enter_context(self._observed(max(1, len(self.body.layers) - 1)))
            stack.enter_context(_layers_skipped(self.body, start, first.residual, length, in_tuple=self._in_tuple))
            self.model(self.ids[:, :length].to(device_of(self.model)), use_cache=False)
        result = _result_of(sight)
        for layer in range(start):
            sight.inputs[layer] = first.inputs[layer][:, :length]
            sight.outputs[layer] = first.outputs[layer][:, :length]
        return result

    def _observed(self, count: int) -> Any:
        layers = range(count)
        return observe(self.model, residual=layers, inputs=layers, outputs=layers, stop=True)

    def _note_output_form(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        self._in_tuple = isinstance(output, tuple)


def _result_of(sight: Observation) -> PassResult:
    layers = sorted(sight.residual)
    return PassResult(sight, torch.stack([sight.residual[layer][0] for layer in layers]).float().cpu())


@contextmanager
def _layers_skipped(
    body: Anatomy, start: int, residual: dict[int, torch.Tensor], length: int, *, in_tuple: bool
) -> Iterator[None]:
    """Let a pass of the model skip the layers before ``start``: each returns ``residual`` of an earlier pass.

    The model still makes its masks and positions itself, so nothing is assumed about the signature of a layer.
    ``in_tuple`` says whether the layers return the residual stream first in a tuple, or alone.
    """

    def returning(layer: int) -> Callable[..., Any]:
        def forward(*_args: Any, **_kwargs: Any) -> Any:
            hidden = residual[layer][:, :length]
            return (hidden,) if in_tuple else hidden

        return forward

    with ExitStack() as undo:
        for index in range(start):
            layer = body.layers[index]
            undo.callback(_restore_forward, layer, vars(layer).get("forward"))
            object.__setattr__(layer, "forward", returning(index))
        yield


def _restore_forward(layer: nn.Module, own: Any) -> None:
    if own is None:
        object.__delattr__(layer, "forward")
    else:
        object.__setattr__(layer, "forward", own)
