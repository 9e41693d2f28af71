"""The engine ``compressed-tensors``: a fresh reference, quantized in memory by an llm-compressor preset, without data.

What llm-compressor leaves in memory keeps the original weights and rounds them in every forward pass. Saving such a
model compresses it in place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from swcheck import engines, skip
from swcheck.errors import EngineError, OptionError
from swcheck.records import Loaded, Scheme

SCHEMES: Final = {
    "W4A16": Scheme("absmax", 4),
    "W4A16_ASYM": Scheme("rtn", 4),
    "W8A16": Scheme("absmax", 8),
    "W8A8": Scheme("absmax", 8, activation_bits=8),
    "FP8_DYNAMIC": Scheme("fp8", 8, activation_bits=8),
    "NVFP4A16": Scheme("nvfp4", 4),
}
PARALLELISM: Final = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class CompressedTensors:
    """``compressed-tensors:PRESET`` or ``compressed-tensors:PRESET,skip=NAME+NAME``."""

    name: str = "compressed-tensors"
    trust_remote_code: bool = False
    offline: bool = False

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        name, names = skip.parted(spec)
        if name not in SCHEMES:
            known = ", ".join(SCHEMES)
            raise EngineError(f"scheme {spec!r} of compressed-tensors", f"known: {known}", "compressed-tensors:W4A16")
        if reference is None:
            raise OptionError(f"compressed-tensors:{spec}", "no reference to quantize", "name one with --model")
        try:
            from llmcompressor import oneshot
            from llmcompressor.modifiers.quantization import QuantizationModifier
        except ImportError as error:
            raise EngineError(f"compressed-tensors:{spec}", str(error), "pip install 'llmcompressor>=0.14'") from error
        base = engines.load(
            reference, device=device, dtype=dtype, trust_remote_code=self.trust_remote_code, offline=self.offline
        )
        kept = skip.linear_maps(f"compressed-tensors:{spec}", base.model, names)
        recipe = QuantizationModifier(targets="Linear", scheme=name, ignore=["re:.*lm_head", *kept])
        with _undisturbed():
            try:
                oneshot(model=base.model, recipe=recipe)
            except (ValueError, RuntimeError) as error:  # above all widths that the group does not divide
                words = " ".join(str(error).split())[:300]
                raise EngineError(
                    f"compressed-tensors:{spec}", words, "compressed-tensors:W8A8 has no groups"
                ) from error
        return Loaded(
            base.model.eval(), base.tokenizer, f"compressed-tensors:{spec}", base.text, base.source, SCHEMES[name]
        )


ENGINE: Final = CompressedTensors()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """llm-compressor without its log, and without what it sets in the environment of the process."""
    from loguru import logger

    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = before or "false"
    for package in ("llmcompressor", "compressed_tensors"):
        logger.disable(package)
    try:
        yield
    finally:
        for package in ("llmcompressor", "compressed_tensors"):
            logger.enable(package)
        if before is None:
            del os.environ[PARALLELISM]
