"""Runs a model over many windows with one reading of its weights: all windows through one layer, then through the next.

For a streamed model, whose weights come from the disk in each pass. B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.terminal.progress import with_bar
from swcheck.lens.architecture.anatomy import bare_anatomy
from swcheck.lens.architecture.storage import device_of
from swcheck.lens.architecture.twins import forward_replaced
from swcheck.loading.streaming.pager import Pager, pager_of

if TYPE_CHECKING:
    from torch import nn

TOKENS_AT_ONCE: Final = 4096
"""At most this many tokens pass through a layer together: what is computed inside takes three times the inner width of each."""


class _LayerDone(Exception):  # noqa: N818 - a signal, not an error
    """Ends a pass after the layer whose output it carries."""


def logits_of_windows(model: nn.Module, token_ids: torch.Tensor, at_once: int) -> Iterator[torch.Tensor]:
    """Yield the logits ``(at_once, T, V)`` of consecutive windows of ``token_ids``, int64 ``(B, T)``.

    The weights of a streamed model are read once for all of them, unless a hook watches its layers. Use it inside
    ``evaluating(model)``.
    """
    pager = pager_of(model)
    body = bare_anatomy(model) if len(token_ids) > at_once and pager is not None else None
    layers = () if body is None or body.structure.streams == 0 else body.layers  # else its outputs go by window
    if pager is None or not layers or any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):  # noqa: SLF001
        batches = torch.split(token_ids, at_once)
        for ids in with_bar(batches, "scoring tokens", len(batches)):
            yield model(ids.to(device_of(model)), use_cache=False).logits
        return
    yield from _layer_by_layer(model, pager, layers, token_ids, at_once)


def _layer_by_layer(
    model: nn.Module, pager: Pager, layers: Sequence[nn.Module], token_ids: torch.Tensor, at_once: int
) -> Iterator[torch.Tensor]:
    groups = torch.split(token_ids, max(1, TOKENS_AT_ONCE // token_ids.shape[1]))
    outputs: list[Any] = [None] * len(groups)
    for number in range(len(layers)):
        with pager.holding():
            outputs = [
                _output_of_layer(model, layers, number, ids, before)
                for ids, before in zip(groups, outputs, strict=True)
            ]
    with pager.holding():
        for ids, output in zip(groups, outputs, strict=True):
            for first in range(0, len(ids), at_once):
                rows = slice(first, first + at_once)
                with _answering(layers, _rows_of(output, rows, len(ids))):
                    yield model(ids[rows], use_cache=False).logits


def _output_of_layer(model: nn.Module, layers: Sequence[nn.Module], number: int, ids: torch.Tensor, before: Any) -> Any:
    """Return what a layer returns for ``ids`` where the layer below has returned ``before``.

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
    raise RuntimeError(f"layer {number} did not run")


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
    return tuple(_rows_of(one, rows, count) for one in output) if isinstance(output, tuple) else output
