"""Records to which experts the tokens of a pass are routed, and routes them so again. N tokens of a batch, k experts each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from swcheck.lens.experts import is_running_again

if TYPE_CHECKING:
    from torch import nn

    from swcheck.lens.architecture.anatomy import Anatomy

Routing: TypeAlias = "dict[int, tuple[torch.Tensor, torch.Tensor]]"
"""By layer: the chosen experts, int64 ``(N, k)``, and their weights, float ``(N, k)``."""


def routed_modules(body: Anatomy) -> dict[int, nn.Module]:
    """Return by layer the module that has the experts in a 3-D parameter, for layers that have one such module."""
    found: dict[int, nn.Module] = {}
    for layer, places in enumerate(body.structure.places):
        stacks = [place for place in places if place.parameter is not None and place.expert is None]
        if len(stacks) == 1:
            found[layer] = body.layers[layer].get_submodule(stacks[0].path)
    return found


@contextmanager
def routing_recorded(body: Anatomy) -> Iterator[Routing]:
    """Record the routing in the passes inside the block. A layer whose experts are not given it stays out."""
    calls: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    routing: Routing = {}

    def note(layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not is_running_again():
            chosen = _routing_of((*args, *kwargs.values()))
            if chosen is not None:
                calls.setdefault(layer, []).append(chosen)

    with ExitStack() as hooks:
        for layer, module in routed_modules(body).items():
            hooks.callback(module.register_forward_pre_hook(partial(note, layer), with_kwargs=True).remove)
        yield routing
    for layer, several in calls.items():
        routing[layer] = (torch.cat([one for one, _ in several]), torch.cat([weights for _, weights in several]))


def _routing_of(values: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the chosen experts and their weights among what a module of experts is given."""
    tensors = [one for one in values if isinstance(one, torch.Tensor) and one.ndim == 2]
    experts = next((one for one in tensors if not one.is_floating_point()), None)
    if experts is None:
        return None
    weights = next((one for one in tensors if one.is_floating_point() and one.shape == experts.shape), None)
    return None if weights is None else (experts.detach().cpu(), weights.detach().cpu())


@contextmanager
def routing_replaced(body: Anatomy, wanted: Routing) -> Iterator[None]:
    """Route the tokens of the passes inside the block as ``wanted`` says, in the order in which they come."""
    done = dict.fromkeys(wanted, 0)

    def exchange(layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        present = _routing_of((*args, *kwargs.values()))
        if present is None or is_running_again():
            return None
        start, count = done[layer], len(present[0])
        done[layer] += count
        experts, weights = (one[start : start + count] for one in wanted[layer])

        def exchanged(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.shape != present[0].shape:
                return value
            return (weights if value.is_floating_point() else experts).to(value)

        return tuple(map(exchanged, args)), {name: exchanged(value) for name, value in kwargs.items()}

    with ExitStack() as hooks:
        for layer, module in routed_modules(body).items():
            if layer in wanted:
                hooks.callback(module.register_forward_pre_hook(partial(exchange, layer), with_kwargs=True).remove)
        yield


def share_of_other_experts(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the share of tokens that are routed to another set of experts; both int64 ``(N, k)``."""
    return float((ours.sort(1).values != theirs.sort(1).values).any(1).float().mean())
