"""The engine ``bitsandbytes``: the reference loaded by transformers with a ``BitsAndBytesConfig``.

On a CPU with AVX512-BF16, bitsandbytes repacks its 4-bit weights at the first forward pass. From then on its own
dequantization gives other elements and a saved checkpoint is corrupt. The repacking is switched off here; the
arithmetic stays the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from swcheck import EngineRequest, Loaded, Scheme, anatomy, linear_maps_outside, read_request

SCHEMES: Final[dict[str, tuple[Scheme, dict[str, Any]]]] = {
    "int8": (Scheme("int8", 8, activation_bits=8), {"load_in_8bit": True}),
    "nf4": (Scheme("nf4", 4), {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "fp4": (Scheme("fp4", 4), {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    "nf4-double": (
        Scheme("nf4", 4),
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
}


PACKAGES: Final = (("bitsandbytes", "bitsandbytes>=0.50"), ("accelerate", "accelerate>=1.10"))


@dataclass(frozen=True)
class BitsAndBytes:
    """``bitsandbytes:SCHEME`` or ``bitsandbytes:SCHEME,skip=NAME+NAME``."""

    name: str = "bitsandbytes"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a scheme that it does not know, or without its packages."""
        return read_request("bitsandbytes", spec, SCHEMES, packages=PACKAGES)

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        import bitsandbytes
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line per layer and pass otherwise
        scheme, settings = SCHEMES[asked.scheme]
        place, floats = base.model.device, base.model.dtype
        if scheme.weight_bits == 4:
            settings = {**settings, "bnb_4bit_compute_dtype": floats}
        if asked.names:  # with a list of its own, bitsandbytes leaves out no head by itself
            outside = linear_maps_outside(base.model, anatomy(base.model).path)
            settings = {**settings, "llm_int8_skip_modules": [*outside, *asked.modules_to_skip(base.model)]}
        source, tokenizer, text = base.source, base.tokenizer, base.text
        del base  # one of the two models at a time
        model = AutoModelForCausalLM.from_pretrained(
            source,
            quantization_config=BitsAndBytesConfig(**settings),
            dtype=floats,
            device_map={"": place},
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=self.trust_remote_code,
        ).eval()
        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.support_avx512bf16_for_cpu = False
        return Loaded(model, tokenizer, asked.title, text, source, scheme)


ENGINE: Final = BitsAndBytes()
