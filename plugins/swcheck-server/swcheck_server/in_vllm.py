"""What a worker of vLLM shows of a pass: an extension of it, named when the server is started.

    VLLM_SERVER_DEV_MODE=1 ... --enforce-eager --worker-extension-cls=swcheck_server.in_vllm.Extension

``/collective_rpc`` calls its methods. They take numbers and names, and run none of them as code. While a client watches,
hooks keep what passes through the layers, wherever a pass begins in a prompt; a scalar is overridden by a correction behind
the product of its down projection, which is exact however the weight is stored. T tokens of all passes, H residual width, F
inner width.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import nn

VERSION: Final = 1
"""Of the questions and answers here; a client refuses another one."""

DOWN: Final = "RowParallelLinear"
"""vLLM's class of the maps whose input is split among processes: the down projection, and that of the attention."""


@dataclass(frozen=True)
class Places:
    """The layers of a model in vLLM, the down projection of each, and its widths H and F."""

    layers: Sequence[nn.Module]
    downs: Sequence[Any]
    hidden: int
    inner: int


def find(model: nn.Module, count: int, hidden: int) -> Places:
    """Return where the ``count`` layers are. Raises ``LookupError`` in words where it is not one down projection in each."""
    stacks = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == count]
    found = [(stack, [_down(layer, hidden) for layer in stack]) for stack in stacks]
    whole = [(stack, downs) for stack, downs in found if all(one is not None for one in downs)]
    if len(whole) != 1:
        words = f"{len(whole)} stacks of {count} layers with one {DOWN} to {hidden} channels beside the attention"
        raise LookupError(f"{words}, in {type(model).__name__}")
    ((layers, downs),) = whole
    widths = {int(down.input_size) for down in downs}
    if len(widths) != 1:
        raise LookupError(f"down projections of {sorted(widths)} columns, in {type(model).__name__}")
    return Places(list(layers), downs, hidden, widths.pop())


def _down(layer: nn.Module, hidden: int) -> nn.Module | None:
    """Return the down projection of a layer; None where there is none, or several, as of experts."""
    if any("expert" in name for name, _ in layer.named_modules()):
        return None
    found = [one for name, one in layer.named_modules() if _is_down(one) and "att" not in name]
    return found[0] if len(found) == 1 and found[0].output_size == hidden else None


def _is_down(module: nn.Module) -> bool:
    return any(kind.__name__ == DOWN for kind in type(module).__mro__)


