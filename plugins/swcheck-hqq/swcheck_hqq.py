"""The engine ``hqq``: a fresh reference whose linear maps become ``HQQLinear``, by hqq's native API.

transformers' own way to hqq does not work in the versions that this is tested with. Groups hold 64 consecutive
weights, or as many as ``,group=N`` says. hqq saves pickles; swcheck loads none, so these candidates live in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from swcheck import EngineError, EngineRequest, Loaded, Scheme, anatomy, read_request

SCHEMES: Final = {f"{bits}bit": Scheme("hqq", bits, calibrated=True) for bits in (8, 4, 3, 2)}
"""Calibrated: hqq searches its zero points, without data."""

GROUP: Final = 64
PACKAGES: Final = (("hqq", "hqq>=0.2.8"),)


@dataclass(frozen=True)
class Hqq:
    """``hqq:SCHEME`` or ``hqq:SCHEME,group=N``, and ``,skip=NAME+NAME``."""

    name: str = "hqq"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a scheme that it does not know, or without its packages."""
        asked = read_request("hqq", spec, SCHEMES, options=("group",), packages=PACKAGES)
        asked.group_size(GROUP, multiple=8)
        return asked

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        base, scheme = asked.load_reference(reference, self, device=device, dtype=dtype), SCHEMES[asked.scheme]
        from hqq.core import quantize as hqq
        from torch import nn

        size = asked.group_size(GROUP)
        config = hqq.BaseQuantizeConfig(nbits=int(scheme.weight_bits), group_size=size)
        kept = {base.model.get_submodule(one) for one in asked.modules_to_skip(base.model)}
        for layer in anatomy(base.model).layers:
            for parent in list(layer.modules()):
                for child, module in list(parent.named_children()):
                    if type(module) is not nn.Linear or module in kept:
                        continue
                    if module.weight.numel() % size:
                        found = f"{child} has {module.weight.numel()} weights, no multiple of {size}"
                        raise EngineError(asked.title, found, f"hqq:{asked.scheme},group=8")
                    packed = hqq.HQQLinear(
                        module, config, compute_dtype=module.weight.dtype, device=str(module.weight.device)
                    )
                    setattr(parent, child, packed)
        return replace(base, model=base.model.eval(), name=asked.title, scheme=scheme)


ENGINE: Final = Hqq()
