"""The search for super weights: look, attribute, zero, look again, until no activation is left to explain.

T time, H residual width, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import NotFiniteError, WrongModelError
from swcheck.base.records import SuperActivation, SuperWeight
from swcheck.lens.anatomy import Anatomy
from swcheck.lens.linear_maps import contributions, effective_weight
from swcheck.lens.observe import Sight
from swcheck.superweights.locating.activation_rules import Rules, local_layers, median_of, spikes
from swcheck.superweights.locating.attribution import Attributor
from swcheck.superweights.locating.located import LayerPeaks, Located, Peak, Round
from swcheck.superweights.locating.passes import Look, Passes

if TYPE_CHECKING:
    from torch import nn

REMARKS: Final = 4
"""At most so many channels are remarked on that reach the bar and are no super activation."""


class Search:
    """One search: the first look sets the bar, and every round takes some weights or ends it."""

    def __init__(self, model: nn.Module, body: Anatomy, ids: torch.Tensor, rules: Rules) -> None:
        self.body, self.rules = body, rules
        self.passes = Passes(model, body, ids)
        residual = self.passes.first.residual
        inner = residual[:-1].abs() if len(residual) > 1 else residual.abs()
        self.peaks = inner.amax(1)  # (L, H)
        self.loudest = float(self.peaks.amax())
        _check_finite(residual, self.loudest)
        self.median = median_of(inner)
        self.bar = max(rules.above_median * self.median, rules.below_peak * self.loudest)
        self.activations = spikes(residual, self.bar, rules)
        self.attributor = Attributor(body, rules, self.passes.first.sight)
        self.taken: dict[SuperWeight, float] = {}
        self.turned_down: set[SuperWeight] = set()
        self.rounds: list[Round] = []

    def run(self, seeds: tuple[SuperWeight, ...]) -> Located:
        """Search, and return what was found. ``seeds`` are published coordinates, taken first."""
        look, left = self.passes.first, self.activations
        for number in range(self.rules.rounds):
            attributed = self.attributor.attribute(look.sight, left, frozenset(self.turned_down.union(self.taken)))
            found, remarks = attributed.written, list(attributed.remarks)
            if number == 0:
                read, doubts = self._read(seeds)
                found = {**read, **found}
                remarks += doubts + self._passed_over()
            self.rounds.append(Round(_layer_peaks(look.sight), tuple(found), tuple(remarks)))
            if not found:
                break
            before = _sizes(look.residual, left)
            look, still_left = self._look_without(found)
            self._keep(found, before, _sizes(look.residual, left))
            left = still_left
        return self._result()

    def _result(self) -> Located:
        order = sorted(self.taken, key=lambda weight: -abs(self.taken[weight]))
        channels = {weight.row for weight in order}
        activations = tuple(one for one in self.activations if one.channel in channels)
        written = tuple(self.taken[weight] for weight in order)
        return Located(tuple(order), written, activations, tuple(self.rounds), self._reason(order, activations))

    def _look_without(self, found: dict[SuperWeight, float]) -> tuple[Look, tuple[SuperActivation, ...]]:
        """Look again without all that was taken and found, up to the last activation's token; what is still there."""
        end = 1 + max((one.position for one in self.activations), default=self.passes.ids.shape[1] - 1)
        look = self.passes.without((*self.taken, *found), end)
        # The last layer was not run, and what it writes is left out anyway: its predecessor stands in its place.
        residual = torch.cat([look.residual, look.residual[-1:]])
        return look, spikes(residual, self.bar, self.rules, first=self.passes.first.residual)

    def _keep(self, found: dict[SuperWeight, float], before: dict[int, float], after: dict[int, float]) -> None:
        """Take the weights that took a part of their activation along; turn down those that changed nothing."""
        remarks = []
        for weight, value in found.items():
            old, new = before.get(weight.row), after.get(weight.row)
            if old is not None and new is not None and new > (1 - self.rules.drop) * old:
                self.turned_down.add(weight)
                remarks.append(f"{weight}: zeroed, the activation stays at {new:.4g} of {old:.4g}")
            else:
                self.taken[weight] = value
        if remarks:
            last = self.rounds[-1]
            kept = tuple(weight for weight in last.found if weight in self.taken)
            self.rounds[-1] = replace(last, found=kept, remarks=(*last.remarks, *remarks))

    def _read(self, seeds: tuple[SuperWeight, ...]) -> tuple[dict[SuperWeight, float], list[str]]:
        """What published coordinates write here, and remarks on those that do not; refuses a set of which none does."""
        read: dict[SuperWeight, float] = {}
        remarks = []
        for seed in seeds:
            inputs = self.passes.first.sight.inputs[seed.layer][0]
            position = int(inputs[:, seed.column].float().abs().argmax())
            module = self.body.down_projections[seed.layer]
            value = float(contributions(module, inputs[position], seed.row, [seed.column])[0])
            here = effective_weight(module, seed.row, seed.column)
            if abs(value) >= self.rules.below_peak * self.bar and _same_value(seed.value, here):
                read[replace(seed, value=here)] = value
            else:
                remarks.append(f"{seed} is published, but here it is {here:+.4g} and writes {value:+.4g}")
        if seeds and not read:
            raise WrongModelError(
                f"the published super weights of this model, first {seeds[0]}",
                f"none of the {len(seeds)} writes a super activation here; {remarks[0]}",
                "check that the name and the checkpoint belong together; locate without the index: swcheck locate DIR",
            )
        return read, remarks

    def _passed_over(self) -> list[str]:
        """Remarks on the loudest channels that reach the bar and are no super activation."""
        loud = self.peaks.amax(0)
        loud[[one.channel for one in self.activations]] = 0
        remarks = []
        for channel in loud.topk(min(REMARKS, len(loud))).indices.tolist():
            if loud[channel] < self.bar or loud[channel] == 0:
                break
            layer = int(self.peaks[:, channel].argmax())
            local = local_layers(self.passes.first.residual[layer : layer + 1, :, channel], self.rules)
            why = "carried by too few layers" if local else "large at many tokens: an outlier feature"
            remarks.append(f"channel {channel} reaches {float(loud[channel]):.4g}: {why}")
        return remarks

    def _reason(self, order: Sequence[SuperWeight], activations: Sequence[SuperActivation]) -> str:
        """The result in words."""
        if order:
            places = ", ".join(
                f"channel {one.channel} at token {one.position} ({one.value:+.4g}, {one.ratio:.0f} x the median)"
                for one in activations
            )
            return f"{len(order)} super weight{'s' * (len(order) > 1)} found, writing {places or 'as published'}"
        if len(self.body.layers) < 3:
            count = len(self.body.layers)
            return f"none found: a super activation persists over later layers, and this model has {count} in all"
        remarks = "; ".join(self.rounds[0].remarks[:REMARKS])
        times = f"{self.loudest / self.median:.1f} x the median" if self.median else "the median 0"
        return (
            f"none found: the largest value in the residual stream is {self.loudest:.4g}, {times}; a super activation "
            f"has {self.rules.above_median:g} x, persists, and is local to few tokens"
            + (f" ({remarks})" if remarks else "")
        )


