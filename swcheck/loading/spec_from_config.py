"""Find the engine and scheme that would produce a given ``quantization_config``.

With such a spec the gate can quantize the reference again and prove a fix. Fields are read as the quantization tools
write them. If no engine would quantize exactly as the config says, there is no spec, because the proof would be of
another model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from swcheck.loading.scheme_from_config import scheme_of


def spec_of(config: Mapping[str, Any]) -> str | None:
    """Return the spec (``engine:scheme``) that produces this ``quantization_config``, None if none is known."""
    read = _READERS.get(str(config.get("quant_method", "")).lower())
    try:
        return read(config) if read else None
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        return None


def _bitsandbytes(config: Mapping[str, Any]) -> str | None:
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return "bitsandbytes:int8"
    kind = str(config.get("bnb_4bit_quant_type", "nf4"))
    double = "-double" if config.get("bnb_4bit_use_double_quant") else ""
    return f"bitsandbytes:{kind}{double}" if kind + double in {"nf4", "fp4", "nf4-double"} else None


def _torchao(config: Mapping[str, Any]) -> str | None:
    text = json.dumps(config.get("quant_type", ""), default=str)
    bits, group = re.search(r"int([234])\b", text), re.search(r"group_size\W+(\d+)", text)
    for kind, scheme in _TORCHAO_SCHEMES.items():
        if kind in text:
            return f"torchao:{scheme}"
    size = f",group={group[1]}" if group else ""
    if "IntxWeightOnlyConfig" in text and bits:
        return f"torchao:int{bits[1]}-weight-only{size}"
    if "Int8DynamicActivationIntxWeightConfig" in text and bits and bits[1] == "4":
        return f"torchao:int4-int8-dynamic{size}"
    return None


_TORCHAO_SCHEMES: Final = {
    "Int8WeightOnlyConfig": "int8-weight-only",
    "Int8DynamicActivationInt8WeightConfig": "int8-dynamic",
    "Float8WeightOnlyConfig": "fp8-weight-only",
}


def _compressed_tensors(config: Mapping[str, Any]) -> str | None:
    groups = list(config["config_groups"].values())
    weights, inputs = groups[0]["weights"], groups[0].get("input_activations")
    bits, kind, symmetric = int(weights["num_bits"]), weights.get("type", "int"), weights.get("symmetric", True)
    if len(groups) > 1 or weights.get("actorder") or weights.get("group_size") not in {None, -1, 128}:
        return None
    if kind == "float":
        return {(8, True): "compressed-tensors:FP8_DYNAMIC"}.get((bits, bool(inputs and inputs.get("dynamic"))))
    names = {
        (4, False, True): "W4A16",
        (4, False, False): "W4A16_ASYM",
        (8, False, True): "W8A16",
        (8, True, True): "W8A8",
    }
    name = names.get((bits, bool(inputs), bool(symmetric)))
    return name and f"compressed-tensors:{name}"


def _gptq(config: Mapping[str, Any]) -> str | None:
    """Read GPTQModel's config, or AutoRound's in the GPTQ layout. No engine here reorders columns (``desc_act``)."""
    if config.get("provider") == "auto-round":
        return _auto_round(config, "auto_gptq")
    bits, group = int(config["bits"]), int(config.get("group_size", 128))
    if bits not in {8, 4, 3, 2} or group < 1 or config.get("desc_act") or config.get("sym") is False:
        return None
    return f"gptq:{bits}bit,group={group}"


def _awq(config: Mapping[str, Any]) -> str | None:
    """Read AutoRound's config in the AWQ layout, which rescales nothing. No engine here runs AWQ itself."""
    return _auto_round(config, "auto_awq") if config.get("provider") == "auto-round" else None


def _auto_round(config: Mapping[str, Any], layout: str = "") -> str | None:
    """Read AutoRound's config for round-to-nearest without data. No engine here runs AutoRound's tuning."""
    layout = layout or str(config.get("packing_format", "auto_round")).partition(":")[0]
    scheme, bits = scheme_of({"quantization_config": {**config, "quant_method": "auto-round"}}), int(config["bits"])
    is_default = int(config.get("group_size", 128)) == 128 and config.get("data_type", "int") == "int"
    if (
        bits not in {8, 4, 3, 2}
        or scheme is None
        or scheme.calibrated
        or not is_default
        or config.get("sym") is not True
    ):
        return None
    return f"autoround:W{bits}A16" + ("" if layout == "auto_round" else f",format={layout}")


def _quanto(config: Mapping[str, Any]) -> str | None:
    """Read quanto's config as transformers writes it.

    There is no spec with quantized activations: their scales depend on calibration data.
    """
    name = {"int8": "int8", "float8": "fp8", "int4": "int4", "int2": "int2"}.get(str(config["weights"]))
    return f"quanto:{name}" if name and not config.get("activations") else None


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], str | None]]] = {
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "quanto": _quanto,
}
