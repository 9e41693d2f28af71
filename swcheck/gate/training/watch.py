"""Reads what super weights write, and the super activation, of a model that is being trained.

One reading costs a forward pass over one short prompt that ends at the layer of the activation. Nothing of the model is
changed, and nothing is remembered of it but the numbers from before the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swcheck.base.errors import OptionError
from swcheck.base.limits import limits_for_kind
from swcheck.base.records import Limit, SuperActivation, SuperWeight
from swcheck.base.statistics import ratio_of, worst_of
from swcheck.lens.architecture.anatomy import MapKey, bare_anatomy
from swcheck.lens.architecture.storage import device_of, evaluating
from swcheck.lens.linear_maps import written_by
from swcheck.lens.observe import observe
from swcheck.superweights.measurements.contributions import sink_tokens
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.residual_stream import super_activations
from swcheck.superweights.subject.as_subject import as_subject


@dataclass(frozen=True)
class Reading:
    """What is left of the super weights, as ratios to the model before the training.

    ``contribution`` is the worst of what they write, signed, and ``weight`` which one that is; ``activation`` is the
    strongest super activation.
    """

    contribution: float
    activation: float
    weight: SuperWeight

    def faded(self, limits: Sequence[Limit]) -> str:
        """Return which of the two is outside its limit (contribution, activation), in words; empty if none is."""
        pairs = zip(("contribution", "activation"), (self.contribution, self.activation), limits, strict=True)
        words = [f"{name} x{value:z.2f}, allowed {limit}" for name, value, limit in pairs if not limit.holds(value)]
        return f"super weight at {self.weight.place}: {'; '.join(words)}" if words else ""


class SuperWeightWatch:
    """The super weights of a model as they are now, and a way to read later what is left of them.

    ``model`` is a causal language model, wrapped by an adapter or not. ``tokenizer`` or ``token_ids``, int64 ``(1, T)``,
    give the prompt. ``super_weights`` None means that they are located. Experts are left out. Raises ``OptionError`` for a
    model without super weights: there is nothing to watch.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: Any = None,
        token_ids: torch.Tensor | None = None,
        super_weights: Sequence[SuperWeight] | None = None,
    ) -> None:
        subject = as_subject(model, tokenizer=tokenizer, token_ids=token_ids)
        found = located(subject).super_weights if super_weights is None else tuple(super_weights)
        self.super_weights = found
        if not self.super_weights:
            raise OptionError(
                "super weights to watch", located(subject).reason, "a model that has some, or none to watch"
            )
        self._model, self._ids = model, prompt_ids(subject)
        self._sinks = sink_tokens(subject, self.super_weights, self._ids)
        places = super_activations(subject, self.super_weights)
        self._place: SuperActivation = max(places, key=lambda place: abs(place.value))
        self._before = self._values()

    def read(self) -> Reading:
        """Read the model as it is now, in the mode of evaluation; it is left in the mode that it is in."""
        written, activation = self._values()
        ratios = [ratio_of(now, before) for now, before in zip(written, self._before[0], strict=True)]
        worst = worst_of(ratios, limits()[0])
        return Reading(ratios[worst], ratio_of(activation, self._before[1]), self.super_weights[worst])

    def _values(self) -> tuple[list[float], float]:
        """Return what each super weight writes at its token, and the super activation."""
        model, place, body = self._model, self._place, bare_anatomy(self._model)
        keys = [MapKey(weight.layer, weight.expert) for weight in self.super_weights]
        with evaluating(model), observe(model, residual=[place.layer], inputs=keys, stop=True) as sight:
            model(self._ids.to(device_of(model)), use_cache=False)
        with evaluating(model):
            written = [
                float(written_by(body.down_map(key), sight.inputs[key][0, sink], weight.row, [weight.column])[0])
                for key, weight, sink in zip(keys, self.super_weights, self._sinks, strict=True)
            ]
        return written, float(sight.residual[place.layer][0, place.position, place.channel])


def limits() -> tuple[Limit, Limit]:
    """Return the limits of contribution and activation that a fine-tuned model is held to."""
    chosen = limits_for_kind("finetuned")
    return chosen["contribution"], chosen["activation"]
