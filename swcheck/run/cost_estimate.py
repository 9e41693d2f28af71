"""What a run costs."""

from __future__ import annotations

import time
from typing import Final

from swcheck.base.tiers import Tier
from swcheck.loading.checkpoint_size import CheckpointSize

PROMPT_TOKENS: Final = 6000
"""About what the drawn prompts have, to be read up to the layer where the activation sets in."""


CAUSAL_PASSES: Final = 5
"""The set zeroed, three draws of the matched null, the largest others: each on a quarter of the tokens."""


CALIBRATION_SECONDS: Final = 0.1
"""For how many seconds this machine is tried; the best time counts, others may be at work on it."""


OVERHEAD: Final = 2.0
"""How much longer a pass takes than its matrix products alone, and a run than its passes; measured on two models."""


def window_passes(tier: Tier, *, references: int = 1, candidates: int = 0) -> float:
    """How often the tokens of a tier are scored in a run: intact, and a quarter for each causal measurement."""
    causal = 0.25 if tier.causal else 0.0
    return references * (1 + CAUSAL_PASSES * causal) + candidates * (1 + causal)


def estimated_seconds(
    weights: CheckpointSize, tier: Tier, rate: float, *, references: int = 1, candidates: int = 0
) -> float:
    """About how long a run takes at ``rate`` floating point operations a second."""
    scored = tier.windows * tier.length * window_passes(tier, references=references, candidates=candidates)
    tokens = scored + PROMPT_TOKENS * (references + candidates)
    return OVERHEAD * 2 * weights.parameters * tokens / rate


def measured_rate(weights: CheckpointSize, device: str, dtype: str | None = None) -> float:
    """The floating point operations a second of this machine, on the largest matrix of the model."""
    import torch

    kind = getattr(torch, dtype or weights.dtype)
    rows, columns = weights.largest
    tokens = min(2048, max(16, int(1e9 / (2 * rows * columns))))  # large enough to be like a pass
    left = torch.zeros(tokens, columns, dtype=kind, device=device)
    right = torch.zeros(rows, columns, dtype=kind, device=device)
    best, until, tries = float("inf"), time.perf_counter() + CALIBRATION_SECONDS, 0
    while tries < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        float((left @ right.T)[0, 0])  # waits for an accelerator
        best, tries = min(best, time.perf_counter() - start), tries + 1
    return 2 * tokens * rows * columns / max(best, 1e-9)
