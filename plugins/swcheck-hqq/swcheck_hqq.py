"""The engine ``hqq``: a fresh reference whose linear maps become ``HQQLinear``, by hqq's native API.

transformers' own way to hqq does not work in the versions that this is tested with. Groups hold 64 consecutive
weights, or as many as ``,group=N`` says. hqq saves pickles; swcheck loads none, so these candidates live in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from swcheck import engines, skip
from swcheck.anatomy import anatomy
from swcheck.errors import EngineError, OptionError
from swcheck.records import Loaded, Scheme

SCHEMES: Final = {f"{bits}bit": Scheme("hqq", bits, calibrated=True) for bits in (8, 4, 3, 2)}
"""Calibrated: hqq searches its zero points, without data."""

GROUP: Final = 64


@dataclass(frozen=True)
class Hqq:
    """``hqq:SCHEME`` or ``hqq:SCHEME,group=N``, and ``,skip=NAME+NAME``."""

    name: str = "hqq"
    trust_remote_code: bool = False
    offline: bool = False

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        words, names = skip.parted(spec)
        name, comma, group = words.partition(",group=")
        if name not in SCHEMES:
            raise EngineError(f"scheme {spec!r} of hqq", f"known: {', '.join(SCHEMES)}", "hqq:4bit,group=64")
        if comma and (not group.isdecimal() or int(group) < 8 or int(group) % 8):
            raise OptionError(f"hqq:{spec}", f"group={group}", "a multiple of 8, such as 64")
        if reference is None:
            raise OptionError(f"hqq:{spec}", "no reference to quantize", "name one with --model")
        try:
            from hqq.core import quantize as hqq
        except ImportError as error:
            raise EngineError(f"hqq:{spec}", str(error), "pip install 'hqq>=0.2.8'") from error
        from torch import nn

        base = engines.load(
            reference, device=device, dtype=dtype, trust_remote_code=self.trust_remote_code, offline=self.offline
        )
        size = int(group) if comma else GROUP
        config = hqq.BaseQuantizeConfig(nbits=int(SCHEMES[name].weight_bits), group_size=size)
        kept = {base.model.get_submodule(one) for one in skip.linear_maps(f"hqq:{spec}", base.model, names)}
        for layer in anatomy(base.model).layers:
            for parent in list(layer.modules()):
                for child, module in list(parent.named_children()):
                    if type(module) is not nn.Linear or module in kept:
                        continue
                    if module.weight.numel() % size:
                        found = f"{child} has {module.weight.numel()} weights, no multiple of {size}"
                        raise EngineError(f"hqq:{spec}", found, f"hqq:{name},group=8")
                    packed = hqq.HQQLinear(
                        module, config, compute_dtype=module.weight.dtype, device=str(module.weight.device)
                    )
                    setattr(parent, child, packed)
        return Loaded(base.model.eval(), base.tokenizer, f"hqq:{spec}", base.text, base.source, SCHEMES[name])


ENGINE: Final = Hqq()
