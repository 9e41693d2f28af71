"""How much is measured: three tiers, and what a run in one of them costs, told before it starts.

A tier is a number of windows of the evaluation text. A model with a shorter context gets more and shorter ones: the
tokens stay the same. Causal checks always have ``CAUSAL_WINDOWS`` at least, since a short text hides the effect; the
smoke tier runs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from swcheck.base.errors import OptionError

CAUSAL_WINDOWS: Final = 32
LARGE: Final = 1_000_000_000
"""Above so many parameters a CPU measures in the smoke tier unless it is told otherwise."""


@dataclass(frozen=True)
class Tier:
    """``windows`` of ``length`` tokens; ``causal`` says whether the checks run that zero weights and look again."""

    name: str
    windows: int
    length: int
    causal: bool = True

    def shape(self, context: int | None) -> tuple[int, int]:
        """How many windows of how many tokens, for a model that takes ``context`` tokens at once."""
        length = min(self.length, context or self.length)
        return -(-self.windows * self.length // length), length


SMOKE: Final = Tier("smoke", 8, 512, causal=False)
STANDARD: Final = Tier("standard", 16, 512)
FULL: Final = Tier("full", 32, 2048)
TIERS: Final[Mapping[str, Tier]] = MappingProxyType({tier.name: tier for tier in (SMOKE, STANDARD, FULL)})


def tier_named(name: str) -> Tier:
    """The tier of this name; raises ``OptionError`` for another."""
    if name not in TIERS:
        raise OptionError(f"tier {name!r}", f"known: {', '.join(TIERS)}", "leave it out: standard, or smoke on a CPU")
    return TIERS[name]


def default_tier(parameters: int, device: str) -> Tier:
    """Standard, and smoke for more than ``LARGE`` parameters on a CPU."""
    return SMOKE if device == "cpu" and parameters > LARGE else STANDARD
