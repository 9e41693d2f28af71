"""Estimates how long a run takes, from the number of tokens and the speed of this machine."""

from __future__ import annotations

import time
from typing import Final

from swcheck.base.tiers import Tier
from swcheck.loading import engines
from swcheck.loading.files.checkpoint_size import CheckpointSize
from swcheck.loading.files.config_file import read_config

PROMPT_TOKENS: Final = 6000
"""Approximate number of tokens of the drawn prompts. They are read only up to the layer where the activation begins."""


GREEDY_TOKENS: Final = 1500
"""What the greedy text of a reference takes, in scored tokens: 32 passes of a few tokens each.

Measured: 1,700 with 3.5 million parameters, 1,200 with 208 million; a candidate is asked once, in a pass of 256 tokens.
"""


SWEPT_TOKENS: Final = 3100
"""What the other shapes of a candidate take, in scored tokens: many short passes over the beginning of one window.

Measured: x0.38 of a pass over 8,192 tokens, with 3.5 million parameters.
"""


CAUSAL_PASSES: Final = 5
"""Causal measurements of a reference, each on a quarter of the tokens: the super weights zeroed together, three draws
of the matched null, and the null of the largest other weights."""


READS: Final = 2
"""How often the file of a streamed model is read in the smoke tier, as a reference or as a candidate: once for the prompt,
and once for the text, with all that can be run beside them. The prompts are read only up to the layer where the
activation begins."""


CALIBRATION_SECONDS: Final = 0.1
"""How long the speed is measured. The shortest time counts, since other processes may use the machine too."""


OVERHEAD: Final = 2.0
"""A run takes this many times the time of its matrix products: a forward pass does more than those, and a run does more
than forward passes. Measured on two models."""


def window_passes(tier: Tier, *, references: int = 1, candidates: int = 0, swept: int = 0) -> float:
    """Return how often a run scores all tokens of a tier: once intact, and a quarter for each causal measurement.

    ``swept`` is the number of candidates that are scored in other shapes too.
    """
    causal, sweep = 0.25 if tier.causal else 0.0, SWEPT_TOKENS / (tier.windows * tier.length)
    return references * (1 + CAUSAL_PASSES * causal) + candidates * (1 + causal) + swept * sweep


def is_swept(spec: str) -> bool:
    """Return whether a candidate is scored in other shapes by default, as far as can be told without loading it.

    That is one of an engine but the built-in quantizer, whose weights are plain floats, and a checkpoint of packed weights.
    """
    name, _ = engines.route(spec)
    if name != engines.BUILT_IN:
        return name != "rtn"
    directory = engines.directory_of(spec)
    return directory is not None and "quantization_config" in read_config(directory)


def file_reads(tier: Tier, *, is_reference: bool) -> int:
    """Return about how often the file of a streamed model is read.

    A reference is run with its super weights zeroed beside the text; its two nulls are a reading each, and what a
    candidate has in their place is one.
    """
    return READS + tier.causal * (2 if is_reference else 1)


def estimated_seconds(
    weights: CheckpointSize, tier: Tier, rate: float, *, references: int = 1, candidates: int = 0, swept: int = 0
) -> float:
    """Return the estimated seconds of a run at ``rate`` floating point operations per second."""
    passes = window_passes(tier, references=references, candidates=candidates, swept=swept)
    scored = tier.windows * tier.length * passes
    tokens = scored + PROMPT_TOKENS * (references + candidates) + GREEDY_TOKENS * references * tier.causal
    return OVERHEAD * 2 * weights.parameters * tokens / rate


def streamed_product_dtype(dtype: str) -> str:
    """Return the name of the dtype that the products of a streamed model, loaded as ``dtype``, are computed in."""
    import torch

    from swcheck.loading.streaming.pager import is_slow

    return "float32" if is_slow(getattr(torch, dtype)) else dtype


def measured_rate(weights: CheckpointSize, device: str, dtype: str | None = None) -> float:
    """Return the floating point operations per second of this machine, measured on the model's largest matrix.

    ``dtype`` None means the dtype of the checkpoint.
    """
    import torch

    compute_dtype = getattr(torch, dtype or weights.dtype)
    rows, columns = weights.largest
    # about 1e9 operations: large enough to be as fast as in a forward pass
    tokens = min(2048, max(16, int(1e9 / (2 * rows * columns))))
    left = torch.zeros(tokens, columns, dtype=compute_dtype, device=device)
    right = torch.zeros(rows, columns, dtype=compute_dtype, device=device)
    fastest, deadline, repeats = float("inf"), time.perf_counter() + CALIBRATION_SECONDS, 0
    while repeats < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        float((left @ right.T)[0, 0])  # reading a value waits for an accelerator to finish
        fastest, repeats = min(fastest, time.perf_counter() - start), repeats + 1
    return 2 * tokens * rows * columns / max(fastest, 1e-9)
