"""Lets all passes of a search share one reading of a streamed model, whose weights come from the disk in each pass.

The first pass is run layer by layer. Where a layer writes a value that looks like a super activation, a second pass with
the weights that write it zeroed begins there and goes on beside the first one: each layer is read once for both. The search
takes such a pass where it asks for the same, and runs its own where it does not, so the results are the same.
T tokens, H residual width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch

from swcheck.base.records import SuperActivation, SuperWeight
from swcheck.lens.architecture.anatomy import Anatomy
from swcheck.lens.architecture.storage import device_of
from swcheck.lens.intervene import zeroed
from swcheck.lens.likelihood import token_nats
from swcheck.lens.observe import Observation
from swcheck.loading.streaming.pager import Pager, pager_of
from swcheck.superweights.locating.activation_rules import Rules, left_standing, local_layers, median_of
from swcheck.superweights.locating.attribution import Attributor
from swcheck.superweights.locating.passes import Passes, PassResult, copy_layers, layers_skipped, result_of
from swcheck.superweights.locating.writers import Writers

if TYPE_CHECKING:
    from torch import nn

MOST_PASSES: Final = 6
"""At most this many passes are run side by side, the first one among them."""


@dataclass(frozen=True)
class _Pass:
    """A pass over the first ``length`` tokens; ``writers`` have what was zeroed in it, and the layers that were run."""

    length: int
    writers: Writers
    last: list[torch.Tensor] = field(default_factory=list)
    """The residual stream after the last layer, which the search does not use, ``(1, T, H)``."""

    @property
    def removed(self) -> tuple[SuperWeight, ...]:
        """The weights that are zeroed."""
        return self.writers.removed

    def stream_after(self, layer: int) -> torch.Tensor:
        """Return the residual stream after a layer, float32 ``(length, H)``."""
        return self.writers.observation.residual[layer][0].float()


class PassesOfOneReading(Passes):
    """The passes over one prompt of a streamed model, those that a search by ``rules`` asks for run ahead."""

    def __init__(self, model: nn.Module, body: Anatomy, ids: torch.Tensor, rules: Rules, pager: Pager) -> None:
        self.rules, self.pager = rules, pager
        self.side_by_side: list[_Pass] = []
        super().__init__(model, body, ids, count_visits=True)

    def run_first(self, layers: range) -> PassResult:
        """Run the pass without any edit, and beside it those that will be asked for."""
        first = self._new_pass(self.ids.shape[1])
        self.side_by_side.append(first)
        for layer in layers:
            with self.pager.holding():
                for one in self.side_by_side:  # it grows: a pass that begins here runs this layer next
                    recorded = self._run_layer(one, layer)
                    if one is first or layer < layers[-1]:
                        _add(recorded, one.writers)
                        self._begin_without_writers(one, layer)
                    else:
                        one.last.append(recorded.observation.residual[layer])
        return result_of(first.writers)

    def run_without(self, removed: Sequence[SuperWeight], length: int) -> PassResult:
        """Return what the pass over the first ``length`` tokens with ``removed`` zeroed gives."""
        for one in self.side_by_side[1:]:
            if set(one.removed) == set(removed) and one.length == length:
                return result_of(one.writers)
        return super().run_without(removed, length)

    def _new_pass(self, length: int, removed: tuple[SuperWeight, ...] = ()) -> _Pass:
        return _Pass(length, Writers(self.model, self.body, Observation(), {}, {}, removed))

    def residual_without(self, removed: Sequence[SuperWeight]) -> torch.Tensor | None:
        """Return the residual stream of the pass with ``removed`` zeroed, float32 ``(L, T, H)``; None if none was run ahead.

        It has the tokens up to the last super activation.
        """
        for one in self.side_by_side[1:]:
            if set(one.removed) == set(removed) and one.last:
                return torch.cat([result_of(one.writers).residual, one.last[0].float().cpu()])
        return None

    def is_answer_finite(self) -> bool:
        """Return whether all nats of the prompt are finite. Of the weights those behind the layers are read."""
        layers, residual = len(self.body.layers), self.first.observation.residual
        with layers_skipped(self.body, layers, residual, self.ids.shape[1], self.beside):
            return bool(torch.isfinite(token_nats(self.model, self.ids)).all())

    def _run_layer(self, one: _Pass, layer: int) -> Writers:
        """Run one layer of a pass behind those that were run; return what was recorded of it."""
        with ExitStack() as stack:
            stack.enter_context(zeroed(self.model, [weight for weight in one.removed if weight.layer == layer]))
            if not one.removed:
                self.note_output_forms(stack)
            recorded = self.recorded(stack, range(layer, layer + 1))
            before = one.writers.observation.residual
            stack.enter_context(layers_skipped(self.body, layer, before, one.length, self.beside))
            self.model(self.ids[:, : one.length].to(device_of(self.model)), use_cache=False)
        if layer and layer not in recorded.observation.residual:  # it reads an image, where there is none
            recorded.observation.residual[layer] = before[layer - 1]
        return recorded

    def _begin_without_writers(self, one: _Pass, layer: int) -> None:
        """Begin a pass without the weights of ``layer`` that write super activations in this pass, if there are any."""
        first = self.side_by_side[0]
        intact = self._new_spikes(first, layer)
        spikes = intact if one is first else self._new_spikes_without(one, layer, intact)
        if not spikes or len(self.side_by_side) == MOST_PASSES:
            return
        attributor = Attributor(self.body, self.rules, first.writers, intact)
        found = attributor.attribute(one.writers, spikes, frozenset(one.removed)).written
        if found and all(weight.layer == layer for weight in found):
            length = one.length if one.removed else 1 + max(spike.position for spike in spikes)
            begun = self._new_pass(length, (*one.removed, *found))
            copy_layers(one.writers, begun.writers, layer, length)
            self.side_by_side.append(begun)

    def _new_spikes_without(
        self, one: _Pass, layer: int, intact: Sequence[SuperActivation]
    ) -> Sequence[SuperActivation]:
        """Return those of a pass with weights zeroed, as the search takes them."""
        reached, stream = [spike for spike in intact if spike.position < one.length], one.stream_after(layer)
        values = [float(stream[spike.position, spike.channel]) for spike in reached]
        threshold = max((self.rules.above_median * spike.median for spike in reached), default=0.0)
        return left_standing(self._new_spikes(one, layer), reached, values, threshold, self.rules)

    def _new_spikes(self, one: _Pass, layer: int) -> list[SuperActivation]:
        """Return the values after a layer that are large at few tokens, and were not so after the layer before."""
        stream, whole = one.stream_after(layer), self.side_by_side[0].stream_after(layer)
        median = median_of(whole.abs())
        peaks, tokens = stream.abs().max(0)
        if layer:
            earlier = one.stream_after(layer - 1).abs().gather(0, tokens[None])[0]
            peaks = peaks.masked_fill(earlier >= self.rules.band * peaks, 0)
        least = max(self.rules.above_median * median, self.rules.below_peak * float(stream.abs().max()))
        found = ((peaks >= least) & (peaks > 0)).nonzero().flatten().tolist()
        return [
            SuperActivation(
                layer, channel, int(tokens[channel]), float(stream[tokens[channel], channel]), median, layer
            )
            for channel in found
            if local_layers(whole[None, :, channel], self.rules)[0]
        ]


def passes_of_search(model: nn.Module, body: Anatomy, ids: torch.Tensor, rules: Rules) -> Passes:
    """Return the passes of a search over one prompt ``ids``, int64 ``(1, T)``."""
    pager = pager_of(model)
    if pager is None or not body.structure.can_resume:
        return Passes(model, body, ids, count_visits=True)
    return PassesOfOneReading(model, body, ids, rules, pager)


def _add(recorded: Writers, writers: Writers) -> None:
    """Add the layer that was recorded to those that were."""
    for name in ("residual", "inputs", "outputs"):
        getattr(writers.observation, name).update(getattr(recorded.observation, name))
    writers.calls.update(recorded.calls)
    writers.routed.update(recorded.routed)
