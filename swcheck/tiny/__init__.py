"""The embedded model ``tiny``: a Llama-architecture checkpoint that carries one super weight.

``checkpoint/`` holds what ``from_pretrained`` reads, and the card; ``heldout.txt`` is source code the model never saw.
``corpus`` chooses the text, ``train`` is the recipe, ``card`` measures the result and writes the card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent
CHECKPOINT: Final = ROOT / "checkpoint"
HELDOUT: Final = ROOT / "heldout.txt"
