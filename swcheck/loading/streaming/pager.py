"""Keeps the weights of a model out of memory but for those in use: what an operation has read is given back after it.

The parameters are maps of the checkpoint's files. They can be read at any time, as those of any other model; in a pass the
next ones are read from the disk while the present one is computed with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import torch
from torch.overrides import TorchFunctionMode

from swcheck.base.errors import CheckpointError
from swcheck.base.terminal.progress import Bar
from swcheck.loading.streaming.mapped_pages import MappedPages, Span, UnchangedFiles, can_give_back, maps_of

if TYPE_CHECKING:
    from torch import nn

LEAST: Final = 2**20
"""Smaller parts of a file, in bytes, stay in memory until the pass ends."""
AHEAD: Final = 2**28
"""So many bytes are read ahead: three matrices of a model of 7 billion parameters."""
FEW_TOKENS: Final = 4
"""For fewer tokens a product with a matrix takes the time of reading it, in any dtype."""
CHUNK: Final = 2**20
"""So many elements of a matrix are converted at once: they stay in the cache of a processor."""

_PAGERS: Final[WeakKeyDictionary[Any, Pager]] = WeakKeyDictionary()


_WATCHED: Final[WeakKeyDictionary[Any, tuple[MappedPages, UnchangedFiles]]] = WeakKeyDictionary()
"""Of models that are loaded whole, and whose weights are maps of files all the same: the maps and the files."""


class Pager(TorchFunctionMode):
    """While it is entered, every operation of torch gives back the mapped weights that it has read.

    ``bytes_read`` counts what was given back. A part that is read again counts again.
    """

    def __init__(
        self,
        parameters: Sequence[Span],
        pages: MappedPages,
        files: UnchangedFiles,
        stacks: frozenset[Span] = frozenset(),
    ) -> None:
        """Page ``parameters``; of those of all experts of a layer, ``stacks``, nothing is read ahead of a router's choice."""
        super().__init__()
        self.parameters, self.pages, self.files, self._stacks = parameters, pages, files, stacks
        self._number = {span.begin: number for number, span in enumerate(parameters)}
        self._before = [0, *accumulate(span.size for span in parameters)]
        self._next = 0
        self._held: list[Span] | None = None
        self.is_entered = False
        self.bytes_read = 0
        self.bar: Bar | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        used = [] if _is_attribute(func) else [span for one in args if (span := self._span_of(one)) is not None]
        if used:
            self.files.check()
        read = [span for span in used if span.size >= LEAST]
        if not read:
            return func(*args, **kwargs)
        if func in PRODUCTS:
            for span in read:
                self._read_ahead(span)
        output = _linear(*args, **kwargs) if _is_slow_product(func, args) else func(*args, **kwargs)
        if isinstance(output, torch.Tensor) and self._span_of(output) is None:  # a view has read nothing
            for span in read:
                self._give_back(span)
        return output

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep what operations inside the block read until it ends: the next ones read the same."""
        outer, self._held = self._held, []
        try:
            yield
        finally:
            held, self._held = self._held, outer
            for one in dict.fromkeys(held):
                self._give_back(one)

    def give_all_back(self) -> None:
        """Give back all pages of the model."""
        for span in self.parameters:
            self.bytes_read += self.pages.give_back(span)

    def _span_of(self, value: Any) -> Span | None:
        """Return where a mapped tensor is, None for any other value, and for one without elements."""
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu" or type(value.data) is not torch.Tensor:
            return None
        begin, size = value.data_ptr(), value.numel() * value.element_size()
        return Span(begin, begin + size) if size and self.pages.hold(begin) else None

    def _give_back(self, span: Span) -> None:
        if self._held is not None:
            self._held.append(span)
        else:
            self.bytes_read += self.pages.give_back(span)

    def _read_ahead(self, span: Span) -> None:
        """Begin to read the parameters behind this one, those that were begun before left out."""
        number = self._number.get(span.begin)
        if number is None or self.parameters[number] in self._stacks:
            self.pages.read_ahead(span)
            return
        begun = self._next if number < self._next <= number + 64 else number
        if self.bar is not None:
            self.bar.done = self._before[number]
        end, room = number + 1, AHEAD
        while end < len(self.parameters) and room > 0:
            room -= self.parameters[end].size
            end += 1
        for one in self.parameters[begun:end]:
            if one not in self._stacks:
                self.pages.read_ahead(one)
        self._next = max(begun, end)


def page_weights(model: nn.Module, files: Sequence[Path]) -> int:
    """Let ``paging`` keep the weights of ``model`` out of memory; return how many bytes of them are maps of ``files``.

    Experts are computed one after the other from now on: those that no token goes to are not read.
    """
    pages = MappedPages(maps_of(files))
    spans = {
        Span(one.data_ptr(), one.data_ptr() + one.numel() * one.element_size()): one.ndim
        for one in model.parameters()
        if not one.is_meta and one.device.type == "cpu"
    }
    mapped = [span for span in spans if pages.hold(span.begin)]
    stacks = frozenset(span for span in mapped if spans[span] == 3)
    _PAGERS[model] = Pager(mapped, pages, UnchangedFiles.of(files), stacks)
    if stacks and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # type: ignore[operator]
    return sum(span.size for span in mapped)


def pager_of(model: nn.Module) -> Pager | None:
    """Return the pager of a streamed model, None for any other."""
    return _PAGERS.get(model)


def watch_files(model: nn.Module, files: Sequence[Path]) -> None:
    """Let passes of a model that is loaded whole begin with a look at ``files``, if weights of it are maps of them."""
    if not can_give_back():
        return
    pages = MappedPages(maps_of(files))
    if _holds_any(pages, model.parameters()):
        _WATCHED[model] = (pages, UnchangedFiles.of(files))


def check_model_files(model: nn.Module) -> None:
    """Raise ``CheckpointError`` if a file that weights of ``model`` are maps of was written to.

    Looked at before a pass. What is cut off while an operation reads it ends the process by SIGBUS: no code runs after that.
    """
    pager = pager_of(model)
    if pager is not None:
        pager.files.check()
    elif model in _WATCHED:
        pages, files = _WATCHED[model]
        try:
            files.check()
        except CheckpointError:
            if _holds_any(pages, model.parameters()):  # else they were converted or moved since
                raise


def _holds_any(pages: MappedPages, weights: Iterable[torch.Tensor]) -> bool:
    return any(
        type(one.data) is torch.Tensor and one.device.type == "cpu" and pages.hold(one.data_ptr()) for one in weights
    )


def check_files(weights: Iterable[torch.Tensor]) -> None:
    """Raise ``CheckpointError`` if a file that ``weights`` are maps of was written to: before they are touched outside of a pass.

    A file that is cut off takes with it what was written into its map, so this holds for giving weights their values back, too.
    """
    for pager in list(_PAGERS.values()):
        if any(pager.pages.hold(weight.data_ptr()) for weight in weights):
            pager.files.check()


@contextmanager
def paging(model: nn.Module) -> Iterator[None]:
    """Keep the weights of a streamed model out of memory in the passes inside the block; others run as they are."""
    pager = pager_of(model)
    if pager is None:
        check_model_files(model)
    if pager is None or pager.is_entered:
        yield
        return
    pager.is_entered = True
    try:
        with Bar("reading weights", sum(span.size for span in pager.parameters), "B") as pager.bar, pager:
            yield
    finally:
        pager.is_entered = False
        pager.give_all_back()


PRODUCTS: Final = frozenset({torch.nn.functional.linear, torch.addmm, torch.matmul, torch.Tensor.matmul})
"""The operations that read the whole of a matrix."""


def _is_attribute(func: Any) -> bool:
    return getattr(func, "__name__", "") == "__get__"


def _is_slow_product(func: Any, args: tuple[Any, ...]) -> bool:
    """Return whether an operation is a product of two-byte floats that this processor has no instructions for."""
    if func is not torch.nn.functional.linear or args[1].ndim != 2 or args[0].dtype != args[1].dtype:
        return False
    return args[0].numel() // max(1, args[0].shape[-1]) >= FEW_TOKENS and is_slow(args[1].dtype)


def is_slow(dtype: torch.dtype) -> bool:
    """Return whether products of this dtype are computed in float32, since this processor has no instructions for them."""
    known = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    supported = getattr(torch.ops.mkldnn, known.get(dtype, ""), None)
    return supported is not None and not supported()


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``torch.nn.functional.linear`` of two-byte floats, computed in float32 and rounded once.

    A processor without instructions for them takes many times as long for the same.
    """
    flat = x.reshape(-1, x.shape[-1]).float()
    output = torch.empty(len(flat), len(weight), dtype=x.dtype)
    step = max(1, CHUNK // weight.shape[1])
    for first in range(0, len(weight), step):
        rows = slice(first, first + step)
        written = flat @ weight[rows].float().T
        output[:, rows] = written if bias is None else written + bias[rows].float()
    return output.view(*x.shape[:-1], -1)
