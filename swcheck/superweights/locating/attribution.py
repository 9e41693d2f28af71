"""Finds the single weights that write a super activation. F inner width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from swcheck.base.records import SuperActivation, SuperWeight
from swcheck.lens.anatomy import Anatomy
from swcheck.lens.linear_maps import contributions, effective_weight, plain_weight
from swcheck.lens.observe import Observation
from swcheck.superweights.locating.activation_rules import Rules, earliest_writer


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
    """Attributes super activations to weights. ``intact`` has the tensors of the pass of the intact model."""

    body: Anatomy
    rules: Rules
    intact: Observation

    def attribute(
        self, sight: Observation, activations: Sequence[SuperActivation], known: frozenset[SuperWeight]
    ) -> Attribution:
        """Return the weights of the earliest layer that writes one of the activations in ``sight``.

        ``sight`` has the inputs and outputs of the down projections in the present pass. ``known`` are weights that
        were accepted or rejected before; they are left out.
        """
        if not activations:
            return Attribution()
        results = [self._weights_of(sight, activation, known) for activation in activations]
        layers = [weight.layer for found, _ in results for weight in found]
        written = {w: value for found, _ in results for w, value in found.items() if w.layer == min(layers)}
        return Attribution(written, tuple(remark for _, remark in results if remark))

    def _weights_of(
        self, sight: Observation, activation: SuperActivation, known: frozenset[SuperWeight]
    ) -> tuple[dict[SuperWeight, float], str]:
        """Return the weights of the earliest layer that writes one activation and has any; else a remark."""
        layers = range(min(activation.layer + 1, len(sight.outputs)))
        written = [float(sight.outputs[layer][0, activation.position, activation.channel]) for layer in layers]
        layer = first_writer = earliest_writer(activation, written, self.rules)
        while layer is not None:
            found = self._weights_in_layer(sight, activation, layer, known)
            if found:
                return found, ""
            layer = earliest_writer(activation, written, self.rules, after=layer)
        writer = "down projection" if first_writer is None else f"single weight left in layer {first_writer}"
        return {}, f"channel {activation.channel}: no {writer} writes its {activation.value:+.4g}"

    def _weights_in_layer(
        self, sight: Observation, activation: SuperActivation, layer: int, known: frozenset[SuperWeight]
    ) -> dict[SuperWeight, float]:
        """Return the weights that each write at least ``rules.share`` of what one layer adds to an activation.

        With each comes what it writes in the intact model. A weight that writes only after others were zeroed is left
        out: it is not a super weight.
        """
        module, row = self.body.down_projections[layer], activation.channel
        x, x_intact = (recorded.inputs[layer][0, activation.position] for recorded in (sight, self.intact))
        weight = plain_weight(module)
        strength = (x.float() if weight is None else x.float() * weight[row].float()).abs()
        columns = strength.topk(min(self.rules.inputs, len(x))).indices.tolist()
        total = float(sight.outputs[layer][0, activation.position, row])
        shares = _contributions(module, x, row, columns) / total
        intact = shares if sight is self.intact else _contributions(module, x_intact, row, columns) / total
        return {
            SuperWeight(layer, row, column, effective_weight(module, row, column)): before * total
            for column, share, before in zip(columns, shares.tolist(), intact.tolist(), strict=True)
            if share >= self.rules.share and before >= self.rules.drop and SuperWeight(layer, row, column) not in known
        }


def _contributions(module: nn.Module, x: torch.Tensor, row: int, columns: Sequence[int]) -> torch.Tensor:
    """Return ``lens.linear_maps.contributions``, without calling the module where its weight is plain."""
    weight = plain_weight(module)
    if weight is None:
        return contributions(module, x, row, columns)
    return x[columns].float() * weight[row, columns].float()
