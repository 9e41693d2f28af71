"""Plants super weights into a model of any family, for tests of locating, of engines and of new families.

A random model has none. ``plant`` picks a token of the prompt and an inner neuron of a down projection, measures what the
neuron gives there in a forward pass, and sets one scalar of its column so that it writes a chosen multiple of the median
of the residual stream. Nothing is known of the family but its anatomy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch

from swcheck.base.errors import OptionError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import MapKey, checked_anatomy
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.architecture.tracing import is_norm
from swcheck.lens.intervene import zeroed
from swcheck.superweights.locating.activation_rules import DEFAULT_RULES
from swcheck.superweights.locating.passes import Passes

if TYPE_CHECKING:
    from torch import nn

    from swcheck.lens.architecture.anatomy import Expert
    from swcheck.superweights.locating.writers import Written

LARGE: Final = 4.0
"""Before a norm, a planted scalar writes this many times the root mean square of what its map writes."""

SIZE: Final = 1000.0
"""A planted super activation is this many times the median magnitude of the residual stream, where that is largest."""


ROUNDS_TO_SETTLE: Final = 6
"""Scalars that are planted into layers that run in rounds are corrected this often."""


@dataclass(frozen=True)
class Planting:
    """One super weight to plant: where, and what it writes in medians of the residual stream, with its sign.

    ``column`` None takes the inner neuron that is most local to the token; ``expert`` has to get that token.
    """

    layer: int
    row: int
    column: int | None = None
    expert: Expert = None
    size: float = SIZE


def plant_super_weights(
    model: nn.Module, plan: Sequence[Planting], ids: torch.Tensor, *, position: int = 0
) -> tuple[SuperWeight, ...]:
    """Plant super weights into ``model``, in place, and return them in the order of the plan.

    They write at token ``position`` of the prompt ``ids``, int64 ``(1, T)``. The plan for a layer is carried out after those
    for the layers below it, since it reads what these write. Raises ``OptionError`` where an expert of the plan does not
    get the token, its weights are packed, or what it writes is no super activation: large at many tokens, because no
    inner neuron of this model is local to the token, gone in later layers, because they norm the whole stream, or there
    as well without the planted scalars, because a norm that was to amplify them amplifies other branches. Where layers run
    in rounds, all this is of the last one, at the token at which what was written in earlier rounds lets them write most.
    """
    planted: dict[int, SuperWeight] = {}
    has_rounds = checked_anatomy(model).structure.rounds > 1
    median = _writer(model, plan[0], ids, position).median if has_rounds else 0.0
    for number in sorted(range(len(plan)), key=lambda number: plan[number].layer):
        planted[number] = _plant_one(model, plan[number], ids, position, taken=tuple(planted.values()))
    if has_rounds:
        wanted = {one: plan[number].size * median for number, one in planted.items()}
        position = _settle(model, wanted, ids)
        planted = {number: _as_it_is(model, one) for number, one in planted.items()}
    for planting in plan:
        _check_activation(model, planting, ids, position)
        _check_cause(model, planting, tuple(planted.values()), ids, position)
    return tuple(planted[number] for number in range(len(plan)))


def visited_experts(model: nn.Module, layer: int, ids: torch.Tensor, position: int = 0) -> tuple[Expert, ...]:
    """Return which down projections of a layer a token of the prompt ``ids`` ``(1, T)`` reaches: the dense one is None.

    An expert whose output the router multiplies by 0 is not reached.
    """
    body = checked_anatomy(model)
    with evaluating(model):
        written = Passes(model, body, ids).first.writers.of_layer(layer, position, 0)
    return tuple(one.down.key.expert for one in written if one.gain != 0)


def _plant_one(
    model: nn.Module, planting: Planting, ids: torch.Tensor, position: int, *, taken: tuple[SuperWeight, ...]
) -> SuperWeight:
    seen = _writer(model, planting, ids, position)
    one, reads = seen.written, seen.reads
    weight = one.down.weight
    if weight is None:
        raise OptionError(f"plant into {one.down.name}", "it is packed", "plant before quantization")
    mine = [other for other in taken if MapKey(other.layer, other.expert) == one.down.key]
    used = [other.column for other in mine]
    others = weight.float().clone()
    others[[other.row for other in mine], used] = 0  # else each weight of a layer would be larger than those before it
    written = (reads.float() @ others.T).square().mean(1, keepdim=True).sqrt().clamp_min(1e-9)  # (T, 1)
    local = reads.float() / written if not one.down.is_added else reads.float()
    column = _local_neuron(local, position, used) if planting.column is None else planting.column
    read, wanted = float(one.read[column]), planting.size * seen.median
    if not read:
        raise OptionError(f"plant into column {column}", "the neuron reads 0 there", "another column")
    scale = float(written[position])
    with torch.no_grad():
        weight[planting.row, column] = wanted / (read * (one.gain or 1.0))
        if checked_anatomy(model).structure.rounds > 1:
            new = SuperWeight(planting.layer, planting.row, column, None, planting.expert)
            position = _settle(model, {new: wanted}, ids)
        change = _writer(model, planting, ids, position).written.added - one.added
        drowned = [other for other in mine if _drowned(model, planting, other, ids, position)]
        if drowned or not 0.5 <= change / wanted <= 2:
            raw = max(
                (abs(float(weight[other.row, other.column] * one.read[other.column])) for other in drowned),
                default=LARGE * scale,
            )
            if all(other.row != planting.row for other in drowned):
                new = SuperWeight(planting.layer, planting.row, column, None, planting.expert)
                _silence_channel(model, planting, [*taken, new])
                weight[planting.row, column] = math.copysign(raw, wanted) / read
                _amplify(model, planting, ids, position, wanted, change)
            else:  # the norm's weight is large there already: both share it
                weight[planting.row, column] = math.copysign(raw, wanted) / read
    return SuperWeight(planting.layer, planting.row, column, float(weight[planting.row, column]), planting.expert)


def _as_it_is(model: nn.Module, one: SuperWeight) -> SuperWeight:
    weight = checked_anatomy(model).down_map(one).weight
    return one if weight is None else replace(one, value=float(weight[one.row, one.column]))


def _settle(model: nn.Module, wanted: Mapping[SuperWeight, float], ids: torch.Tensor) -> int:
    """Set scalars of layers that run in rounds until each writes in the last one what is wanted; return at which token.

    What they write in earlier rounds changes what they read, and at which token they read most. Raises ``OptionError``
    where that does not settle, or is not one token.
    """
    found: dict[SuperWeight, tuple[float, int]] = {}
    for _ in range(ROUNDS_TO_SETTLE):
        for one, size in wanted.items():
            seen = _writer(model, Planting(one.layer, one.row, one.column, one.expert), ids, 0)
            weight = checked_anatomy(model).down_map(one).weight
            if weight is not None:
                written = seen.reads[:, one.column].float() * weight[one.row, one.column] * (seen.written.gain or 1.0)
                token = int(written.abs().argmax())
                found[one] = float(written[token]) / size, token
                weight[one.row, one.column] /= found[one][0] or 1.0
        tokens = {token for _, token in found.values()}
        if len(tokens) == 1 and all(0.9 <= share <= 1.1 for share, _ in found.values()):
            return tokens.pop()
    changed = f"they write most at {len(tokens)} tokens" if len(tokens) > 1 else "no value settles"
    raise OptionError(
        f"plant {', '.join(map(str, wanted))}",
        f"what is written in earlier rounds changes what is read: {changed}",
        "another token or another model",
    )


def _check_activation(model: nn.Module, planting: Planting, ids: torch.Tensor, position: int) -> None:
    """Raise ``OptionError`` unless the channel is large at few tokens and still so in later layers; the last one may echo."""
    stream = Passes(model, checked_anatomy(model), ids).first.residual[:-1].abs()
    residual = stream[planting.layer :, :, planting.row]
    if not len(residual):
        return
    here = residual[:, position]
    carrying = here >= here.max() / 2
    tokens = (
        (residual >= residual.amax(1, keepdim=True) / 2).sum(1)[carrying].median()
    )  # in the layers that carry the value
    asked = f"plant into layer {planting.layer}, channel {planting.row}"
    if int(tokens) > max(1, residual.shape[1] // 4):
        found = f"no inner neuron is local to token {position}: the channel is as large at {tokens} tokens"
        raise OptionError(asked, found, "another token or another model")
    ratio = float(here.max() / stream.median().clamp_min(1e-9))
    if not ratio >= DEFAULT_RULES.above_median:
        found = f"it is {ratio:.3g} x the median of what it makes of the other channels"
        raise OptionError(asked, found, "a family whose residual stream gets what its down projections write")
    if float(carrying.float().mean()) < 0.5:
        raise OptionError(
            asked, "the later layers do not carry what it writes", "a family whose residual stream persists"
        )


def _check_cause(
    model: nn.Module, planting: Planting, planted: Sequence[SuperWeight], ids: torch.Tensor, position: int
) -> None:
    """Raise ``OptionError`` unless a channel's value at the token goes when its planted scalars are zeroed.

    The oracle is a pass without them. At least half of the value has to go. The last layer may echo or cancel one.
    """
    mine = [one for one in planted if (one.layer, one.row) == (planting.layer, planting.row)]
    body = checked_anatomy(model)
    if planting.layer == len(body.layers) - 1:
        return
    with evaluating(model):
        intact = Passes(model, body, ids).first.residual[planting.layer, position, planting.row]
        with zeroed(model, mine):
            without = Passes(model, body, ids).first.residual[planting.layer, position, planting.row]
    if not abs(float(without)) <= abs(float(intact)) / 2 or not float(intact) * planting.size > 0:
        raise OptionError(
            f"plant into layer {planting.layer}, channel {planting.row}",
            f"its {float(intact):+.4g} is {float(without):+.4g} with what was planted zeroed: another branch writes it",
            "another token or another model",
        )


def _drowned(model: nn.Module, planting: Planting, other: SuperWeight, ids: torch.Tensor, position: int) -> bool:
    """Return whether a planted scalar writes next to nothing any more, because a norm follows what its map writes."""
    there = replace(planting, row=other.row)
    seen = _writer(model, there, ids, position)
    weight = checked_anatomy(model).down_map(other).weight
    if weight is None:
        return False
    saved = weight[other.row, other.column].clone()
    weight[other.row, other.column] = 0
    try:
        without = _writer(model, there, ids, position).written.added
    except OptionError:  # the map writes nothing into this channel without it
        without = 0.0
    weight[other.row, other.column] = saved
    return abs(seen.written.added - without) < abs(planting.size) * seen.median / 4


def _silence_channel(model: nn.Module, planting: Planting, planted: Sequence[SuperWeight]) -> None:
    """Zero a channel's row in every down projection of a layer, but for planted scalars: a norm amplifies them as well."""
    for down in checked_anatomy(model).down_maps(planting.layer):
        weight = down.weight
        if weight is not None:
            mine = [
                one.column for one in planted if MapKey(one.layer, one.expert) == down.key and one.row == planting.row
            ]
            weight[planting.row, [n for n in range(weight.shape[1]) if n not in mine]] = 0


