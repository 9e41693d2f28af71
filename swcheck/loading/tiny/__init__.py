"""The embedded models: Llama-architecture checkpoints, ``tiny`` with one super weight, ``tiny-pair`` with two.

Zeroing one of the two super weights of ``tiny-pair`` is harmless; zeroing both makes the model collapse.
``checkpoint/`` (tiny) and ``pair/`` (tiny-pair) hold what ``from_pretrained`` reads, and a model card. ``heldout.txt``
is source code that neither model was trained on. In ``tools/``, ``tiny_corpus`` chooses the text, ``train_tiny`` trains
the models, and ``tiny_card`` measures a model and writes its card.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

ROOT: Final = Path(__file__).parent
CHECKPOINT: Final = ROOT / "checkpoint"
CHECKPOINTS: Final[Mapping[str, Path]] = MappingProxyType({"tiny": CHECKPOINT, "tiny-pair": ROOT / "pair"})
"""The directory of each embedded model, by name."""

HELDOUT: Final = ROOT / "heldout.txt"
"""The text on which the embedded models are measured, in place of the default evaluation text."""
