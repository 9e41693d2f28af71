"""Sees what single experts of a mixture read and write, token by token.

The experts of a layer are computed together, in kernels that no hook reaches. So the module that routes tokens to them is
run once more for one token at a time, with its experts computed one after the other. No routing has to be known: the
products with an expert's matrix in such a pass belong to that token. B batch, T tokens, H residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch.overrides import TorchFunctionMode

from swcheck.lens.architecture.anatomy import Anatomy, DownMap, MapKey
from swcheck.lens.architecture.storage import dequantized, device_of, evaluating, first_tensor, is_plain, stream_given
from swcheck.lens.architecture.tracing import PRODUCTS, eager_experts

if TYPE_CHECKING:
    from torch import nn

_RUNNING_AGAIN: Final[ContextVar[bool]] = ContextVar("swcheck_running_again", default=False)


def is_running_again() -> bool:
    """Return whether a module runs once more for single tokens. Hooks that record a pass do nothing then."""
    return _RUNNING_AGAIN.get()


@dataclass(frozen=True)
class ExpertCall:
    """What one expert's down projection read, ``(F,)``, and wrote, ``(H,)``, for one token; a bias is not included."""

    read: torch.Tensor
    written: torch.Tensor


@dataclass
class RoutedCall:
    """One call of the module of a layer that routes tokens to experts, with what it was given for ``(B, T)`` tokens."""

    module: nn.Module
    maps: Sequence[DownMap]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shape: tuple[int, int]

    def of_tokens(self, tokens: Sequence[int]) -> list[dict[MapKey, ExpertCall]]:
        """Return what every visited expert read and wrote, for each of these tokens, which are counted through the batch."""
        marker = _RUNNING_AGAIN.set(True)
        try:
            with torch.no_grad(), eager_experts(self.module), _Recorder(self.maps) as recorder:
                return [self._of_token(recorder, token) for token in tokens]
        finally:
            _RUNNING_AGAIN.reset(marker)

    def _of_token(self, recorder: _Recorder, token: int) -> dict[MapKey, ExpertCall]:
        recorder.calls = {}
        args = [self._sliced(one, token) for one in self.args]
        self.module.forward(*args, **{name: self._sliced(one, token) for name, one in self.kwargs.items()})
        return recorder.calls

    def _sliced(self, value: Any, token: int) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if tuple(value.shape[:2]) == self.shape:
            row, column = divmod(token, self.shape[1])
            return value[row : row + 1, column : column + 1]
        return value[token : token + 1]


