"""The engine ``quanto``: a fresh reference, quantized in memory by optimum-quanto and frozen.

``int8-static`` quantizes the inputs as well, on grids calibrated with the model's own text: a probe far from the
inputs it has seen is rounded or clipped there. ``int4`` and ``int2`` compile C++ at the first forward pass.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import Any, Final

from swcheck import EngineError, EngineRequest, Loaded, Scheme, read_request

SCHEMES: Final[dict[str, tuple[Scheme, str, str | None]]] = {
    "int8": (Scheme("absmax", 8), "qint8", None),
    "fp8": (Scheme("fp8", 8), "qfloat8", None),
    "int8-static": (Scheme("absmax", 8, activation_bits=8, calibrated=True), "qint8", "qint8"),
    "int4": (Scheme("rtn", 4), "qint4", None),
    "int2": (Scheme("rtn", 2), "qint2", None),
}
PACKAGES: Final = (("optimum.quanto", "optimum-quanto>=0.2.7"),)
WINDOWS: Final = 8
LENGTH: Final = 128


@dataclass(frozen=True)
class Quanto:
    """``quanto:SCHEME`` or ``quanto:SCHEME,skip=NAME+NAME``."""

    name: str = "quanto"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a scheme that it does not know, or without its packages."""
        asked = read_request("quanto", spec, SCHEMES, packages=PACKAGES)
        if SCHEMES[asked.scheme][0].weight_bits < 8 and shutil.which("g++") is None:
            raise EngineError(asked.title, "no g++, with which quanto unpacks these", "apt install g++, or quanto:int8")
        return asked

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        from optimum import quanto

        scheme, weights, inputs = SCHEMES[asked.scheme]
        quanto.quantize(
            base.model,
            weights=getattr(quanto, weights),
            activations=inputs and getattr(quanto, inputs),
            exclude=["lm_head", "*.lm_head", *asked.modules_to_skip(base.model)],
        )
        if inputs:
            _calibrate(quanto, base)
        quanto.freeze(base.model)
        return replace(base, model=base.model.eval(), name=asked.title, scheme=scheme)


ENGINE: Final = Quanto()


def _calibrate(quanto: Any, base: Loaded) -> None:
    """Show the quantizer what the model reads: windows of its own text, or of the package's."""
    import torch

    from swcheck import evaluation_text, token_windows

    ids = token_windows(base.tokenizer, base.text or evaluation_text(), count=WINDOWS, length=LENGTH)
    with quanto.Calibration(), torch.no_grad():
        base.model(ids.to(base.model.device), use_cache=False)
