"""The engine ``torchao``: the reference loaded by transformers with a ``TorchAoConfig``.

A linear map stays ``torch.nn.Linear``; its weight becomes a tensor subclass. The integer schemes take groups of 128
inputs, or as many as ``,group=N`` says; widths that a group does not divide are refused before anything is loaded.
``,skip=NAME+NAME`` leaves linear maps unquantized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from swcheck import EngineError, EngineRequest, Loaded, OptionError, Scheme, anatomy, linear_maps_outside, read_request

GROUP: Final = 128
PACKAGES: Final = (("torchao", "torchao>=0.18"), ("accelerate", "accelerate>=1.10"))


def _weights(bits: int) -> Callable[[Any, Any, int], Any]:
    def make(ao: Any, kinds: Any, group: int) -> Any:
        return ao.IntxWeightOnlyConfig(weight_dtype=getattr(kinds, f"int{bits}"), granularity=ao.PerGroup(group))

    return make


def _inputs_too(ao: Any, kinds: Any, group: int) -> Any:
    return ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=kinds.int4, weight_granularity=ao.PerGroup(group))


SCHEMES: Final[dict[str, tuple[Scheme, Callable[[Any, Any, int], Any]]]] = {
    "int8-weight-only": (Scheme("absmax", 8), lambda ao, _kinds, _group: ao.Int8WeightOnlyConfig()),
    "int8-dynamic": (Scheme("absmax", 8, 8), lambda ao, _kinds, _group: ao.Int8DynamicActivationInt8WeightConfig()),
    "fp8-weight-only": (Scheme("fp8", 8), lambda ao, _kinds, _group: ao.Float8WeightOnlyConfig()),
    "int4-weight-only": (Scheme("absmax", 4), _weights(4)),
    "int3-weight-only": (Scheme("absmax", 3), _weights(3)),
    "int2-weight-only": (Scheme("absmax", 2), _weights(2)),
    "int4-int8-dynamic": (Scheme("absmax", 4, 8), _inputs_too),
}
GROUPED: Final = ("int4-weight-only", "int3-weight-only", "int2-weight-only", "int4-int8-dynamic")


@dataclass(frozen=True)
class TorchAo:
    """``torchao:SCHEME`` or ``torchao:SCHEME,group=N``."""

    name: str = "torchao"
    trust_remote_code: bool = False
    offline: bool = False

    def check(self, spec: str) -> EngineRequest:
        """Raise what ``load`` does for a scheme that it does not know, or without its packages."""
        asked = read_request("torchao", spec, SCHEMES, options=("group",), packages=PACKAGES)
        if "group" in asked.options and asked.scheme not in GROUPED:
            raise OptionError(asked.title, f"with groups: {', '.join(GROUPED)}", "torchao:int4-weight-only,group=32")
        asked.group_size(GROUP)
        return asked

    def load(self, spec: str, *, reference: str | None, device: str | None, dtype: str | None) -> Loaded:
        asked = self.check(spec)
        base = asked.load_reference(reference, self, device=device, dtype=dtype)
        import torch
        import torchao.quantization as ao
        from transformers import AutoModelForCausalLM, TorchAoConfig

        kept, group = asked.modules_to_skip(base.model), asked.group_size(GROUP)
        if asked.scheme in GROUPED:
            _check_widths(asked, base.model, group, kept)
        if kept:  # with a list of its own, transformers leaves out no head by itself
            kept = (*linear_maps_outside(base.model, anatomy(base.model).path), *kept)
        place, floats = base.model.device, base.model.dtype
        source, tokenizer, text = base.source, base.tokenizer, base.text
        del base  # one of the two models at a time
        scheme, make = SCHEMES[asked.scheme]
        model = AutoModelForCausalLM.from_pretrained(
            source,
            quantization_config=TorchAoConfig(make(ao, torch, group), modules_to_not_convert=list(kept) or None),
            dtype=floats,
            device_map={"": place},
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=self.trust_remote_code,
        ).eval()
        return Loaded(model, tokenizer, asked.title, text, source, scheme)


ENGINE: Final = TorchAo()


def _check_widths(asked: EngineRequest, model: Any, group: int, kept: tuple[str, ...]) -> None:
    """Refuse inner widths that the group does not divide: torchao refuses some and leaves others as they are."""
    from torch import nn

    body = anatomy(model)
    for number, layer in enumerate(body.layers):
        for path, module in layer.named_modules():
            name = f"{body.path}.{number}.{path}"
            if isinstance(module, nn.Linear) and name not in kept and module.in_features % group:
                found = f"{name} has {module.in_features} inputs, no multiple of {group}"
                fits = next(size for size in (64, 32, 16, 8, 4, 2, 1) if module.in_features % size == 0)
                raise EngineError(asked.title, found, f"torchao:{asked.scheme},group={fits}")
