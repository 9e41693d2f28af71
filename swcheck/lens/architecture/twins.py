"""Layers that are built alike: what a pass shows of the first is true of the others, which then need not be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import nn

Twins: TypeAlias = "Mapping[tuple[str, int], int]"
"""By list of layers and number, the first layer of that list that is built alike."""


def layers_like_earlier_ones(lists: Mapping[str, nn.ModuleList]) -> Twins:
    """Return the twins in lists that lie in no other list: those of experts inside a layer are left alone."""
    found: dict[tuple[str, int], int] = {}
    for name, layers in lists.items():
        if any(name.startswith(f"{other}.") for other in lists):
            continue
        first: dict[Any, int] = {}
        for number, layer in enumerate(layers):
            earlier = first.setdefault(_build_of(layer), number)
            if earlier != number:
                found[name, number] = earlier
    return found


def _build_of(layer: nn.Module) -> tuple[Any, ...]:
    """Return what two layers have in common that are built alike: the types of their modules, the shapes of their tensors."""
    modules = ((path, type(module)) for path, module in layer.named_modules())
    shapes = ((path, tuple(one.shape)) for path, one in layer.named_parameters())
    return (*modules, *shapes)


@contextmanager
def answers_repeated(lists: Mapping[str, nn.ModuleList], twins: Twins) -> Iterator[None]:
    """Let each twin return what the first layer of its build has returned, in the passes inside the block."""
    answers: dict[tuple[str, int], Any] = {}

    def note(key: tuple[str, int], _module: nn.Module, _args: Any, output: Any) -> None:
        answers[key] = output

    def repeat(key: tuple[str, int], *_args: Any, **_kwargs: Any) -> Any:
        return answers[key]

    with ExitStack() as undo:
        for key in {(name, first) for (name, _), first in twins.items()}:
            undo.callback(lists[key[0]][key[1]].register_forward_hook(partial(note, key)).remove)
        for (name, number), first in twins.items():
            undo.enter_context(forward_replaced(lists[name][number], partial(repeat, (name, first))))
        yield


@contextmanager
def forward_replaced(layer: nn.Module, forward: Any) -> Iterator[None]:
    """Let a module be computed by ``forward`` inside the block; its hooks are called as before."""
    own = vars(layer).get("forward")
    object.__setattr__(layer, "forward", forward)
    try:
        yield
    finally:
        if own is None:
            object.__delattr__(layer, "forward")
        else:
            object.__setattr__(layer, "forward", own)
