"""What the down projections of a layer write into one channel of the residual stream, at one token of a pass.

All numbers are in units of the residual stream. Where a router's weight, a norm or a multiplier lies between a down
projection and the stream, its layer is run once more with one output channel of the map silenced: the difference is what
the map adds. T tokens, H residual width, F inner width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from swcheck.lens.architecture.anatomy import Anatomy, DownMap, MapKey
from swcheck.lens.experts import RoutedCall, inputs_of_expert
from swcheck.lens.intervene import output_channel_zeroed, zeroed
from swcheck.lens.observe import Observation

if TYPE_CHECKING:
    from torch import nn

    from swcheck.base.records import SuperWeight


@dataclass(frozen=True)
class LayerCall:
    """What a decoder layer was given in a pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What one down projection read, ``(F,)``, and wrote into one channel: its own output, and what the stream got."""

    down: DownMap
    read: torch.Tensor
    output: float
    added: float

    @property
    def gain(self) -> float:
        """What the stream gets for each unit that the map writes."""
        return self.added / self.output if self.output else 0.0


@dataclass(frozen=True)
class Writers:
    """The down projections of one pass.

    ``calls`` and ``routed`` have what each layer, and each module that routes to experts, was given, for the layers
    that have a map whose output is not just added. ``removed`` are the super weights that were zeroed in the pass.
    """

    model: nn.Module
    body: Anatomy
    observation: Observation
    calls: dict[int, LayerCall]
    routed: dict[int, list[RoutedCall]]
    removed: tuple[SuperWeight, ...] = ()

    def of_layer(self, layer: int, position: int, channel: int) -> tuple[Written, ...]:
        """Return what each down projection of a layer wrote at one token into one channel."""
        keys = {down: _name_of(down) for down in self.body.down_maps(layer) if not down.is_routed}
        found = [
            (
                down,
                self.observation.inputs[key][0, position],
                float(self.observation.outputs[key][0, position, channel]),
            )
            for down, key in keys.items()
            if key in self.observation.inputs
        ]
        runs_again = layer in self.routed or not all(down.is_added for down in keys)
        with zeroed(self.model, self.removed) if runs_again and self.removed else nullcontext():
            for call in self.routed.get(layer, ()):
                maps = {down.key: down for down in call.maps}
                calls = call.of_tokens([position])[0]
                found += [(maps[key], one.read, float(one.written[channel])) for key, one in calls.items()]
            return tuple(
                Written(down, read, output, output if down.is_added else self._added(down, position, channel))
                for down, read, output in found
                if output
            )

    def inputs_of(self, down: DownMap) -> torch.Tensor:
        """Return what one down projection read, ``(T, F)``; zeros at the tokens that an expert did not get."""
        if not down.is_routed:
            return self.observation.inputs[_name_of(down)][0]
        call = next(one for one in self.routed[down.key.layer] if any(other.key == down.key for other in one.maps))
        with zeroed(self.model, self.removed):
            return inputs_of_expert(call, down.key)[0]

    def added(self, layer: int, position: int, channel: int) -> float:
        """Return what all down projections of a layer together add to the residual stream at one place."""
        return sum(one.added for one in self.of_layer(layer, position, channel))

    def _added(self, down: DownMap, position: int, channel: int) -> float:
        layer = down.key.layer
        call = self.calls[layer]
        with torch.no_grad(), _channel_silenced(down, channel):
            without = self.body.structure.stream(self.body.layers[layer].forward(*call.args, **call.kwargs))
        return float(self.observation.residual[layer][0, position, channel]) - float(without[0, position, channel])


def _name_of(down: DownMap) -> int | MapKey:
    """Return by what an ``Observation`` names a down projection that is not routed."""
    return down.key.layer if down.key.expert is None else down.key


@contextmanager
def _channel_silenced(down: DownMap, channel: int) -> Iterator[None]:
    """Let a down projection write nothing into one channel. Every bit is restored when the block is left."""
    weight = down.weight if down.index is not None else None
    if weight is not None:
        saved = weight[channel].clone()
        try:
            weight[channel] = 0
            yield
        finally:
            weight[channel] = saved
        return

    with output_channel_zeroed(down.module, channel):
        yield


def layers_to_record(body: Anatomy) -> Sequence[int]:
    """Return the layers that have a down projection whose output is not just added to the residual stream."""
    return [n for n in range(len(body.layers)) if any(not one.is_added for one in body.structure.places[n])]
