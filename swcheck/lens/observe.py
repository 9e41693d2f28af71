"""Records tensors of a forward pass: the residual stream, and inputs and outputs of the down projections.

A down projection is named by its layer, or by ``(layer, expert)`` where it is not the dense one of its layer.

``observe`` is a ``with`` block: name the layers, run the model inside, read the recorded tensors. It can end the pass
after the last layer that is needed. B batch, T tokens, H residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from swcheck.base.errors import NotObservedError
from swcheck.lens.architecture.anatomy import Anatomy, DownMap, MapKey, anatomy, bare_anatomy
from swcheck.lens.architecture.storage import dequantized, first_tensor, stream_given
from swcheck.lens.experts import inputs_of_expert, is_running_again, routed_calls

if TYPE_CHECKING:
    from torch import nn

    from swcheck.lens.architecture.places import Structure


class _StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Ends a forward pass. It never leaves the ``with`` block of the ``Observation`` that it carries."""


class _TensorsByLayer(dict[Any, torch.Tensor]):
    """Recorded tensors by layer; a layer that was not recorded raises ``NotObservedError``."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def __missing__(self, layer: Any) -> torch.Tensor:
        raise NotObservedError(
            f"{self._what} of layer {layer}",
            f"seen so far: {sorted(self, key=str) or 'nothing'}",
            f"name the layer when entering observe({self._what}=...), and run the model inside the block",
        )


@dataclass(frozen=True)
class Observation:
    """The tensors recorded in the last forward pass, by layer. They are detached, but not copied.

    ``residual`` is the output of the decoder layer, ``(B, T, H)``, the mean of a model's several residual streams. Where
    layers run in several rounds, all is that of the last one. ``inputs`` and ``outputs`` are those of its down
    projection, ``(B, T, F)`` and ``(B, T, H)``; the input of an expert is zero at the tokens that it did not get.
    Reading a layer that was not recorded raises ``NotObservedError``.
    """

    residual: dict[Any, torch.Tensor] = field(default_factory=lambda: _TensorsByLayer("residual"))
    inputs: dict[Any, torch.Tensor] = field(default_factory=lambda: _TensorsByLayer("inputs"))
    outputs: dict[Any, torch.Tensor] = field(default_factory=lambda: _TensorsByLayer("outputs"))


@contextmanager
def observe(
    model: nn.Module,
    *,
    residual: Sequence[int] = (),
    inputs: Sequence[int | MapKey] = (),
    outputs: Sequence[int | MapKey] = (),
    stop: bool = False,
) -> Iterator[Observation]:
    """Record tensors of the named layers during the forward passes that run inside the block.

    Yields an ``Observation``. With ``stop`` the pass ends right after the last layer, or dense down projection, that was
    asked for. The rest of the block is then skipped, so read the ``Observation`` after the block. The hooks are removed
    when the block is left, also by an exception. Raises ``CoordinateError`` for a layer or an expert that the model does
    not have, ``NotObservedError`` for an expert that is packed, and for the outputs of an expert.
    """
    body, observation = bare_anatomy(model), Observation()
    if inputs or outputs or (residual and not body.layers):
        body = anatomy(model)
    layers = [*residual, *(_layer_of(key) for key in (*inputs, *outputs))]
    body.check_layers(layers)
    last, runs = max(layers, default=-1), 0

    def stop_forward(_module: nn.Module, _args: Any, _output: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == body.structure.rounds:
            raise _StopForward(observation)

    with ExitStack() as hooks:
        recorder = _StreamRecorder(observation.residual, body.structure, frozenset(residual))
        for layer in recorder.layers:
            hooks.callback(body.layers[layer].register_forward_hook(partial(recorder.record, layer)).remove)
        for key in dict.fromkeys((*inputs, *outputs)):
            _record_map(hooks, body, key, observation, wanted=(key in inputs, key in outputs))
        if stop and last >= 0:
            ends = last in residual or any(_is_routed(body, key) for key in inputs if _layer_of(key) == last)
            named = [key for key in (*inputs, *outputs) if _layer_of(key) == last]
            final = body.layers[last] if ends or len(set(named)) > 1 else body.down_map(_as_key(named[0])).module
            hooks.callback(final.register_forward_hook(stop_forward).remove)
        try:
            yield observation
        except _StopForward as signal:
            if signal.args[0] is not observation:  # it belongs to an outer block
                raise


def _as_key(key: int | MapKey) -> MapKey:
    return MapKey(key) if isinstance(key, int) else MapKey(*key)


def _layer_of(key: int | MapKey) -> int:
    return _as_key(key).layer


def _is_routed(body: Anatomy, key: int | MapKey) -> bool:
    return body.down_map(_as_key(key)).is_routed


@dataclass
class _StreamRecorder:
    """Records the residual stream after ``layers``; ``last`` is the one that was recorded last.

    A layer that a pass leaves out, such as one that reads an image where there is none, hands on what it would get.
    """

    tensors: dict[Any, torch.Tensor]
    structure: Structure
    layers: frozenset[int]
    last: int = -1

    def record(self, layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        if is_running_again():
            return
        known = self.last if 0 <= self.last < layer else layer
        while known + 1 < layer and known + 1 in self.layers:
            self.tensors[known + 1] = self.tensors[known]
            known += 1
        self.tensors[layer] = self.structure.stream(output).detach()
        self.last = layer


def _record_map(
    hooks: ExitStack, body: Anatomy, key: int | MapKey, observation: Observation, *, wanted: tuple[bool, bool]
) -> None:
    """Add the hooks of one down projection; ``wanted`` says whether to record inputs and outputs."""
    down, layer = body.down_map(_as_key(key)), body.layers[_layer_of(key)]
    if down.is_routed:
        _record_expert(hooks, body, down, observation, wanted=wanted)
        return
    tokens = _TokenShape(body.structure)
    if body.structure.hidden is not None:  # not of a known family, whose maps get (B, T, F)
        hooks.callback(layer.register_forward_pre_hook(tokens.note, with_kwargs=True).remove)

    def record_inputs(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if not is_running_again():
            observation.inputs[key] = tokens.by_token(dequantized(args[0]).detach())

    def record_outputs(_module: nn.Module, _args: Any, output: Any) -> None:
        if not is_running_again():
            observation.outputs[key] = tokens.by_token(first_tensor(output).detach())

    if wanted[0]:
        hooks.callback(down.module.register_forward_pre_hook(record_inputs).remove)
    if wanted[1]:
        hooks.callback(down.module.register_forward_hook(record_outputs).remove)


@dataclass
class _TokenShape:
    """The shape ``(B, T)`` of the tokens that a layer got last. Some models flatten them before the down projection."""

    structure: Structure
    shape: tuple[int, int] | None = None

    def note(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = stream_given((*args, *kwargs.values()))
        if stream is not None:
            count, time = self.structure.by_stream(stream).shape[:2]
            self.shape = (count, time)

    def by_token(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return ``(B, T, C)``."""
        if self.shape is None or tensor.ndim != 2 or tensor.shape[0] != self.shape[0] * self.shape[1]:
            return tensor
        return tensor.view(*self.shape, -1)


def _record_expert(
    hooks: ExitStack, body: Anatomy, down: DownMap, observation: Observation, *, wanted: tuple[bool, bool]
) -> None:
    """Add the hooks that read the inputs of one expert when its layer has run."""
    if wanted[1]:
        raise NotObservedError(f"outputs of {down.name}", "experts are computed together", "observe its inputs")
    layer = body.layers[down.key.layer]
    siblings = [one for one in body.down_maps(down.key.layer) if one.is_routed and one.place.path == down.place.path]
    calls = hooks.enter_context(routed_calls(layer, siblings if down.index is not None else [down]))

    def record(_module: nn.Module, _args: Any, _output: Any) -> None:
        if calls and not is_running_again():
            observation.inputs[down.key] = inputs_of_expert(calls[0], down.key)

    hooks.callback(layer.register_forward_hook(record).remove)
