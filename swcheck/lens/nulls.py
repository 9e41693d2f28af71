"""Named hardships, each a ``with`` block that leaves the model as it was, to the bit.

The two nulls of a causal check stand here: as many weights of matched magnitude from the same matrices, and the
largest other weights of every matrix (the paper's "Prune Non-SW", a fraction per tensor).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch

from swcheck.base.errors import OptionError, UnrankedError
from swcheck.base.records import SuperWeight
from swcheck.lens.anatomy import anatomy
from swcheck.lens.intervene import zeroed
from swcheck.lens.linear_maps import plain_weight

if TYPE_CHECKING:
    from torch import nn

NEXT_LARGEST: Final = 100
"""A matched weight is drawn from this many of the matrix's largest others (the null of a follow-up's audit)."""

LARGEST_SHARE: Final = 1e-4
"""The share of every matrix that ``without_largest`` zeroes."""


def matched(model: nn.Module, super_weights: Sequence[SuperWeight], seed: int) -> tuple[SuperWeight, ...]:
    """As many weights as ``super_weights``, from the same matrices, none of them a super weight.

    Each is drawn from the ``NEXT_LARGEST`` largest others of its matrix. Raises ``UnrankedError`` where a matrix is
    packed or offloaded, ``OptionError`` where it has no others left, ``CoordinateError`` for a coordinate outside.
    """
    body = anatomy(model)
    body.check(super_weights)
    chance = random.Random(seed)
    drawn: list[SuperWeight] = []
    for weight in super_weights:
        choice = [other for other in next_largest(model, weight.layer, super_weights) if other not in drawn]
        if not choice:
            raise OptionError(
                f"a weight of {body.down_name(weight.layer)} to draw", "all of it is super or drawn", "name fewer"
            )
        drawn.append(chance.choice(choice))
    return tuple(drawn)


def next_largest(
    model: nn.Module, layer: int, super_weights: Sequence[SuperWeight], count: int = NEXT_LARGEST
) -> tuple[SuperWeight, ...]:
    """The ``count`` largest weights of one down projection that are no super weights, largest first."""
    body = anatomy(model)
    body.check_layers([layer])
    tensor = plain_weight(body.down_projections[layer])
    if tensor is None:
        found = _kept(body.down_projections[layer])
        raise UnrankedError(f"the largest weights of {body.down_name(layer)}", found, "draw the null in the reference")
    inner = tensor.shape[1]
    order = tensor.abs().flatten().float().topk(min(tensor.numel(), count + len(super_weights))).indices.tolist()
    places = (
        SuperWeight(layer, flat // inner, flat % inner, float(tensor[flat // inner, flat % inner])) for flat in order
    )
    return tuple(place for place in places if place not in super_weights)[:count]


def _kept(module: nn.Module) -> str:
    """How a module keeps weights that cannot be ranked."""
    waits = any(tensor.is_meta for tensor in module.parameters())
    return f"{type(module).__name__} {'has them wait elsewhere (offloaded)' if waits else 'keeps them packed'}"


@contextmanager
def without_matched(model: nn.Module, super_weights: Sequence[SuperWeight], seed: int) -> Iterator[None]:
    """The model without one draw of matched weights."""
    with zeroed(model, matched(model, super_weights, seed)):
        yield


@contextmanager
def without_largest(
    model: nn.Module, super_weights: Sequence[SuperWeight], share: float = LARGEST_SHARE
) -> Iterator[int]:
    """The model without the largest ``share`` of every plain linear map in its layers, super weights spared.

    Yields how many weights are zeroed. Embeddings, norms and the head are left alone, as in the paper's code. At least
    one weight per matrix goes. Raises ``OptionError`` for a share outside (0, 1], ``UnrankedError`` for a model without any
    plain matrix, where nothing would be zeroed.
    """
    if not 0 < share <= 1:
        raise OptionError(f"share = {share}", "a part of a matrix lies above 0 and at most at 1")
    matrices = list(_matrices(model, super_weights))
    if not matrices:
        found = "no layer keeps a plain one"
        raise UnrankedError("the largest weights of every matrix", found, "draw the null in the reference")
    saved: list[tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]] = []
    try:
        for tensor, spared in matrices:
            places = _largest(tensor, max(1, int(share * tensor.numel())), spared)
            saved.append((tensor, places, tensor[places].clone()))
            tensor[places] = 0
        yield sum(len(values) for _, _, values in saved)
    finally:
        for tensor, places, values in reversed(saved):
            tensor[places] = values


def _largest(tensor: torch.Tensor, count: int, spared: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the ``count`` largest magnitudes, the flat places ``spared`` left out."""
    size = tensor.abs().flatten().float()
    size[spared] = -1
    flat = size.topk(min(count, len(size) - len(spared))).indices
    return flat // tensor.shape[1], flat % tensor.shape[1]


def _matrices(model: nn.Module, super_weights: Sequence[SuperWeight]) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Every plain matrix of the layers, with the flat places of its super weights."""
    body = anatomy(model)
    body.check(super_weights)
    for number, layer in enumerate(body.layers):
        for module in layer.modules():
            tensor = plain_weight(module)
            if tensor is not None:
                here = {w for w in super_weights if w.layer == number and module is body.down_projections[number]}
                yield tensor, [w.row * tensor.shape[1] + w.column for w in here]
