"""Overrides whole linear maps, their inputs, a channel of the residual stream, or the token embedding, through hooks.

No weight is written to. B batch, T tokens, H residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.architecture.storage import dequantized, first_tensor
from swcheck.loading.parallel.shards import shared_like, whole

if TYPE_CHECKING:
    from torch import nn


Matrix: TypeAlias = "torch.Tensor | Callable[[], torch.Tensor]"
"""A weight ``(out, in)``, or a function that reads it."""


ROW_BLOCK: Final = 256
"""At most this many rows of a matrix are converted to float32 at a time."""


@contextmanager
def maps_replaced(model: nn.Module, maps: Mapping[str, Matrix], rows: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """Run ``model`` with some of its linear maps computing with other weights, through hooks.

    ``maps`` gives the weights ``(out, in)`` by module name. For a module that is named in ``rows`` only those output
    channels are replaced, and its weight is ``(len(rows), in)``. A weight may be a function, which is called whenever
    the module runs, so that several matrices need not be in memory together. The weight is applied to the input that
    the module really gets, and the module's own bias is added.
    """
    with ExitStack() as undo:
        for name, weight in maps.items():
            hook = _MapOverride(weight, tuple(rows[name]) if name in rows else None)
            undo.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield


@dataclass(frozen=True)
class _MapOverride:
    """A forward hook that returns the output of ``weight``, in all output channels (``rows`` None) or in some."""

    weight: Matrix
    rows: tuple[int, ...] | None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        out, x = first_tensor(output).clone(), dequantized(args[0])
        bias = getattr(module, "bias", None)
        weight = self.weight() if callable(self.weight) else self.weight
        for start in range(0, len(weight), ROW_BLOCK):
            block = weight[start : start + ROW_BLOCK].to(x.device).float()
            channels = (
                slice(start, start + ROW_BLOCK) if self.rows is None else list(self.rows[start : start + ROW_BLOCK])
            )
            values = torch.nn.functional.linear(x.float(), block)
            if isinstance(bias, torch.Tensor):
                values += whole(bias)[channels].float()
            out[..., channels] = values.to(out.dtype)
        return (out, *output[1:]) if isinstance(output, tuple) else out


@contextmanager
def parameters_replaced(model: nn.Module, values: Mapping[str, Matrix]) -> Iterator[None]:
    """Run ``model`` with other values in some of its parameters, by their qualified names.

    The parameters themselves are put aside, not written to. One that is tied is replaced wherever it is used. A module
    whose table of parameters is not torch's own may copy what is assigned (compressed-tensors does): a copy of the
    values is put back there.
    """
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    with ExitStack() as undo:
        for name, value in values.items():
            old = model.get_parameter(name)
            given = (value() if callable(value) else value).to(old.device, old.dtype)
            new = torch.nn.Parameter(shared_like(given, old), requires_grad=False)
            for place in places[id(old)]:
                path, _, key = place.rpartition(".")
                module = model.get_submodule(path)
                is_copied = type(module._parameters) is not dict  # noqa: SLF001 - torch has no other name for it
                back = torch.nn.Parameter(old.detach().clone(), requires_grad=False) if is_copied else old
                undo.callback(setattr, module, key, back)
                setattr(module, key, new)
        yield


@contextmanager
def residual_replaced(model: nn.Module, layer: int, channel: int, wanted: torch.Tensor) -> Iterator[None]:
    """Run ``model`` with one channel of the residual stream after ``layer`` set to given values at some tokens.

    ``wanted`` is float ``(B, T)``, NaN where nothing is changed; several streams get their mean so. It has one row per window, in the order in which the
    block runs the windows, or a single row for all of them. Where the layers run in several rounds it is that of the last.
    """
    body = anatomy(model)
    body.check_layers([layer])
    windows_done, runs = 0, 0

    def set_channel(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        nonlocal windows_done, runs
        runs += 1
        if runs % body.structure.rounds:
            return output
        out = body.structure.tensor_of(output).clone()
        streams = body.structure.by_stream(out)[..., channel]  # (B, T, S)
        count, time = streams.shape[:2]
        rows = wanted[:, :time] if len(wanted) == 1 else wanted[windows_done : windows_done + count, :time]
        windows_done += count
        values = rows.to(out).expand(count, -1)[..., None]
        present = streams[:, : values.shape[1]]
        present[:] = torch.where(values.isnan(), present, values + (present - present.mean(2, keepdim=True)))
        return body.structure.with_tensor(output, out)

    hook = body.layers[layer].register_forward_hook(set_channel)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def vocabulary_limited(model: Any, count: int) -> Iterator[None]:
    """Run ``model`` with the first ``count`` ids alone, which no other one can follow."""

    def limit(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[..., :count], torch.full_like(output[..., count:], -torch.inf)], -1)

    hook = model.get_output_embeddings().register_forward_hook(limit)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def embedding_replaced(model: Any, wanted: torch.Tensor) -> Iterator[None]:
    """Run ``model`` with ``wanted`` ``(B, T, H)`` in place of the output of its token embedding.

    ``wanted`` has one row per window, in the order in which the block runs the windows.
    """
    windows_done = 0

    def return_wanted(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        nonlocal windows_done
        rows = wanted[windows_done : windows_done + len(output), : output.shape[1]]
        windows_done += len(output)
        return rows.to(output)

    hook = model.get_input_embeddings().register_forward_hook(return_wanted)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def inputs_rounded(maps: Iterable[nn.Module], bits: float) -> Iterator[None]:
    """Round the inputs of linear maps to ``bits``, in one range for all tokens of a window, and undo it afterwards."""
    with ExitStack() as undo:
        for module in maps:
            undo.callback(module.register_forward_pre_hook(partial(_round_input, bits)).remove)
        yield


def _round_input(bits: float, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (rounded_in_one_range(args[0], bits), *args[1:])


def rounded_in_one_range(x: torch.Tensor, bits: float) -> torch.Tensor:
    """Return ``x`` ``(B, T, F)``, or ``(T, F)``, on ``2^bits`` levels from its least to its largest value, 0 among them."""
    low, high = x.amin((-2, -1), keepdim=True).clamp_max(0), x.amax((-2, -1), keepdim=True).clamp_min(0)
    step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(x.dtype).tiny)
    return ((x / step).round() * step).clamp(low, high)