class Watch:
    """Hooks in one model: what they keep, and the corrections that they add."""

    def __init__(self, model: nn.Module, places: Places) -> None:
        self._model, self.places = model, places
        self._hooks: list[Any] = []
        self._corrections: list[Any] = []
        self._adds = True
        self._ids: list[torch.Tensor] = []
        self._positions: list[torch.Tensor] = []
        self._kept: dict[tuple[str, int], list[torch.Tensor]] = {}

    def keep(self, residual: Sequence[int], inputs: Sequence[int]) -> None:
        """Keep the residual stream after some layers, and what some down projections read, from now on; nothing of before."""
        for hook in self._hooks:
            hook.remove()
        self._ids, self._positions, self._hooks = [], [], []
        self._kept = {("residual", n): [] for n in residual} | {("inputs", n): [] for n in inputs}
        if self._kept:
            self._hooks.append(self._model.register_forward_pre_hook(self._note_tokens, with_kwargs=True))
        for n in residual:
            self._hooks.append(self.places.layers[n].register_forward_hook(partial(self._note_stream, n)))
        for n in inputs:
            self._hooks.append(self.places.downs[n].register_forward_pre_hook(partial(self._note_input, n)))

    def _note_tokens(self, _module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        given = dict(zip(("input_ids", "positions"), args, strict=False)) | dict(kwargs)
        ids, positions = given.get("input_ids"), given["positions"]
        rows = positions.reshape(-1, positions.shape[-1])[0]  # several rows where images have positions of their own
        self._positions.append(rows.detach().cpu().clone())
        self._ids.append(torch.full_like(self._positions[-1], -1) if ids is None else ids.detach().cpu().clone())

    def _note_stream(self, layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        """Most layers give back what they add and the stream before; their sum is the stream. Others give the stream."""
        parts = output if isinstance(output, tuple) else (output,)
        self._kept["residual", layer].append(_copied(sum(one.float() for one in parts if one is not None)))

    def _note_input(self, layer: int, _module: nn.Module, args: Any) -> None:
        self._kept["inputs", layer].append(_copied(args[0]))

    def tokens(self) -> dict[str, Any]:
        """Return the ids and positions of all tokens that passed, and how many of them each tensor has."""
        joined = [torch.cat(one).tolist() if one else [] for one in (self._ids, self._positions)]
        rows = {f"{kind} {layer}": sum(map(len, kept)) for (kind, layer), kept in self._kept.items()}
        return {"ids": joined[0], "positions": joined[1], "rows": rows}

    def tensor(self, kind: str, layer: int) -> str:
        """Return what was kept, float32 ``(T, H)`` or ``(T, F)`` from the lowest byte up, in base 64."""
        kept = self._kept.get((kind, layer))
        joined = torch.cat(kept) if kept else torch.zeros(0)
        return base64.b64encode(joined.contiguous().numpy().astype("<f4").tobytes()).decode("ascii")

    def correct(self, changes: Sequence[tuple[int, int, int, float]]) -> None:
        """Add to scalars (layer, row, column) of down projections, from now on; no others than these."""
        for hook in self._corrections:
            hook.remove()
        self._corrections = []
        for layer in sorted({one[0] for one in changes}):
            scalars = [one[1:] for one in changes if one[0] == layer]
            hook = self.places.downs[layer].register_forward_hook(partial(self._add, scalars))
            self._corrections.append(hook)

    def _add(self, scalars: Sequence[tuple[int, int, float]], _module: nn.Module, args: Any, output: Any) -> Any:
        if not self._adds:
            return output
        written = (output[0] if isinstance(output, tuple) else output).clone()
        for row, column, change in scalars:
            written[..., row] += change * args[0][..., column].to(written.dtype)
        return (written, *output[1:]) if isinstance(output, tuple) else written

    def weight(self, layer: int, row: int, column: int, size: float) -> float:
        """Return a scalar as the map uses it: what an input of ``size`` in its column alone writes, over that.

        ``size`` is what such a map reads, so that one that rounds its inputs rounds this one no more coarsely.
        """
        down = self.places.downs[layer]
        dtype = next(one.dtype for one in self._model.parameters() if one.dtype.is_floating_point and one.itemsize > 1)
        place = next(self._model.parameters()).device
        given = torch.zeros(2, self.places.inner, dtype=dtype, device=place)
        given[1, column] = size
        self._adds = False
        try:
            with torch.inference_mode():
                output = down(given)
        finally:
            self._adds = True
        written = (output[0] if isinstance(output, tuple) else output)[:, row].double()
        return float((written[1] - written[0]) / given[1, column].double())


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy ``(T, width)`` in main memory: what a layer gives is written over by the next one."""
    return tensor.detach().reshape(-1, tensor.shape[-1]).to("cpu", torch.float32, copy=True)


class Extension:
    """The methods that ``/collective_rpc`` reaches in a worker. Wrong arguments are a ``ValueError``.

    vLLM makes it a base of its worker, whose ``get_model`` and ``model_config`` it uses.
    """

    def swcheck_shape(self) -> dict[str, Any]:
        """Return the number of layers and the widths, or why nothing is shown. What an earlier client has left is undone."""
        worker: Any = self
        before = getattr(worker, "swcheck_watching", None)
        if before is not None:
            before.keep((), ())
            before.correct(())
        config, model = worker.model_config, worker.get_model()
        try:
            places = find(model, config.get_total_num_hidden_layers(), config.get_hidden_size())
        except LookupError as error:
            return {"version": VERSION, "reason": str(error)}
        worker.swcheck_watching = Watch(model, places)
        return {"version": VERSION, "shape": [len(places.layers), places.hidden, places.inner]}

    def swcheck_keep(self, residual: list[int], inputs: list[int]) -> None:
        """Keep the residual stream after some layers, and what some down projections read; of none: nothing any more."""
        watch = _watch(self)
        for layer in (*residual, *inputs):
            _check(layer, len(watch.places.layers))
        watch.keep(residual, inputs)

    def swcheck_tokens(self) -> dict[str, Any]:
        """Return the ids and positions of the tokens that passed since, and how many of them each tensor has."""
        return _watch(self).tokens()

    def swcheck_tensor(self, kind: str, layer: int) -> str:
        """Return what was kept as ``residual`` or ``inputs`` of a layer: float32 of all these tokens, in base 64."""
        return _watch(self).tensor(kind, layer)

    def swcheck_weight(self, layer: int, row: int, column: int, size: float) -> dict[str, float]:
        """Return the value of a scalar of a down projection, read with an input of ``size``."""
        watch = _watch(self)
        _check_place(watch.places, layer, row, column)
        return {"value": watch.weight(layer, row, column, _finite(size))}

    def swcheck_correct(self, changes: list[list[float]]) -> None:
        """Add to scalars (layer, row, column, what is added), in every pass from now on; to no others than these."""
        watch = _watch(self)
        for layer, row, column, change in changes:
            _check_place(watch.places, layer, row, column)
            _finite(change)
        watch.correct([(int(one[0]), int(one[1]), int(one[2]), float(one[3])) for one in changes])


def _watch(worker: Any) -> Watch:
    watch: Watch | None = getattr(worker, "swcheck_watching", None)
    if watch is None:
        raise ValueError("ask for swcheck_shape first")
    return watch


def _check_place(places: Places, layer: object, row: object, column: object) -> None:
    for number, end in ((layer, len(places.layers)), (row, places.hidden), (column, places.inner)):
        _check(number, end)


def _check(number: object, end: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < end:
        raise ValueError(f"{number!r} is no whole number from 0 to {end - 1}")


def _finite(number: object) -> float:
    if not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"{number!r} is no finite number")
    return float(number)
