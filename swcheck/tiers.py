"""How much is measured: three tiers, and what a run in one of them costs, told before it starts.

A tier is a number of windows of the evaluation text. A model with a shorter context gets more and shorter ones: the
tokens stay the same. Causal checks always have ``CAUSAL_WINDOWS`` at least, since a short text hides the effect; the
smoke tier runs none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from swcheck.errors import OptionError

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


@dataclass(frozen=True)
class Weights:
    """What the files of a checkpoint hold: bytes, parameters, the largest matrix.

    ``dtype`` is what it is loaded in, ``context`` how many tokens it takes at once, None where the config is silent.
    """

    size: int
    parameters: int
    largest: tuple[int, int]
    dtype: str
    context: int | None = None


def weights_in(directory: Path) -> Weights | None:
    """What the safetensors files of a checkpoint hold, read from their headers alone; None without such files."""
    files = sorted(directory.glob("*.safetensors"))
    tensors = [entry for file in files for name, entry in _header(file).items() if name != "__metadata__"]
    counted = [(_count(entry["shape"]), entry) for entry in tensors]
    matrices = [(count, entry) for count, entry in counted if len(entry["shape"]) == 2]
    if not matrices:
        return None
    _, largest = max(matrices, key=lambda pair: pair[0])
    total, size = sum(count for count, _ in counted), sum(file.stat().st_size for file in files)
    stored = {"BF16": "bfloat16", "F16": "float16"}.get(str(largest["dtype"]), "float32")
    config = _config(directory)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or stored)
    return Weights(
        size, total, (largest["shape"][0], largest["shape"][1]), dtype, config.get("max_position_embeddings")
    )


def _config(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _header(file: Path) -> dict[str, dict[str, list[int]]]:
    with file.open("rb") as stream:
        return json.loads(stream.read(int.from_bytes(stream.read(8), "little")))  # type: ignore[no-any-return]


def _count(shape: Sequence[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


PROMPT_TOKENS: Final = 6000
"""About what the drawn prompts have, to be read up to the layer where the activation sets in."""

CAUSAL_PASSES: Final = 5
"""The set zeroed, three draws of the matched null, the largest others: each on a quarter of the tokens."""

CALIBRATED: Final = 0.1
"""For how many seconds this machine is tried; the best time counts, others may be at work on it."""

OVERHEAD: Final = 2.0
"""How much longer a pass takes than its matrix products alone, and a run than its passes; measured on two models."""


def passes(tier: Tier, *, references: int = 1, candidates: int = 0) -> float:
    """How often the tokens of a tier are scored in a run: intact, and a quarter for each causal measurement."""
    causal = 0.25 if tier.causal else 0.0
    return references * (1 + CAUSAL_PASSES * causal) + candidates * (1 + causal)


def seconds(weights: Weights, tier: Tier, rate: float, *, references: int = 1, candidates: int = 0) -> float:
    """About how long a run takes at ``rate`` floating point operations a second."""
    scored = tier.windows * tier.length * passes(tier, references=references, candidates=candidates)
    tokens = scored + PROMPT_TOKENS * (references + candidates)
    return OVERHEAD * 2 * weights.parameters * tokens / rate


def rate_of(weights: Weights, device: str, dtype: str | None = None) -> float:
    """The floating point operations a second of this machine, on the largest matrix of the model."""
    import torch

    kind = getattr(torch, dtype or weights.dtype)
    rows, columns = weights.largest
    tokens = min(2048, max(16, int(1e9 / (2 * rows * columns))))  # large enough to be like a pass
    left = torch.zeros(tokens, columns, dtype=kind, device=device)
    right = torch.zeros(rows, columns, dtype=kind, device=device)
    best, until, tries = float("inf"), time.perf_counter() + CALIBRATED, 0
    while tries < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        float((left @ right.T)[0, 0])  # waits for an accelerator
        best, tries = min(best, time.perf_counter() - start), tries + 1
    return 2 * tokens * rows * columns / max(best, 1e-9)


def spoken(span: float) -> str:
    """A time as people say it: ``~3 s``, ``~4 min``, ``~2 h``."""
    if span < 90:
        return f"~{max(1, round(span))} s"
    return f"~{round(span / 60)} min" if span < 5400 else f"~{round(span / 3600)} h"


def megabytes(size: int) -> str:
    """A size as people say it: ``7 MB``, ``13.5 GB``."""
    return f"{max(1, round(size / 1e6))} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