def _local_neuron(reads: torch.Tensor, position: int, used: Sequence[int]) -> int:
    """Return the inner neuron that is large at one token of ``reads`` ``(T, F)``, small at most and larger at no other."""
    magnitudes = reads.float().abs()
    here, others = magnitudes[position], magnitudes[torch.arange(len(reads)) != position]
    locality = here / others.quantile(0.8, dim=0).clamp_min(1e-9)
    locality[here < others.amax(0) / 2] = 0
    locality[here < here.median()] = 0
    locality[list(used)] = 0
    return int(locality.argmax())


@dataclass(frozen=True)
class _Seen:
    """What a pass showed of the down projection of a plan: what it wrote at the token, and its input ``reads`` ``(T, F)``.

    ``stream`` is the residual stream there, behind its layer; ``median`` is that of the whole stream, where it is largest.
    """

    written: Written
    reads: torch.Tensor
    stream: float
    median: float


def _writer(model: nn.Module, planting: Planting, ids: torch.Tensor, position: int) -> _Seen:
    """Return what a pass shows of the down projection of the plan. Raises ``OptionError`` where the token does not reach it."""
    body = checked_anatomy(model)
    down = body.down_map(MapKey(planting.layer, planting.expert))
    with evaluating(model):
        first = Passes(model, body, ids).first
        written = first.writers.of_layer(planting.layer, position, planting.row)
        mine = [one for one in written if one.down.key == down.key]
        if not mine:
            found = f"token {position} does not reach it"
            raise OptionError(f"plant into {down.name}", found, "an expert that is visited there")
        reads = first.writers.inputs_of(down)
    medians = [float(layer.abs().median()) for layer in first.residual[:-1]]
    stream = float(first.residual[planting.layer, position, planting.row])
    return _Seen(mine[0], reads, stream, max(medians))