def _check_finite(residual: torch.Tensor, loudest: float) -> None:
    """Raise ``NotFiniteError`` for a residual stream ``(L, T, H)`` that holds NaN or infinity."""
    if math.isfinite(loudest + float(residual[-1].abs().amax())):  # NaN wins over every number
        return
    layer = int((~torch.isfinite(residual)).flatten(1).any(1).nonzero()[0])
    raise NotFiniteError(
        "not finite: no super weight can be located",
        f"NaN or infinity in the residual stream after layer {layer}",
        "load the model in bfloat16 or float32; if it stays, the checkpoint itself holds NaN",
    )


def _sizes(residual: torch.Tensor, activations: Sequence[SuperActivation]) -> dict[int, float]:
    """The largest value, with the sign of each activation, at its channel and token over the layers that carry it."""
    series = {one: residual[one.layer : one.last + 1, one.position, one.channel] for one in activations}
    return {one.channel: float((values * math.copysign(1, one.value)).max()) for one, values in series.items()}


def _layer_peaks(sight: Sight) -> tuple[LayerPeaks, ...]:
    three = (sight.inputs, sight.outputs, sight.residual)
    return tuple(LayerPeaks(layer, *(_peak(seen[layer][0]) for seen in three)) for layer in sorted(sight.residual))


def _peak(tensor: torch.Tensor) -> Peak:
    """The value of largest magnitude of ``(T, C)``; on a CPU numpy's search takes a tenth of the time of torch's."""
    values: Any = tensor.float().cpu().flatten().numpy()
    place = max(int(values.argmax()), int(values.argmin()), key=lambda place: abs(values[place]))
    return Peak(float(values[place]), *divmod(place, tensor.shape[1]))


def _same_value(published: float | None, here: float) -> bool:
    """Whether a published value and the one here have the same sign and differ by at most a factor of two."""
    if published is None:
        return True
    return here * published >= 0 and 0.5 * abs(published) <= abs(here) <= 2.0 * abs(published)
