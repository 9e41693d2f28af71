"""The nulls of the causal check: zero other large weights, which should do nothing to a healthy model.

One null zeroes as many weights as there are super weights, of similar magnitude, from the same matrices. The other
zeroes the largest other weights of every matrix (the paper's "Prune Non-SW", a fraction per tensor). Each is a ``with``
block that restores every bit of the model when it is left. H residual width, F inner width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import torch

from swcheck.base.errors import OptionError, UnrankedError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import MapKey, anatomy
from swcheck.lens.intervene import scalars_zeroed, zeroed
from swcheck.lens.linear_maps import plain_matrices

if TYPE_CHECKING:
    from torch import nn

NEXT_LARGEST: Final = 100
"""A matched weight is drawn from this many of the largest other weights of its matrix, as in a follow-up's audit."""

LARGEST_SHARE: Final = 1e-4
"""The share of the weights of every matrix that ``without_largest`` zeroes."""


def draw_matched(model: nn.Module, super_weights: Sequence[SuperWeight], seed: int) -> tuple[SuperWeight, ...]:
    """Draw as many weights as ``super_weights``, from the same down projections, none of them a super weight.

    Each is drawn from the ``NEXT_LARGEST`` largest other weights of its matrix, by ``seed``, and no weight is drawn
    twice. Raises ``UnrankedError`` where a matrix is packed or offloaded, ``OptionError`` where no other weight is
    left, ``CoordinateError`` for a coordinate outside the model.
    """
    body = anatomy(model)
    body.check(super_weights)
    generator = random.Random(seed)
    drawn: list[SuperWeight] = []
    for weight in super_weights:
        key = MapKey(weight.layer, weight.expert)
        choices = [other for other in next_largest(model, key, super_weights) if other not in drawn]
        if not choices:
            raise OptionError(
                f"a weight of {body.down_name(*key)} to draw", "all of it is super or drawn", "name fewer"
            )
        drawn.append(generator.choice(choices))
    return tuple(drawn)


def next_largest(
    model: nn.Module, key: int | MapKey, super_weights: Sequence[SuperWeight], count: int = NEXT_LARGEST
) -> tuple[SuperWeight, ...]:
    """Return the ``count`` largest weights of one down projection that are not super weights, largest first.

    ``key`` is its layer, with the expert where it is not the dense one.

    Raises ``UnrankedError`` where the matrix is packed or offloaded, ``CoordinateError`` for a layer outside the model.
    """
    body = anatomy(model)
    down = body.down_map(key)
    tensor = down.weight
    if tensor is None:
        found = _storage_of(down.module)
        raise UnrankedError(f"the largest weights of {down.name}", found, "draw the null in the reference")
    inner = tensor.shape[1]
    order = tensor.abs().flatten().float().topk(min(tensor.numel(), count + len(super_weights))).indices.tolist()
    places = (
        SuperWeight(
            down.key.layer, flat // inner, flat % inner, float(tensor[flat // inner, flat % inner]), down.key.expert
        )
        for flat in order
    )
    return tuple(place for place in places if place not in super_weights)[:count]


def _storage_of(module: nn.Module) -> str:
    """Say in words how a module stores weights that cannot be ranked."""
    is_offloaded = any(tensor.is_meta for tensor in module.parameters())
    return f"{type(module).__name__} {'has them wait elsewhere (offloaded)' if is_offloaded else 'keeps them packed'}"


@contextmanager
def without_matched(model: nn.Module, super_weights: Sequence[SuperWeight], seed: int) -> Iterator[None]:
    """Run ``model`` with one draw of matched weights zeroed; raises what ``draw_matched`` raises."""
    with zeroed(model, draw_matched(model, super_weights, seed)):
        yield


@contextmanager
def without_largest(
    model: nn.Module, super_weights: Sequence[SuperWeight], share: float = LARGEST_SHARE
) -> Iterator[int]:
    """Run ``model`` with the largest ``share`` of every plain linear map of its layers zeroed, except super weights.

    Yields the number of zeroed weights, at least one per matrix. Embeddings, norms and the head are not changed, as in
    the paper's code. Raises ``OptionError`` for a share outside (0, 1], ``UnrankedError`` for a model without any plain
    matrix, where nothing would be zeroed.
    """
    if not 0 < share <= 1:
        raise OptionError(f"share = {share}", "a part of a matrix lies above 0 and at most at 1")
    zeroed_count = 0
    with ExitStack() as undo:
        for tensor, spared in _plain_matrices(model, super_weights):
            places = _largest_places(tensor, max(1, int(share * tensor.numel())), spared)
            undo.enter_context(scalars_zeroed(tensor, places))
            zeroed_count += len(places)
        if not zeroed_count:
            found = "no layer keeps a plain one"
            raise UnrankedError("the largest weights of every matrix", found, "draw the null in the reference")
        yield zeroed_count


def _largest_places(tensor: torch.Tensor, count: int, spared: list[int]) -> list[tuple[int, int]]:
    """Return rows and columns of the ``count`` largest magnitudes, without the flat indices in ``spared``."""
    magnitudes = tensor.abs().flatten().float()
    magnitudes[spared] = -1
    flat = magnitudes.topk(min(count, len(magnitudes) - len(spared))).indices
    return [divmod(place, tensor.shape[1]) for place in flat.tolist()]


def _plain_matrices(model: nn.Module, super_weights: Sequence[SuperWeight]) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Yield every plain matrix of the decoder layers with the flat indices of its super weights."""
    body = anatomy(model)
    body.check(super_weights)
    for matrix in plain_matrices(body):
        here = {w for w in super_weights if MapKey(w.layer, w.expert) == matrix.down}
        yield matrix.weight, [w.row * matrix.weight.shape[1] + w.column for w in here]
