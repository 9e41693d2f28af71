"""The engine ``compressed-tensors``: a fresh reference, quantized in memory by an llm-compressor preset, without data.

What llm-compressor leaves in memory keeps the original weights and rounds them in every forward pass. Saving such a
model compresses it in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from swcheck import EngineError, EngineRequest, Loaded, Scheme, read_request, restored_environment

SCHEMES: Final = {
    "W4A16": Scheme("absmax", 4),
    "W4A16_ASYM": Scheme("rtn", 4),
    "W8A16": Scheme("absmax", 8),
    "W8A8": Scheme("absmax", 8, activation_bits=8),
    "FP8_DYNAMIC": Scheme("fp8", 8, activation_bits=8),
    "NVFP4A16": Scheme("nvfp4", 4),
}
PACKAGES: Final = (("llmcompressor", "llmcompressor>=0.14"),)


@dataclass(frozen=True)
class CompressedTensors:
    """``compressed-tensors:PRESET`` or ``compressed-tensors:PRESET,skip=NAME+NAME``."""

    name: str = "compressed-tensors"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a scheme that it does not know, or without its packages."""
        return read_request("compressed-tensors", spec, SCHEMES, packages=PACKAGES)

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        ignored = ["re:.*lm_head", *asked.modules_to_skip(base.model)]
        recipe = QuantizationModifier(targets="Linear", scheme=asked.scheme, ignore=ignored)
        with _undisturbed():
            try:
                oneshot(model=base.model, recipe=recipe)
            except (ValueError, RuntimeError) as error:  # above all widths that the group does not divide
                words = " ".join(str(error).split())[:300]
                raise EngineError(asked.title, words, "compressed-tensors:W8A8 has no groups") from error
        return replace(base, model=base.model.eval(), name=asked.title, scheme=SCHEMES[asked.scheme])


ENGINE: Final = CompressedTensors()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """llm-compressor without its log, and without what it sets in the environment of the process."""
    from loguru import logger

    for package in ("llmcompressor", "compressed_tensors"):
        logger.disable(package)
    try:
        with restored_environment(TOKENIZERS_PARALLELISM="false"):
            yield
    finally:
        for package in ("llmcompressor", "compressed_tensors"):
            logger.enable(package)