def _amplify(
    model: nn.Module, planting: Planting, ids: torch.Tensor, position: int, wanted: float, largest: float
) -> None:
    """Set the weight of a norm that follows the down projection so that the residual stream gets ``wanted``.

    Such a norm limits what one channel can be. Trained models of these families have large norm weights there. A norm that
    moves the stream by much more than what the map adds amplifies another branch, and is left alone. ``largest`` is what
    the stream gets of a scalar that would write ``wanted`` itself.
    """
    layer = checked_anatomy(model).layers[planting.layer]
    before = _writer(model, planting, ids, position)
    slopes: list[tuple[float, torch.Tensor]] = []
    for norm in (module for module in layer.modules() if is_norm(module)):
        vector: torch.Tensor = next(iter(norm.parameters(recurse=False)))
        if len(vector) > planting.row:
            one, two = (_added_with(model, planting, ids, position, vector, change) for change in (1.0, 2.0))
            slope, moved = one[0] - before.written.added, one[1] - before.stream
            # a norm before the map does more than scale one channel; a branch behind it may read that one
            is_linear = abs(two[0] - one[0] - slope) < abs(slope) / 20
            if is_linear and abs(moved) <= 2 * abs(slope):
                slopes.append((slope, vector))
    slope, vector = max(slopes, key=lambda pair: abs(pair[0]), default=(0.0, torch.zeros(0)))
    if not slope:
        asked = f"plant into layer {planting.layer}"
        found = (
            f"of {wanted:.3g} in channel {planting.row} the stream gets {largest:.3g}, and no norm amplifies it alone"
        )
        raise OptionError(asked, found, "a family whose residual stream gets what its down projections write")
    vector[planting.row] += (wanted - before.written.added) / slope


def _added_with(
    model: nn.Module, planting: Planting, ids: torch.Tensor, position: int, vector: torch.Tensor, change: float
) -> tuple[float, float]:
    """Return what the map of the plan adds, and the stream, while one entry of a norm's weight is larger by ``change``.

    NaN where the token then goes to other experts: that norm lies before the map.
    """
    saved = vector[planting.row].clone()
    vector[planting.row] += change
    try:
        seen = _writer(model, planting, ids, position)
    except OptionError:
        return math.nan, math.nan
    finally:
        vector[planting.row] = saved
    return seen.written.added, seen.stream
