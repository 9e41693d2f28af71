"""Finds the single weights that write a super activation. F inner width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from swcheck.base.records import SuperActivation, SuperWeight
from swcheck.lens.architecture.anatomy import Anatomy, DownMap, MapKey
from swcheck.lens.linear_maps import scalar_of, written_by
from swcheck.superweights.locating.activation_rules import Rules, earliest_writer
from swcheck.superweights.locating.writers import Writers, Written

MOST_TOGETHER: Final = 8
"""At most this many weights of about the same size, each with a small share, write an activation as super weights."""


@dataclass(frozen=True)
class Attribution:
    """The weights that were found for some activations.

    ``written`` gives for each weight what it writes in the intact model; ``remarks`` name the activations that no
    weight was found for.
    """

    written: dict[SuperWeight, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attributor:
    """Attributes super activations to weights.

    ``intact`` are the down projections in the pass of the intact model, and ``activations`` its super activations.
    """

    body: Anatomy
    rules: Rules
    intact: Writers
    activations: Sequence[SuperActivation]

    def attribute(
        self, writers: Writers, activations: Sequence[SuperActivation], known: frozenset[SuperWeight]
    ) -> Attribution:
        """Return the weights of the earliest layer that writes one of the activations in the pass of ``writers``.

        ``known`` are weights that were accepted or rejected before; they are left out.
        """
        if not activations:
            return Attribution()
        results = [self._weights_of(writers, activation, known) for activation in activations]
        layers = [weight.layer for found, _ in results for weight in found]
        written = {w: value for found, _ in results for w, value in found.items() if w.layer == min(layers)}
        return Attribution(written, tuple(remark for _, remark in results if remark))

    def _weights_of(
        self, writers: Writers, activation: SuperActivation, known: frozenset[SuperWeight]
    ) -> tuple[dict[SuperWeight, float], str]:
        """Return the weights of the earliest layer that writes one activation and has any; else a remark."""
        layers = range(min(activation.layer + 1, len(writers.observation.residual)))
        written = [writers.added(layer, activation.position, activation.channel) for layer in layers]
        layer = first_writer = earliest_writer(activation, written, self.rules)
        while layer is not None:
            found = self._weights_in_layer(writers, activation, layer, known)
            if found:
                return found, ""
            layer = earliest_writer(activation, written, self.rules, after=layer)
        writer = "down projection" if first_writer is None else f"single weight left in layer {first_writer}"
        return {}, f"channel {activation.channel}: no {writer} writes its {activation.value:+.4g}"

    def _weights_in_layer(
        self, writers: Writers, activation: SuperActivation, layer: int, known: frozenset[SuperWeight]
    ) -> dict[SuperWeight, float]:
        """Return the weights that each write a good part of what one layer adds to an activation.

        With each comes what it writes in the intact model. A weight that writes only after others were zeroed is left
        out: it is not a super weight.
        """
        position, row = activation.position, activation.channel
        present = writers.of_layer(layer, position, row)
        reads = self._intact_reads(writers, activation, layer, present)
        total = sum(one.added for one in present)
        candidates = [
            (SuperWeight(layer, row, column, scalar_of(one.down, row, column), one.down.key.expert), share, before)
            for one in present
            for column, share, before in self._shares(one, reads[one.down.key], row, total)
        ]
        least = _least_share([share for _, share, _ in candidates], self.rules)
        least_before = self.rules.drop * least / self.rules.share * self._part_of_intact(activation, total)
        return {
            weight: before * total
            for weight, share, before in candidates
            if share >= least and before >= least_before and weight not in known
        }

    def _part_of_intact(self, activation: SuperActivation, total: float) -> float:
        """Return the intact activation over what a layer adds now, where it has grown since weights were zeroed; else 1.

        What a weight writes in the intact model is held against the intact activation.
        """
        place = (activation.channel, activation.position)
        before = next((one.value for one in self.activations if (one.channel, one.position) == place), total)
        return min(1.0, before / total) if before * total > 0 else 1.0

    def _intact_reads(
        self, writers: Writers, activation: SuperActivation, layer: int, present: Sequence[Written]
    ) -> dict[MapKey, list[torch.Tensor]]:
        """Return what each down projection of a layer that is ``present`` reads in the intact model, ``(F,)``.

        It is read at the token of the activation, and at that at which the intact model has one of the same channel and
        sign: with other weights zeroed a channel may be largest at another token.
        """
        if writers is self.intact:
            return {one.down.key: [one.read] for one in present}
        reads: dict[MapKey, list[torch.Tensor]] = {one.down.key: [] for one in present}
        same = (
            one.position
            for one in self.activations
            if one.channel == activation.channel and one.value * activation.value > 0
        )
        for token in dict.fromkeys((activation.position, next(same, activation.position))):
            for one in self.intact.of_layer(layer, token, activation.channel):
                reads.setdefault(one.down.key, []).append(one.read)
        return reads

    def _shares(
        self, written: Written, intact_reads: Sequence[torch.Tensor], row: int, total: float
    ) -> Iterator[tuple[int, float, float]]:
        """Yield the inner neurons that may write most: column, share of ``total`` now, and the largest in the intact model."""
        if not intact_reads:
            return
        weight = written.down.weight
        strength = (written.read.float() if weight is None else written.read.float() * weight[row].float()).abs()
        columns = strength.topk(min(self.rules.inputs, len(written.read))).indices.tolist()
        scale = written.gain / total
        shares = _contributions(written.down, written.read, row, columns) * scale
        intact = [
            shares if read is written.read else _contributions(written.down, read, row, columns) * scale
            for read in intact_reads
        ]
        yield from zip(columns, shares.tolist(), torch.stack(intact).amax(0).tolist(), strict=True)


def _least_share(shares: Sequence[float], rules: Rules) -> float:
    """Return the least share of what a layer adds that makes a super weight.

    It is ``rules.share``. Where no weight has that much, but a few of about the same size write most of it together,
    it is half of the largest share.
    """
    largest = max(shares, default=0.0)
    together = sorted((share for share in shares if share >= largest / 2), reverse=True)
    are_few = 0 < largest < rules.share and len(together) <= MOST_TOGETHER and sum(together) >= 0.5
    return largest / 2 if are_few else rules.share


def _contributions(down: DownMap, x: torch.Tensor, row: int, columns: Sequence[int]) -> torch.Tensor:
    """Return ``lens.linear_maps.written_by``, without calling the module where its weight is plain."""
    weight = down.weight
    if weight is None:
        return written_by(down, x, row, columns)
    written: torch.Tensor = x[columns].float() * weight[row, columns].float()
    return written