class _Recorder(TorchFunctionMode):
    """Notes the products with the matrices of experts. A module of its own for each expert is watched by a hook."""

    def __init__(self, maps: Sequence[DownMap]) -> None:
        super().__init__()
        self.calls: dict[MapKey, ExpertCall] = {}
        self._keys = {(id(one.module), one.index): one.key for one in maps}
        self._stacks = {}
        for one in maps:
            stack = one.place.stack(one.module) if one.weight is not None else None
            if stack is not None:
                self._stacks[stack.untyped_storage().data_ptr()] = (id(one.module), stack)
        self._modules = {one.module: one.key for one in maps if one.place.parameter is None}
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        for module, key in self._modules.items():
            self._hooks.callback(module.register_forward_hook(self._hook(key)).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _hook(self, key: MapKey) -> Any:
        def record(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            read, written = dequantized(args[0]), first_tensor(output)
            self.calls[key] = ExpertCall(read.reshape(-1, read.shape[-1])[0], written.reshape(-1, written.shape[-1])[0])

        return record

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.__name__.strip("_") in PRODUCTS:
            tensors = [one for one in args if isinstance(one, torch.Tensor)]
            weight = next((one for one in tensors if self._stack_of(one) is not None), None)
            if weight is not None:
                read = next(one for one in tensors if one is not weight)
                self._note(weight, read, output)
        return output

    def _stack_of(self, tensor: torch.Tensor) -> tuple[int, torch.Tensor] | None:
        return self._stacks.get(tensor.untyped_storage().data_ptr()) if is_plain(tensor) else None

    def _note(self, weight: torch.Tensor, read: torch.Tensor, written: torch.Tensor) -> None:
        owner, stack = self._stack_of(weight) or (0, weight)
        if weight.ndim == 3:  # all experts at once
            for index in range(len(stack)):
                self._add(owner, index, read[index], written[index])
        else:
            index = (weight.storage_offset() - stack.storage_offset()) // stack.stride(0)
            self._add(owner, int(index), read, written)

    def _add(self, owner: int, index: int, read: torch.Tensor, written: torch.Tensor) -> None:
        key = self._keys.get((owner, index))
        if key is not None and read.numel():
            self.calls[key] = ExpertCall(read.reshape(-1, read.shape[-1])[0], written.reshape(-1, written.shape[-1])[0])


@contextmanager
def visits_counted(body: Anatomy) -> Iterator[dict[MapKey, int]]:
    """Count the tokens that each expert of a 3-D parameter gets in the passes inside the block."""
    counts: dict[MapKey, int] = {}
    maps = [one for layer in range(len(body.layers)) for one in body.down_maps(layer) if one.index is not None]
    if not maps:
        yield counts
        return
    counts |= dict.fromkeys((one.key for one in maps), 0)
    with _Counter(maps, counts):
        yield counts


class _Counter(_Recorder):
    """Counts the rows that a product with an expert's matrix gets, those of zeros left out."""

    def __init__(self, maps: Sequence[DownMap], counts: dict[MapKey, int]) -> None:
        super().__init__(maps)
        self.counts = counts

    def _add(self, owner: int, index: int, read: torch.Tensor, written: torch.Tensor) -> None:  # noqa: ARG002
        key = self._keys.get((owner, index))
        if key is not None and not is_running_again():
            self.counts[key] += int(read.reshape(-1, read.shape[-1]).any(1).sum())


@contextmanager
def routed_calls(layer: nn.Module, maps: Sequence[DownMap]) -> Iterator[list[RoutedCall]]:
    """Record the call of the module of one layer that routes tokens to these experts, in the passes inside the block.

    It is the outermost module around them whose inputs can be cut into single tokens. The list holds the latest call.
    """
    latest: list[RoutedCall] = []
    shape: list[tuple[int, int]] = []
    paths = maps[0].place.path.split(".")
    around = [layer.get_submodule(".".join(paths[:end])) for end in range(1, len(paths) + 1)]

    def note_shape(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        stream = stream_given((*args, *kwargs.values()))
        shape[:] = [] if stream is None else [(stream.shape[0], stream.shape[1])]
        latest.clear()

    def note_call(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if is_running_again() or latest or not shape or not _can_be_cut((*args, *kwargs.values()), shape[0]):
            return
        latest[:] = [RoutedCall(module, maps, args, kwargs, shape[0])]

    with ExitStack() as hooks:
        hooks.callback(layer.register_forward_pre_hook(note_shape, with_kwargs=True).remove)
        for module in around:
            hooks.callback(module.register_forward_pre_hook(note_call, with_kwargs=True).remove)
        yield latest


def _can_be_cut(values: Sequence[Any], shape: tuple[int, int]) -> bool:
    """Return whether there are tensors among ``values``, each with a row for each token of ``(B, T)``."""
    tensors = [one for one in values if isinstance(one, torch.Tensor)]
    return bool(tensors) and all(
        tuple(one.shape[:2]) == shape or (one.ndim and one.shape[0] == shape[0] * shape[1]) for one in tensors
    )


def inputs_of_expert(call: RoutedCall, key: MapKey) -> torch.Tensor:
    """Return what one expert read, ``(B, T, F)``; zeros for the tokens that were not routed to it.

    Raises ``NotObservedError`` where the experts are packed, and a kernel computes all of them unseen.
    """
    down = next(one for one in call.maps if one.key == key)
    down.check_reachable("the input")
    tokens = range(call.shape[0] * call.shape[1])
    found = [calls.get(key) for calls in call.of_tokens(tokens)]
    sample = next((one.read for one in found if one is not None), torch.zeros(down.inner or 0))
    rows = [torch.zeros_like(sample) if one is None else one.read for one in found]
    return torch.stack(rows).view(*call.shape, -1)


def largest_expert_inputs(model: nn.Module, body: Anatomy, ids: torch.Tensor) -> dict[MapKey, torch.Tensor]:
    """Return the largest magnitude of each input of every routed expert's down projection, ``(F,)``.

    It is taken over the tokens of ``ids``, int64 ``(B, T)``, in one pass. Experts that no token reaches, and packed
    ones, are left out.
    """
    peaks: dict[MapKey, torch.Tensor] = {}
    with ExitStack() as hooks, evaluating(model):
        recorded = []
        for number, layer in enumerate(body.layers):
            routed = [one for one in body.down_maps(number) if one.is_routed and one.weight is not None]
            if routed:
                recorded.append(hooks.enter_context(routed_calls(layer, routed)))
        if recorded:
            model(ids.to(device_of(model)), use_cache=False)
    for calls in recorded:
        for call in calls:
            for by_key in call.of_tokens(range(call.shape[0] * call.shape[1])):
                for key, one in by_key.items():
                    peak = one.read.float().abs()
                    peaks[key] = torch.maximum(peaks[key], peak) if key in peaks else peak
    return peaks
