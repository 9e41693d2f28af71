"""Whether what a decoder layer returns is a sum of what it gets and of what its modules return, as a pass showed them.

B batch, T tokens, N tokens of the batch, S residual streams, H residual width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from swcheck.lens.architecture.blocks import Block
    from swcheck.lens.architecture.places import Structure

CLEARLY: Final = 8
"""The sums of the stream that an MLP writes to miss its output this many times as much as those of other tensors."""


def left_of_sum(layer: Block) -> float:
    """Return what is left of a layer's output beside the sum, relative to it."""
    if layer.after is None:
        return math.inf
    columns = torch.stack([one.flatten() for one in _columns(layer).values()])
    columns = columns / columns.norm(dim=1, keepdim=True).clamp_min(1e-12)
    wanted = layer.after.double().cpu().flatten()
    factors = torch.linalg.lstsq(columns @ columns.T, columns @ wanted, driver="gelsd").solution
    return float((factors @ columns - wanted).norm() / wanted.norm().clamp_min(1e-12))


def take_stream(layers: Sequence[Block], maps: Sequence[Collection[str]]) -> int | None:
    """Take one of the tensors that layers hand on for the stream: the one to which their MLPs' outputs are added.

    ``maps`` are the paths of the modules in and around the down projections of each layer. The sums of each tensor are
    looked at with what these return and without. Returns its number in what a layer returns; None where MLPs add to none
    of them or to several.
    """
    runs = [(run, inside) for layer, inside in zip(layers, maps, strict=True) for run in layer.all_runs]
    numbers = [number for number in runs[0][0].returned if all(number in run.returned for run, _ in runs)]
    known = [(run, inside) for run, inside in runs if are_finite([*run.given, *run.returned.values()])]
    if not known:
        return numbers[0]
    missed: dict[int, float] = {}
    sources: dict[int, int] = {}
    for number in numbers:
        pairs = [[replace(run, before=one, after=run.returned[number]) for one in run.given] for run, _ in known]
        left = [sum(map(left_of_sum, same)) for same in zip(*pairs, strict=False)]
        source = sources[number] = left.index(min(left))
        without = (_without(pair[source], inside) for pair, (_, inside) in zip(pairs, known, strict=True))
        missed[number] = sum(map(left_of_sum, without)) - left[source]
    first, *others = sorted(numbers, key=missed.__getitem__, reverse=True)
    if missed[first] <= CLEARLY * max((missed[other] for other in others), default=0.0):
        return None
    for run, _ in runs:
        run.before, run.after = run.given[sources[first]], run.returned[first]
    return first


def are_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether all values are known and finite."""
    return all(not one.is_meta and bool(torch.isfinite(one).all()) for one in tensors)


def _without(layer: Block, paths: Collection[str]) -> Block:
    return replace(layer, inside={path: one for path, one in layer.inside.items() if path not in paths})


def left_of_mix(whole: Structure, layer: Block) -> float:
    """Return what is left of a layer's streams beside sums of its input's streams and of what its modules return.

    Each of N tokens has factors of its own; M is the number of streams and of outputs.
    """
    if layer.before is None or layer.after is None:
        return math.inf
    streams = [one for one in layer.inside.values() if one.shape == layer.before.shape]
    before, *others, after = (  # (N, S, H)
        whole.by_stream(one).flatten(0, 1).double().cpu() for one in (layer.before, *streams, layer.after)
    )
    size, width = len(before), before.shape[-1]
    inside = [one for one in layer.inside.values() if one.shape[-1] == width and one.numel() == size * width]
    columns = torch.cat([before, *others, *(one.reshape(size, 1, -1).double().cpu() for one in inside)], 1)  # (N, M, H)
    columns = (columns / columns.norm(dim=2, keepdim=True).clamp_min(1e-12)).mT
    factors = torch.linalg.lstsq(columns, after.mT, driver="gelsd").solution
    return float((columns @ factors - after.mT).norm() / after.norm().clamp_min(1e-12))


def _columns(layer: Block) -> dict[str, torch.Tensor]:
    """Return what may add up to a layer's output, float64 ``(N, H)`` by path: its input and what its modules return."""
    if layer.before is None:
        return {}
    shape = layer.before.shape
    size = shape[0] * shape[1]
    columns = {"": layer.before.reshape(size, -1)}
    for path, tensor in layer.inside.items():
        if tensor.shape[-1] == shape[-1] and tensor.numel() == layer.before.numel():
            columns[path] = tensor.reshape(size, -1)
    return {path: tensor.double().cpu() for path, tensor in columns.items()}


def is_added(layer: Block, path: str) -> bool:
    """Return whether the output of a layer is what it would be without the map, plus what the map writes.

    Its output, less what the map writes, has to be a sum of the input and of one more branch at most. A norm that takes
    this sum and returns the output changes it, though next to nothing in a random model.
    """
    columns = _columns(layer)
    if path not in columns or layer.after is None:
        return False
    after = layer.after.reshape(columns[path].shape).double().cpu()
    if any(
        other and not f"{path}.".startswith(f"{other}.") and torch.equal(one, after) for other, one in columns.items()
    ):
        return False
    rest = after - columns[path]
    others = [
        tensor for other, tensor in columns.items() if other and not other.startswith(path.split(".", maxsplit=1)[0])
    ]
    return any(_fits(rest, [columns[""], one]) for one in [*others, columns[""]])


def _fits(wanted: torch.Tensor, columns: list[torch.Tensor]) -> bool:
    """Return whether ``wanted`` is the sum of ``columns``, up to rounding of two bytes."""
    unique = columns if len(columns) < 2 or columns[0] is not columns[1] else columns[:1]
    error = (wanted - sum(unique)).abs().max()
    return bool(error <= 2**-7 * wanted.abs().max())
