"""Runs the search for super weights.

Each round finds the super activations of a forward pass, attributes them to weights, zeroes these and runs the pass
again, until no activation is left to explain. T tokens, H residual width, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.base.errors import NotFiniteError, WrongModelError
from swcheck.base.records import SuperActivation, SuperWeight
from swcheck.lens.architecture.anatomy import Anatomy, MapKey
from swcheck.lens.architecture.attention_sinks import sink_mechanisms
from swcheck.lens.observe import Observation
from swcheck.superweights.locating.activation_rules import Rules, left_standing, local_layers, median_of, spikes
from swcheck.superweights.locating.attribution import Attributor
from swcheck.superweights.locating.confirm import reading_of, same_value
from swcheck.superweights.locating.located import LayerPeaks, Located, Peak, Round
from swcheck.superweights.locating.passes import PassResult
from swcheck.superweights.locating.shared_reading import passes_of_search

if TYPE_CHECKING:
    from torch import nn

MOST_REMARKS: Final = 4
"""At most this many channels that reach the threshold and are not super activations are mentioned."""


class Search:
    """One search. The first pass sets the threshold; every round accepts some weights, or ends the search."""

    def __init__(self, model: nn.Module, body: Anatomy, ids: torch.Tensor, rules: Rules) -> None:
        self.body, self.rules = body, rules
        self.passes = passes_of_search(model, body, ids, rules)
        residual = self.passes.first.residual
        inner = residual[:-1].abs() if len(residual) > 1 else residual.abs()
        self.peaks = inner.amax(1)  # (L, H)
        self.largest = float(self.peaks.amax())
        _check_finite(residual, self.largest)
        self.median = median_of(inner)
        self.threshold = max(
            rules.above_median * self.median, rules.below_peak * _largest_local(inner, self.peaks, rules)
        )
        self.activations = spikes(residual, self.threshold, rules)
        self.attributor = Attributor(body, rules, self.passes.first.writers, self.activations)
        self.accepted: dict[SuperWeight, float] = {}  # with what each writes in the intact model
        self.rejected: set[SuperWeight] = set()
        self.rounds: list[Round] = []

    def run(self, seeds: tuple[SuperWeight, ...]) -> Located:
        """Search, and return what was found. ``seeds`` are published coordinates, which are tried first."""
        result, unexplained = self.passes.first, self.activations
        for number in range(self.rules.rounds):
            known = frozenset(self.rejected.union(self.accepted))
            attribution = self.attributor.attribute(result.writers, unexplained, known)
            found, remarks = attribution.written, list(attribution.remarks)
            if number == 0:
                confirmed, doubts = self._confirm_seeds(seeds)
                found = {**confirmed, **found}
                remarks += doubts + self._remarks_on_channels() + _remarks_on_experts(self.passes.visits)
            self.rounds.append(Round(_layer_peaks(result.observation), tuple(found), tuple(remarks)))
            if not found:
                break
            before = _magnitudes(result.residual, unexplained)
            result, remaining = self._run_without(found)
            self._accept(found, before, _magnitudes(result.residual, unexplained))
            unexplained = remaining
        return self._located()

    def _located(self) -> Located:
        order = sorted(self.accepted, key=lambda weight: -abs(self.accepted[weight]))
        channels = {weight.row for weight in order}
        activations = tuple(one for one in self.activations if one.channel in channels)
        written = tuple(self.accepted[weight] for weight in order)
        return Located(tuple(order), written, activations, tuple(self.rounds), self._reason(order, activations))

    def _run_without(self, found: dict[SuperWeight, float]) -> tuple[PassResult, tuple[SuperActivation, ...]]:
        """Run a pass with all accepted and found weights zeroed; return it and the super activations that remain.

        The pass ends at the token of the last activation.
        """
        end = 1 + max((one.position for one in self.activations), default=self.passes.ids.shape[1] - 1)
        result = self.passes.run_without((*self.accepted, *found), end)
        # ``spikes`` leaves the last layer out. It was not run, so the one before it is repeated in its place.
        residual = torch.cat([result.residual, result.residual[-1:]])
        raised = spikes(residual, self.threshold, self.rules, first=self.passes.first.residual)
        values = [float(residual[one.layer, one.position, one.channel]) for one in self.activations]
        return result, left_standing(raised, self.activations, values, self.threshold, self.rules)

    def _accept(self, found: dict[SuperWeight, float], before: dict[int, float], after: dict[int, float]) -> None:
        """Accept the weights whose activation fell when they were zeroed, and reject the others.

        ``before`` and ``after`` give the magnitude of the activation by channel. A weight whose channel has no
        activation, as a published one may, is accepted.
        """
        remarks = []
        for weight, value in found.items():
            old, new = before.get(weight.row), after.get(weight.row)
            if old is not None and new is not None and new > (1 - self.rules.drop) * old:
                self.rejected.add(weight)
                remarks.append(f"{weight}: zeroed, the activation stays at {new:.4g} of {old:.4g}")
            else:
                self.accepted[weight] = value
        if remarks:
            last = self.rounds[-1]
            accepted = tuple(weight for weight in last.found if weight in self.accepted)
            self.rounds[-1] = replace(last, found=accepted, remarks=(*last.remarks, *remarks))

    def _confirm_seeds(self, seeds: tuple[SuperWeight, ...]) -> tuple[dict[SuperWeight, float], list[str]]:
        """Return what published coordinates write here, and remarks on those that are not confirmed.

        A seed is confirmed if it writes enough and has about its published value. Raises ``WrongModelError`` where none
        of the seeds is.
        """
        confirmed: dict[SuperWeight, float] = {}
        remarks = []
        for seed in seeds:
            reading = reading_of(self.passes.first.writers, self.body, seed)
            value, here = reading.written, reading.value
            if abs(value) >= self.rules.below_peak * self.threshold and same_value(seed.value, here):
                confirmed[replace(seed, value=here)] = value
            else:
                remarks.append(f"{seed} is published, but here it is {here:+.4g} and writes {value:+.4g}")
        if seeds and not confirmed:
            raise WrongModelError(
                f"the published super weights of this model, first {seeds[0]}",
                f"none of the {len(seeds)} writes a super activation here; {remarks[0]}",
                "check that the name and the checkpoint belong together; locate without the index: swcheck locate DIR",
            )
        return confirmed, remarks

    def _remarks_on_channels(self) -> list[str]:
        """Say of the largest channels that reach the threshold why they are not super activations."""
        peaks = self.peaks.amax(0)
        peaks[[one.channel for one in self.activations]] = 0
        remarks = []
        for channel in peaks.topk(min(MOST_REMARKS, len(peaks))).indices.tolist():
            if peaks[channel] < self.threshold or peaks[channel] == 0:
                break
            layer = int(self.peaks[:, channel].argmax())
            local = local_layers(self.passes.first.residual[layer : layer + 1, :, channel], self.rules)
            why = "carried by too few layers" if local else "large at many tokens: an outlier feature"
            remarks.append(f"channel {channel} reaches {float(peaks[channel]):.4g}: {why}")
        return remarks

    def _reason(self, order: Sequence[SuperWeight], activations: Sequence[SuperActivation]) -> str:
        """Say in words what was found, or why nothing was found."""
        if order:
            places = ", ".join(
                f"channel {one.channel} at token {one.position} ({one.value:+.4g}, {one.ratio:.0f} x the median)"
                for one in activations
            )
            return f"{len(order)} super weight{'s' * (len(order) > 1)} found, writing {places or 'as published'}"
        if len(self.body.layers) < 3:
            count = len(self.body.layers)
            return f"none found: a super activation persists over later layers, and this model has {count} in all"
        remarks = "; ".join(self.rounds[0].remarks[:MOST_REMARKS])
        instead = sink_mechanisms(self.passes.model)
        has = f"; the model has {' and '.join(instead)}, which can take the place of super weights" if instead else ""
        times = f"{self.largest / self.median:.1f} x the median" if self.median else "the median 0"
        return (
            f"none found: the largest value in the residual stream is {self.largest:.4g}, {times}; a super activation "
            f"has {self.rules.above_median:g} x, persists, and is local to few tokens"
            + (f" ({remarks})" if remarks else "")
            + has
        )


def _largest_local(magnitudes: torch.Tensor, peaks: torch.Tensor, rules: Rules) -> float:
    """Return the largest of ``magnitudes`` ``(L, T, H)`` in a channel that is large at few tokens; 0 without any.

    ``peaks`` ``(L, H)`` are the largest over the tokens. A channel that is large at many tokens, an outlier feature, may
    be larger than every super activation.
    """
    for channel in peaks.amax(0).argsort(descending=True).tolist():
        layer = int(peaks[:, channel].argmax())
        if local_layers(magnitudes[layer : layer + 1, :, channel], rules)[0]:
            return float(peaks[layer, channel])
    return 0.0


def _remarks_on_experts(visits: Mapping[MapKey, int]) -> list[str]:
    """Say how many experts the prompt never visits: a super weight in one of them cannot be seen."""
    missed = sum(count == 0 for count in visits.values())
    return [f"{missed:,} of {len(visits):,} experts get no token of the prompt"] if missed else []


def _check_finite(residual: torch.Tensor, largest: float) -> None:
    """Raise ``NotFiniteError`` for a residual stream ``(L, T, H)`` that holds NaN or infinity.

    ``largest`` is the largest magnitude of all layers but the last.
    """
    if math.isfinite(largest + float(residual[-1].abs().amax())):  # the largest of NaN and numbers is NaN
        return
    layer = int((~torch.isfinite(residual)).flatten(1).any(1).nonzero()[0])
    raise NotFiniteError(
        "not finite: no super weight can be located",
        f"NaN or infinity in the residual stream after layer {layer}",
        "load the model in bfloat16 or float32; if it stays, the checkpoint itself holds NaN",
    )


def _magnitudes(residual: torch.Tensor, activations: Sequence[SuperActivation]) -> dict[int, float]:
    """Return the magnitude of each activation in ``residual`` ``(L, T, H)``, by channel.

    It is the largest value at its channel and token over the layers that carry it, times the sign of the activation.
    """
    series = {one: residual[one.layer : one.last + 1, one.position, one.channel] for one in activations}
    return {one.channel: float((values * math.copysign(1, one.value)).max()) for one, values in series.items()}


def _layer_peaks(observation: Observation) -> tuple[LayerPeaks, ...]:
    return tuple(
        LayerPeaks(
            layer,
            _peak(observation.inputs[layer][0]) if layer in observation.inputs else None,
            _peak(observation.outputs[layer][0]) if layer in observation.outputs else None,
            _peak(observation.residual[layer][0]),
        )
        for layer in sorted(observation.residual)
    )


def _peak(tensor: torch.Tensor) -> Peak:
    """Return the value of largest magnitude of a tensor ``(T, C)``, C channels.

    On a CPU numpy's search takes a tenth of the time of torch's.
    """
    values: Any = tensor.float().cpu().flatten().numpy()
    place = max(int(values.argmax()), int(values.argmin()), key=lambda place: abs(values[place]))
    return Peak(float(values[place]), *divmod(place, tensor.shape[1]))
