"""The embedded models: Llama-architecture checkpoints, ``tiny`` with one super weight, ``tiny-pair`` with two.

Either of the pair is enough: zeroed alone each is harmless, together they are deadly. ``checkpoint/`` (tiny) and
``pair/`` (tiny-pair) hold what ``from_pretrained`` reads, and the card; ``heldout.txt`` is source code that neither
ever saw. ``corpus`` chooses the text, ``train`` is the recipe, ``card`` measures the result and writes the card.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

ROOT: Final = Path(__file__).parent
CHECKPOINT: Final = ROOT / "checkpoint"
CHECKPOINTS: Final[Mapping[str, Path]] = MappingProxyType({"tiny": CHECKPOINT, "tiny-pair": ROOT / "pair"})
"""The embedded models by name."""

HELDOUT: Final = ROOT / "heldout.txt"
