"""Replace whole maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch

from swcheck.lens.anatomy import anatomy
from swcheck.lens.observe import as_floats, first_tensor

if TYPE_CHECKING:
    from torch import nn


Matrix: TypeAlias = "torch.Tensor | Callable[[], torch.Tensor]"
"""A matrix ``(H, F)``, or what reads it."""


ROWS: Final = 256
"""So many rows of a matrix are in float32 at a time."""


@contextmanager
def maps_replaced(model: nn.Module, maps: Mapping[str, Matrix], rows: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """The model with some of its linear maps computing what another's do, through hooks.

    ``maps`` are weights by module name, ``(H, F)``, or for a module that ``rows`` names ``(len(rows), F)``: then those
    output channels alone are replaced. A weight may be a function that reads it whenever its module runs, so that
    several need not be in memory together. What is added is the effective difference of the two maps at the input that
    the module really gets; its own bias stays. Nothing is written to.
    """
    with ExitStack() as undo:
        for name, weight in maps.items():
            hook = _Instead(weight, tuple(rows[name]) if name in rows else None)
            undo.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield


@dataclass(frozen=True)
class _Instead:
    """A forward hook that answers with ``weight``, in all output channels or in some."""

    weight: Matrix
    rows: tuple[int, ...] | None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        out, x = first_tensor(output).clone(), as_floats(args[0])
        bias = getattr(module, "bias", None)
        weight = self.weight() if callable(self.weight) else self.weight
        for start in range(0, len(weight), ROWS):
            part = weight[start : start + ROWS].to(x.device).float()
            places = slice(start, start + ROWS) if self.rows is None else list(self.rows[start : start + ROWS])
            answer = torch.nn.functional.linear(x.float(), part)
            if isinstance(bias, torch.Tensor):
                answer += bias[places].float()
            out[..., places] = answer.to(out.dtype)
        return (out, *output[1:]) if isinstance(output, tuple) else out


@contextmanager
def residual_replaced(model: nn.Module, layer: int, channel: int, wanted: torch.Tensor) -> Iterator[None]:
    """The model with one channel of the residual stream after ``layer`` set at some tokens, through a hook.

    ``wanted`` is float ``(B, T)``, NaN where nothing is changed: one row per window, in the order in which the block
    runs them, or a single row for all.
    """
    body = anatomy(model)
    body.check_layers([layer])
    seen = 0

    def put(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        nonlocal seen
        out = first_tensor(output).clone()
        count, time = out.shape[:2]
        rows = wanted[:, :time] if len(wanted) == 1 else wanted[seen : seen + count, :time]
        seen += count
        values = rows.to(out).expand(count, -1)
        out[:, : values.shape[1], channel] = torch.where(values.isnan(), out[:, : values.shape[1], channel], values)
        return (out, *output[1:]) if isinstance(output, tuple) else out

    hook = body.layers[layer].register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def embedding_replaced(model: Any, wanted: torch.Tensor) -> Iterator[None]:
    """The model with what its token embedding gives replaced by ``wanted`` ``(B, T, H)``, through a hook.

    One row per window, in the order in which the block runs them.
    """
    seen = 0

    def put(_module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        rows = wanted[seen : seen + len(output), : output.shape[1]]
        seen += len(output)
        return rows.to(output)

    hook = model.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()
