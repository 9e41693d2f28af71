"""The three tiers, which set how many tokens of the evaluation text are measured.

A tier is a number of windows of a length. A model with a shorter context gets more and shorter windows, with the same
number of tokens in all. Causal checks (those that zero weights) use at least ``CAUSAL_WINDOWS`` windows, because a
short text hides the effect. The smoke tier runs no causal checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from swcheck.base.errors import OptionError

CAUSAL_WINDOWS: Final = 32
LARGE_MODEL_PARAMETERS: Final = 1_000_000_000
"""A model with more parameters is measured in the smoke tier on a CPU, unless the user chooses a tier."""


@dataclass(frozen=True)
class Tier:
    """``windows`` windows of ``length`` tokens each. ``causal`` says whether the checks that zero weights run."""

    name: str
    windows: int
    length: int
    causal: bool = True

    def shape(self, context: int | None) -> tuple[int, int]:
        """Return (windows, tokens per window) for a model with a context of ``context`` tokens, None if unknown."""
        length = min(self.length, context or self.length)
        return -(-self.windows * self.length // length), length


SMOKE: Final = Tier("smoke", 8, 512, causal=False)
STANDARD: Final = Tier("standard", 16, 512)
FULL: Final = Tier("full", 32, 2048)
TIERS: Final[Mapping[str, Tier]] = MappingProxyType({tier.name: tier for tier in (SMOKE, STANDARD, FULL)})


def tier_named(name: str) -> Tier:
    """Return the tier of this name. Raises ``OptionError`` if there is none."""
    if name not in TIERS:
        raise OptionError(f"tier {name!r}", f"known: {', '.join(TIERS)}", "leave it out: standard, or smoke on a CPU")
    return TIERS[name]


def default_tier(parameters: int, device: str) -> Tier:
    """Return the standard tier, or smoke for a model of more than ``LARGE_MODEL_PARAMETERS`` parameters on a CPU."""
    return SMOKE if device == "cpu" and parameters > LARGE_MODEL_PARAMETERS else STANDARD
