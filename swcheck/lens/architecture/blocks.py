"""Watches the modules of every list in a model in one pass: what each gets and returns, and what returns inside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

    from swcheck.lens.architecture.tracing import Tracer


@dataclass
class Block:
    """What the pass showed of one run of a decoder layer: its input, its output, and what the modules inside returned.

    ``given`` and ``returned`` are the tensors as large as its first output that it gets and returns, the latter by their
    number in what it returns. ``earlier`` are its earlier runs in the pass.
    """

    before: torch.Tensor | None = None
    after: torch.Tensor | None = None
    given: tuple[torch.Tensor, ...] = ()
    returned: dict[int, torch.Tensor] = field(default_factory=dict)
    inside: dict[str, torch.Tensor] = field(default_factory=dict)
    runs: int = 0
    earlier: tuple[Block, ...] = ()

    @property
    def all_runs(self) -> tuple[Block, ...]:
        """Its runs in the pass, this one last; none where it did not run."""
        return (*self.earlier, self) if self.runs else ()

    @property
    def tensors(self) -> int:
        """How many tensors as large as its output it both gets and returns."""
        return min(len(self.given), len(self.returned))


class Blocks:
    """The modules of every list in a model, and what the pass shows of them."""

    def __init__(self, model: nn.Module) -> None:
        from torch import nn

        self.lists = {name: one for name, one in model.named_modules() if isinstance(one, nn.ModuleList) and len(one)}
        self.seen = {(name, number): Block() for name, one in self.lists.items() for number in range(len(one))}
        self.order: list[tuple[str, int]] = []
        """The modules in the order in which they ended."""

    @contextmanager
    def watching(self, tracer: Tracer) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, modules in self.lists.items():
                for number, block in enumerate(modules):
                    before = partial(self._before, tracer, (name, number))
                    hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
                    hooks.callback(block.register_forward_hook(partial(self._after, tracer, (name, number))).remove)
                    for path, module in block.named_modules():
                        if path:
                            inside = partial(self._inside, (name, number), path)
                            hooks.callback(module.register_forward_hook(inside).remove)
            yield

    def _before(self, tracer: Tracer, key: tuple[str, int], _module: nn.Module, args: Any, kwargs: Any) -> None:
        tracer.running.append(key)
        seen = self.seen[key]
        if seen.runs:
            seen = self.seen[key] = Block(runs=seen.runs, earlier=seen.all_runs)
        seen.runs += 1
        seen.given = tuple(one for one in (*args, *kwargs.values()) if _is_stream(one))
        seen.before = next(iter(seen.given), None)

    def _after(self, tracer: Tracer, key: tuple[str, int], _module: nn.Module, _args: Any, output: Any) -> None:
        tracer.running.remove(key)
        self.order.append(key)
        seen = self.seen[key]
        seen.after = after = _stream_of(output)
        values = output if isinstance(output, tuple | list) else ()
        if after is not None:
            returned = {number: one for number, one in enumerate(values) if _is_stream(one)}
            seen.returned = {number: one.detach() for number, one in returned.items() if one.shape == after.shape}
            seen.given = tuple(one for one in seen.given if one.shape == after.shape)

    def _inside(self, key: tuple[str, int], path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        stream = _stream_of(output)
        if stream is not None:
            self.seen[key].inside[path] = stream


def _is_stream(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim >= 2


def _stream_of(output: Any) -> torch.Tensor | None:
    values = output if isinstance(output, tuple | list) else (output,)
    return next((one.detach() for one in values if _is_stream(one)), None)
