"""Runs the forward passes of a search: one over the whole prompt, then shorter ones with weights zeroed.

A later pass reuses the first pass up to the first edited layer, and ends before the last layer, whose output is not
used. T tokens, H residual width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import Anatomy, DownMap, MapKey
from swcheck.lens.architecture.storage import device_of
from swcheck.lens.architecture.tracing import eager_experts
from swcheck.lens.architecture.twins import forward_replaced
from swcheck.lens.experts import RoutedCall, is_running_again, routed_calls, visits_counted
from swcheck.lens.intervene import zeroed
from swcheck.lens.observe import Observation, observe
from swcheck.superweights.locating.writers import LayerCall, Writers, layers_to_record

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PassResult:
    """What was recorded in one pass, and its residual stream as one tensor, float32 ``(L, T, H)`` on the CPU."""

    writers: Writers
    residual: torch.Tensor

    @property
    def observation(self) -> Observation:
        """The recorded tensors."""
        return self.writers.observation


class Passes:
    """The passes over one prompt ``ids``, int64 ``(1, T)``; ``first`` is the one without any edit.

    It ends after the first ``layers``; None runs all.

    ``visits`` has how many of its tokens each expert got; it is empty unless they were to be counted.
    """

    def __init__(
        self,
        model: nn.Module,
        body: Anatomy,
        ids: torch.Tensor,
        *,
        count_visits: bool = False,
        layers: int | None = None,
    ) -> None:
        self.model, self.body, self.ids = model, body, ids
        self.beside: dict[int, tuple[Any, ...]] = {}
        """What each layer returned beside the residual stream; a layer that is missing returned that alone."""
        self.visits: dict[MapKey, int] = {}
        with ExitStack() as stack:
            if count_visits:
                self.visits = stack.enter_context(visits_counted(body))
                stack.enter_context(eager_experts(model) if self.visits else nullcontext())
            self.first = self.run_first(range(len(body.layers) if layers is None else layers))

    def run_first(self, layers: range) -> PassResult:
        """Run the pass without any edit through ``layers``, the first ones of the model."""
        with ExitStack() as stack:
            writers = self.recorded(stack, layers)
            self.note_output_forms(stack)
            self.model(self.ids.to(device_of(self.model)), use_cache=False)
        return result_of(writers)

    def run_without(self, removed: Sequence[SuperWeight], length: int) -> PassResult:
        """Run one pass over the first ``length`` tokens with ``removed`` zeroed.

        The layers before the first edited one are not computed: their tensors are those of the first pass. All layers are
        where the first pass kept less than they hand on: the mean of several streams, one of several tensors, the last round.
        """
        start, first = min(weight.layer for weight in removed), self.first.observation
        if not self.body.structure.can_resume:
            start = 0
        with zeroed(self.model, removed), ExitStack() as stack:
            writers = self.recorded(stack, range(max(1, len(self.body.layers) - 1)), tuple(removed))
            stack.enter_context(layers_skipped(self.body, start, first.residual, length, self.beside))
            self.model(self.ids[:, :length].to(device_of(self.model)), use_cache=False)
        copy_layers(self.first.writers, writers, start, length)
        return result_of(writers)

    def recorded(self, stack: ExitStack, layers: range, removed: tuple[SuperWeight, ...] = ()) -> Writers:
        """Record ``layers`` in the passes that run until ``stack`` is closed; a pass ends after the last of them."""
        keys = [
            down.key.layer if down.key.expert is None else down.key
            for layer in layers
            for down in self.body.down_maps(layer)
            if not down.is_routed
        ]
        calls: dict[int, LayerCall] = {}
        routed: dict[int, list[RoutedCall]] = {}
        for layer in layers_to_record(self.body):
            if layer in layers:
                module = self.body.layers[layer]
                note = partial(_note_call, calls, layer)
                stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
                groups = _routed_maps(self.body, layer)
                lists = [stack.enter_context(routed_calls(module, maps)) for maps in groups]
                stack.callback(module.register_forward_hook(partial(_note_routed, routed, layer, lists)).remove)
        observation = stack.enter_context(observe(self.model, residual=layers, inputs=keys, outputs=keys, stop=True))
        return Writers(self.model, self.body, observation, calls, routed, removed)

    def note_output_forms(self, stack: ExitStack) -> None:
        """Note what each layer returns beside the residual stream, until ``stack`` is closed."""

        def note(number: int, _layer: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, tuple):
                self.beside[number] = output[1:]

        for number, layer in enumerate(self.body.layers):
            stack.callback(layer.register_forward_hook(partial(note, number)).remove)


def copy_layers(source: Writers, target: Writers, end: int, length: int) -> None:
    """Copy what one pass recorded of the layers before ``end`` and of the first ``length`` tokens to another pass.

    Nothing was zeroed in these layers, and a layer does not see later tokens.
    """
    for layer in range(end):
        target.observation.residual[layer] = source.observation.residual[layer][:, :length]
    for key in [key for key in source.observation.inputs if (key if isinstance(key, int) else key.layer) < end]:
        target.observation.inputs[key] = source.observation.inputs[key][:, :length]
        target.observation.outputs[key] = source.observation.outputs[key][:, :length]
    for layer in range(end):
        if layer in source.calls:
            target.calls[layer] = source.calls[layer]
        if layer in source.routed:
            target.routed[layer] = source.routed[layer]


def _note_call(
    calls: dict[int, LayerCall], layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    if not is_running_again():
        calls[layer] = LayerCall(args, kwargs)


def _note_routed(routed: dict[int, list[RoutedCall]], layer: int, lists: list[list[RoutedCall]], *_call: Any) -> None:
    routed[layer] = [call for calls in lists for call in calls]


def _routed_maps(body: Anatomy, layer: int) -> list[list[DownMap]]:
    """Return the routed down projections of a layer, those of one parameter or one list together."""
    groups: dict[str, list[DownMap]] = {}
    for down in body.down_maps(layer):
        if down.is_routed:
            name = down.place.path if down.index is not None else "list"
            groups.setdefault(name, []).append(down)
    return list(groups.values())


def result_of(writers: Writers) -> PassResult:
    """Return what ``writers`` recorded, with the residual stream as one tensor."""
    residual = writers.observation.residual
    return PassResult(writers, torch.stack([residual[layer][0] for layer in sorted(residual)]).float().cpu())


@contextmanager
def layers_skipped(
    body: Anatomy, start: int, residual: dict[int, torch.Tensor], length: int, beside: dict[int, tuple[Any, ...]]
) -> Iterator[None]:
    """Let a pass of the model skip the layers before ``start``: each returns ``residual`` of an earlier pass.

    The model still makes its masks and positions itself, so nothing is assumed about the signature of a layer.
    ``beside`` has what a layer returned after the residual stream, where it returned a tuple.
    """

    def returning(layer: int) -> Callable[..., Any]:
        def forward(*_args: Any, **_kwargs: Any) -> Any:
            whole = residual[layer]
            if layer not in beside:
                return whole[:, :length]
            others = (_cut(value, whole.shape[1], length) for value in beside[layer])
            return (whole[:, :length], *others)

        return forward

    with ExitStack() as undo:
        for index in range(start):
            undo.enter_context(forward_replaced(body.layers[index], returning(index)))
        yield


def _cut(value: Any, whole: int, length: int) -> Any:
    """Return a tensor ``(B, T, ...)`` up to token ``length``, anything else as it is."""
    if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == whole:
        return value[:, :length]
    return value
