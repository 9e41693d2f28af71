"""Runs a streamed model layer by layer, so that several passes take one reading of its weights from the disk.

``run_together`` runs several batches of windows, some with weights changed; ``visited`` lets what reads weights join a pass.
B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch

from swcheck.base.terminal.progress import with_bar
from swcheck.lens.architecture.anatomy import bare_anatomy
from swcheck.lens.architecture.storage import device_of, evaluating, tuple_like
from swcheck.lens.architecture.twins import forward_replaced
from swcheck.loading.streaming.pager import Pager, pager_of

if TYPE_CHECKING:
    from torch import nn

TOKENS_AT_ONCE: Final = 4096
"""At most this many tokens pass through a layer together: what is computed inside takes three times the inner width of each."""

_OUTPUTS: Final[WeakKeyDictionary[Any, tuple[torch.Tensor, list[Any]]]] = WeakKeyDictionary()
"""By model the windows whose layers were run, and what the last layer returned for each group of them."""


class _LayerDone(Exception):  # noqa: N818 - a signal, not an error
    """Ends a pass after the layer whose output it carries."""


@dataclass(frozen=True)
class _Stream:
    """A streamed model, and its layers, which can be run one by one."""

    model: nn.Module
    pager: Pager
    layers: Sequence[nn.Module]


def runs_by_layer(model: nn.Module) -> bool:
    """Return whether a model is streamed and its layers can be run one by one."""
    return _stream_of(model) is not None


def _stream_of(model: nn.Module) -> _Stream | None:
    """Return the parts of a streamed model; None for any other, and where its layers cannot be run one by one."""
    pager = pager_of(model)
    body = None if pager is None else bare_anatomy(model)
    if pager is None or body is None or not body.layers:
        return None
    if body.structure.streams == 0 or body.structure.rounds > 1:  # its outputs go by window, or come back to its layers
        return None
    return _Stream(model, pager, tuple(body.layers))


@dataclass(frozen=True, eq=False)
class Run:
    """Windows that pass through a model: ``ids``, int64 ``(B, T)``.

    ``edit`` gives for the number of a layer the block in which its weights are changed; the layers before ``first`` are
    not, and are shared with the other runs of the same tensor.
    """

    ids: torch.Tensor
    first: int = 0
    edit: Callable[[int], AbstractContextManager[None]] | None = None

    def changed(self, layer: int) -> AbstractContextManager[None] | None:
        """Return the block in which a layer is changed, None where it is not."""
        return None if self.edit is None or layer < self.first else self.edit(layer)


@contextmanager
def run_together(
    model: nn.Module, runs: Sequence[Run], visit: Callable[[int], None] | None = None
) -> Iterator[Callable[[int], AbstractContextManager[None]]]:
    """Run the layers of a streamed model once for all ``runs``; ``runs_by_layer(model)`` has to be True.

    Yields a function that gives for the number of a run a block, in which ``logits_of_windows`` of its windows reads what
    is behind the layers alone. ``visit`` is called with the number of each layer while its weights are in memory.
    """
    stream = _stream_of(model)
    if stream is None:
        raise ValueError(f"{type(model).__name__} does not run layer by layer")
    with evaluating(model):
        outputs = _last_outputs(stream, runs, visit)
        with stream.pager.holding():
            yield lambda number: _known(model, runs[number].ids, outputs[number])


@contextmanager
def _known(model: nn.Module, ids: torch.Tensor, outputs: list[Any]) -> Iterator[None]:
    """Let ``logits_of_windows`` of ``ids`` take what the last layer returned for each group of them."""
    _OUTPUTS[model] = ids, outputs
    try:
        yield
    finally:
        del _OUTPUTS[model]


def streams_after(model: nn.Module, batches: Sequence[torch.Tensor], layer: int) -> list[torch.Tensor] | None:
    """Return the residual stream ``(B, T, H)`` after a layer for each of ``batches``, int64 ``(B, T)``.

    The layers of a streamed model are read once for all of them. None for any other model, and where its layers cannot
    be run one by one.
    """
    stream = _stream_of(model)
    if stream is None:
        return None
    with evaluating(model):
        outputs = _last_outputs(replace(stream, layers=stream.layers[: layer + 1]), [Run(ids) for ids in batches])
    structure = bare_anatomy(model).structure
    return [torch.cat([structure.stream(one) for one in groups]) for groups in outputs]


@contextmanager
def visited(model: nn.Module, visit: Callable[[int], None]) -> Iterator[None]:
    """Call ``visit`` with the number of each layer of a streamed model that a pass in the block runs, its weights in memory."""
    stream = _stream_of(model)
    with ExitStack() as stack:
        if stream is None:
            yield
            return
        for number, layer in enumerate(stream.layers):
            held = stack.enter_context(ExitStack())
            stack.callback(layer.register_forward_pre_hook(partial(_hold, stream.pager, held)).remove)
            stack.callback(layer.register_forward_hook(partial(_visit, partial(visit, number), held)).remove)
        yield


def _hold(pager: Pager, held: ExitStack, *_call: Any) -> None:
    held.enter_context(pager.holding())


def _visit(visit: Callable[[], None], held: ExitStack, *_call: Any) -> None:
    with held.pop_all():
        visit()


def logits_of_windows(model: nn.Module, token_ids: torch.Tensor, at_once: int) -> Iterator[torch.Tensor]:
    """Yield the logits ``(at_once, T, V)`` of consecutive windows of ``token_ids``, int64 ``(B, T)``.

    The weights of a streamed model are read once for all of them, unless a hook watches its layers. Use it inside
    ``evaluating(model)``.
    """
    ids, known = _OUTPUTS.get(model, (None, None))
    known = None if ids is None or not torch.equal(ids, token_ids) else known
    stream = _stream_of(model) if known is not None or len(token_ids) > at_once else None
    if stream is None or any(map(_is_watched, stream.layers if known is None else stream.layers[:-1])):
        batches = torch.split(token_ids, at_once)
        for ids in with_bar(batches, "scoring tokens", len(batches)):
            yield model(ids.to(device_of(model)), use_cache=False).logits
        return
    groups = torch.split(token_ids, max(1, TOKENS_AT_ONCE // token_ids.shape[1]))
    outputs = _last_outputs(stream, [Run(token_ids)])[0] if known is None else known
    with stream.pager.holding():
        for ids, output in zip(groups, outputs, strict=True):
            for first in range(0, len(ids), at_once):
                rows = slice(first, first + at_once)
                with _answering(stream.layers, _rows_of(output, rows, len(ids))):
                    yield model(ids[rows], use_cache=False).logits


def _is_watched(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)  # noqa: SLF001


def _last_outputs(stream: _Stream, runs: Sequence[Run], visit: Callable[[int], None] | None = None) -> list[list[Any]]:
    """Return what the last layer returns for each group of the windows of each run: all through one layer, then the next."""
    split: dict[int, tuple[torch.Tensor, ...]] = {}
    for run in runs:
        split.setdefault(id(run.ids), torch.split(run.ids, max(1, TOKENS_AT_ONCE // run.ids.shape[1])))
    outputs: list[list[Any]] = [[None] * len(split[id(run.ids)]) for run in runs]
    for number in range(len(stream.layers)):
        with stream.pager.holding():
            intact: dict[tuple[int, int], Any] = {}
            outputs = [
                _outputs_of_run(stream, number, run.changed(number), split[id(run.ids)], before, intact)
                for run, before in zip(runs, outputs, strict=True)
            ]
            if visit is not None:
                visit(number)
    return outputs


def _outputs_of_run(
    stream: _Stream,
    number: int,
    changed: AbstractContextManager[None] | None,
    groups: Sequence[torch.Tensor],
    before: Sequence[Any],
    intact: dict[tuple[int, int], Any],
) -> list[Any]:
    """Return what a layer returns for each of ``groups``, where the layer below has returned ``before``.

    ``intact`` has what the unchanged layer has returned to other runs for the same.
    """
    if changed is not None:
        with changed:
            return [
                _output_of_layer(stream.model, stream.layers, number, ids, one)
                for ids, one in zip(groups, before, strict=True)
            ]
    for ids, one in zip(groups, before, strict=True):
        if (id(ids), id(one)) not in intact:
            intact[id(ids), id(one)] = _output_of_layer(stream.model, stream.layers, number, ids, one)
    return [intact[id(ids), id(one)] for ids, one in zip(groups, before, strict=True)]


def _output_of_layer(model: nn.Module, layers: Sequence[nn.Module], number: int, ids: torch.Tensor, before: Any) -> Any:
    """Return what a layer returns for ``ids`` where the layer below has returned ``before``; that, if it does not run.

    The model makes masks and positions itself, so nothing is assumed about the signature of a layer.
    """

    def finish(_module: nn.Module, _args: Any, output: Any) -> None:
        raise _LayerDone(output)

    with _answering(layers[:number], before) as stack:
        stack.callback(layers[number].register_forward_hook(finish).remove)
        try:
            model(ids, use_cache=False)
        except _LayerDone as done:
            return done.args[0]
    return before  # a layer that reads an image, where there is none


def _answering(layers: Sequence[nn.Module], output: Any) -> ExitStack:
    """Let each of ``layers`` return ``output`` until the stack is closed."""
    stack = ExitStack()
    for layer in layers:
        stack.enter_context(forward_replaced(layer, lambda *_args, **_kwargs: output))
    return stack


def _rows_of(output: Any, rows: slice, count: int) -> Any:
    """Return these windows of what a layer returned for ``count`` of them: a tensor, or a tuple that has some."""
    if isinstance(output, torch.Tensor):
        return output[rows] if output.ndim and len(output) == count else output
    return tuple_like(output, (_rows_of(one, rows, count) for one in output)) if isinstance(output, tuple) else output
