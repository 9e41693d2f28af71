"""The engine ``bitsandbytes``: the reference loaded by transformers with a ``BitsAndBytesConfig``.

On a CPU with AVX512-BF16, bitsandbytes repacks its 4-bit weights at the first forward pass. From then on its own
dequantization gives other elements and a saved checkpoint is corrupt. The repacking is switched off here; the
arithmetic stays the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from swcheck import engines, skip
from swcheck.anatomy import anatomy
from swcheck.errors import EngineError, OptionError
from swcheck.records import Loaded, Scheme

SCHEMES: Final[dict[str, tuple[Scheme, dict[str, Any]]]] = {
    "int8": (Scheme("int8", 8, activation_bits=8), {"load_in_8bit": True}),
    "nf4": (Scheme("nf4", 4), {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "fp4": (Scheme("fp4", 4), {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    "nf4-double": (
        Scheme("nf4", 4),
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
}


@dataclass(frozen=True)
class BitsAndBytes:
    """``bitsandbytes:SCHEME`` or ``bitsandbytes:SCHEME,skip=NAME+NAME``."""

    name: str = "bitsandbytes"
    trust_remote_code: bool = False
    offline: bool = False

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        name, names = skip.parted(spec)
        if name not in SCHEMES:
            raise EngineError(f"scheme {spec!r} of bitsandbytes", f"known: {', '.join(SCHEMES)}", "bitsandbytes:nf4")
        if reference is None:
            raise OptionError(f"bitsandbytes:{spec}", "no reference to quantize", "name one with --model")
        try:
            import accelerate  # noqa: F401 - transformers asks for it
            import bitsandbytes
            from transformers import AutoModelForCausalLM, BitsAndBytesConfig
        except ImportError as error:
            install = "pip install 'bitsandbytes>=0.50' 'accelerate>=1.10'"
            raise EngineError(f"bitsandbytes:{spec}", str(error), install) from error
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line per layer and pass otherwise
        scheme, settings = SCHEMES[name]
        base = engines.load(
            reference, device=device, dtype=dtype, trust_remote_code=self.trust_remote_code, offline=self.offline
        )
        place, floats = base.model.device, base.model.dtype
        if scheme.weight_bits == 4:
            settings = {**settings, "bnb_4bit_compute_dtype": floats}
        if names:  # with a list of its own, bitsandbytes leaves out no head by itself
            kept = skip.linear_maps(f"bitsandbytes:{spec}", base.model, names)
            outside = skip.others(base.model, anatomy(base.model).path)
            settings = {**settings, "llm_int8_skip_modules": [*outside, *kept]}
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
        return Loaded(model, tokenizer, f"bitsandbytes:{spec}", text, source, scheme)


ENGINE: Final = BitsAndBytes()
