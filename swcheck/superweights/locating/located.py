"""What ``locate`` returns: the super weights, what they write, and what every round of the search saw.

T tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from swcheck.base.records import Likelihood, SuperActivation, SuperWeight
from swcheck.base.statistics import factor_of


@dataclass(frozen=True)
class Peak:
    """The value of largest magnitude of one tensor ``(T, C)``, with its sign and place."""

    value: float
    position: int
    channel: int


@dataclass(frozen=True)
class LayerPeaks:
    """The peaks of one layer: its dense down projection's input and output, and the residual stream after it.

    The first two are None for a layer without a dense down projection.
    """

    layer: int
    input: Peak | None
    output: Peak | None
    residual: Peak


@dataclass(frozen=True)
class Round:
    """One round of the search: the peaks of each layer, the super weights found, and remarks on what was rejected."""

    layers: tuple[LayerPeaks, ...]
    found: tuple[SuperWeight, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Strongest:
    """The scalar that is no located weight and costs most when it is zeroed alone: ``nats`` per token, of ``tried`` ones."""

    weight: SuperWeight
    nats: float
    tried: int

    @property
    def ratio(self) -> float:
        """The ratio of the perplexities, zeroed over intact."""
        return factor_of(self.nats)


@dataclass(frozen=True)
class Effect:
    """The likelihood of a text intact, with all located weights zeroed together, and with each zeroed alone.

    ``strongest`` is the strongest other scalar; None where no weight can be zeroed.
    """

    intact: Likelihood
    together: Likelihood
    alone: tuple[Likelihood, ...]
    strongest: Strongest | None = None


@dataclass(frozen=True)
class Located:
    """What ``locate`` found.

    ``super_weights`` are ordered by the magnitude of what they write, largest first. ``written`` is what each of them
    adds to the residual stream at its token. ``activations`` are the super activations in their rows. ``reason`` says
    in words what was found, or why nothing was found. ``effect`` is None unless token ids to verify on were given.
    """

    super_weights: tuple[SuperWeight, ...]
    written: tuple[float, ...]
    activations: tuple[SuperActivation, ...]
    rounds: tuple[Round, ...]
    reason: str
    effect: Effect | None = None
