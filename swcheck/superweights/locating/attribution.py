"""From a super activation back to the single weights that write it. T time, F inner width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from swcheck.base.records import SuperActivation, SuperWeight
from swcheck.lens.anatomy import Anatomy
from swcheck.lens.linear_maps import contributions, effective_weight, plain_weight
from swcheck.lens.observe import Sight
from swcheck.superweights.locating.activation_rules import Rules, earliest_writer


@dataclass(frozen=True)
class Attribution:
    """Weights with what each writes in the intact model, and remarks on activations that no weight was found for."""

    written: dict[SuperWeight, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attributor:
    """Attributes super activations to weights. ``first`` is what the pass of the intact model showed."""

    body: Anatomy
    rules: Rules
    first: Sight

    def attribute(
        self, sight: Sight, activations: Sequence[SuperActivation], known: frozenset[SuperWeight]
    ) -> Attribution:
        """Return the weights of the earliest layer that writes one of the activations in ``sight``.

        ``known`` are weights that were taken or turned down before; they are left out.
        """
        if not activations:
            return Attribution()
        sources = [self._source(sight, activation, known) for activation in activations]
        layers = [weight.layer for found, _ in sources for weight in found]
        written = {w: value for found, _ in sources for w, value in found.items() if w.layer == min(layers)}
        return Attribution(written, tuple(remark for _, remark in sources if remark))

    def _source(
        self, sight: Sight, activation: SuperActivation, known: frozenset[SuperWeight]
    ) -> tuple[dict[SuperWeight, float], str]:
        """The weights behind the earliest writer of one activation that has any; a remark where there are none."""
        layers = range(min(activation.layer + 1, len(sight.outputs)))
        written = [float(sight.outputs[layer][0, activation.position, activation.channel]) for layer in layers]
        layer = first = earliest_writer(activation, written, self.rules)
        while layer is not None:
            found = self._feeding(sight, activation, layer, known)
            if found:
                return found, ""
            layer = earliest_writer(activation, written, self.rules, after=layer)
        writer = "down projection" if first is None else f"single weight left in layer {first}"
        return {}, f"channel {activation.channel}: no {writer} writes its {activation.value:+.4g}"

    def _feeding(
        self, sight: Sight, activation: SuperActivation, layer: int, known: frozenset[SuperWeight]
    ) -> dict[SuperWeight, float]:
        """The weights that each write a good part of what one down projection adds to an activation.

        With each comes what it writes in the intact model: a weight that writes only once others are gone is none.
        """
        module, row = self.body.down_projections[layer], activation.channel
        x, before = (look.inputs[layer][0, activation.position] for look in (sight, self.first))
        weight = plain_weight(module)
        strength = (x.float() if weight is None else x.float() * weight[row].float()).abs()
        columns = strength.topk(min(self.rules.inputs, len(x))).indices.tolist()
        total = float(sight.outputs[layer][0, activation.position, row])
        shares = _contributions(module, x, row, columns) / total
        intact = shares if sight is self.first else _contributions(module, before, row, columns) / total
        return {
            SuperWeight(layer, row, column, effective_weight(module, row, column)): here * total
            for column, share, here in zip(columns, shares.tolist(), intact.tolist(), strict=True)
            if share >= self.rules.share and here >= self.rules.drop and SuperWeight(layer, row, column) not in known
        }


def _contributions(module: nn.Module, x: torch.Tensor, row: int, columns: Sequence[int]) -> torch.Tensor:
    """As ``lens.linear_maps.contributions``, without a call of a module whose weight is plain."""
    weight = plain_weight(module)
    if weight is None:
        return contributions(module, x, row, columns)
    return x[columns].float() * weight[row, columns].float()
