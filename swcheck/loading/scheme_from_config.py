"""What a checkpoint's own config says of its quantization: a pure function from ``quantization_config`` to ``Scheme``.

The directory says what it is; nothing is configured. Fields are read as the quantizers write them (transformers' own
documentation of each ``quant_method``); what nobody can tell stays None and is held to the limits of an unknown scheme.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Final

from swcheck.base.records import Scheme

Config = Mapping[str, Any]


def scheme_of(config: Config) -> Scheme | None:
    """The scheme of a model's ``config.json``, None where it is not quantized or does not say how."""
    quantization = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(quantization, Mapping):
        return None
    read = READERS.get(str(quantization.get("quant_method", "")).lower())
    try:
        return read(quantization) if read else None
    except (TypeError, ValueError, AttributeError, KeyError):
        return None


def missing_packages(config: Config) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The quantization method of a ``config.json``, and what transformers needs for it and is not installed.

    Each package is (module, requirement); nothing is imported.
    """
    quantization = config.get("quantization_config") or config.get("compression_config")
    method = str(quantization.get("quant_method", "")).lower() if isinstance(quantization, Mapping) else ""
    return method, tuple(entry for entry in PACKAGES.get(method, ()) if not is_installed(entry[0]))


def is_installed(module: str) -> bool:
    """Whether a module can be found; ``None`` in ``sys.modules`` means it cannot."""
    parent = module.rpartition(".")[0]
    if (parent and not is_installed(parent)) or sys.modules.get(module, module) is None:
        return False
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _bitsandbytes(config: Config) -> Scheme | None:
    if config.get("load_in_4bit") or config.get("_load_in_4bit"):
        return Scheme(str(config.get("bnb_4bit_quant_type", "nf4")), 4)
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return Scheme("int8", 8, 8)
    return None


def _bits(method: str, *, calibrated: bool) -> Callable[[Config], Scheme]:
    def read(config: Config) -> Scheme:
        return Scheme(method, float(config.get("bits", config.get("w_bit", 4))), calibrated=calibrated)

    return read


def _auto_round(config: Config) -> Scheme:
    """Fields at their defaults are left out, so no ``iters`` means 200, or none where it was rounded to the nearest."""
    iters = config.get("iters")
    tuned = config.get("enable_quanted_input") is not False if iters is None else iters > 0
    return Scheme("auto-round" if tuned else "rtn", float(config.get("bits", 4)), calibrated=tuned)


def _compressed_tensors(config: Config) -> Scheme | None:
    groups = list(config.get("config_groups", {}).values())
    if not groups:
        return None
    weights, inputs = groups[0].get("weights") or {}, groups[0].get("input_activations") or {}
    bits, kind = float(weights.get("num_bits", 16)), weights.get("type", "int")
    method = {("float", 8.0): "fp8", ("float", 4.0): "nvfp4"}.get((kind, bits), "rtn")
    formats = f"{groups[0].get('format', '')} {config.get('format', '')}"
    method = "mxfp4" if "mxfp4" in formats else method
    observed = (
        weights.get("observer") not in {None, "minmax", "memoryless_minmax"} or weights.get("actorder") is not None
    )
    return Scheme(method, bits, float(inputs.get("num_bits", 16)), calibrated=observed)


def _torchao(config: Config) -> Scheme | None:
    kind = config.get("quant_type", "")
    kind = kind.get("default", kind) if isinstance(kind, Mapping) else kind
    named = isinstance(kind, Mapping) and "_type" in kind
    name = re.sub(r"[^a-z0-9]", "", str(kind["_type"] if named else kind).lower())
    inputs = 8 if "dynamicactivation" in name else 16
    found = re.search(r"int(\d)weight", name)  # the name says it, but of Intx, whose field does; the rest names layouts
    if found is None and named and isinstance(kind.get("_data"), Mapping):
        found = re.search(r"int(\d)", str(kind["_data"].get("weight_dtype")))
    if found is not None:
        return Scheme("rtn", float(found[1]), inputs)
    return Scheme("fp8", 8, inputs) if "float8" in name or "fp8" in name else None


def _quanto(config: Config) -> Scheme:
    weights, activations = str(config.get("weights", "int8")), config.get("activations")
    bits = float(re.sub(r"\D", "", weights) or 8)
    return Scheme("fp8" if "float" in weights else "rtn", bits, 8 if activations else 16)


def _hqq(config: Config) -> Scheme:
    parameters = config.get("quant_config", {}).get("weight_quant_params", config)
    return Scheme("hqq", float(parameters.get("nbits", 4)), calibrated=True)


READERS: Final[Mapping[str, Callable[[Config], Scheme | None]]] = {
    "bitsandbytes": _bitsandbytes,
    "gptq": _bits("gptq", calibrated=True),
    "awq": _bits("awq", calibrated=True),
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "compressed-tensors": _compressed_tensors,
    "torchao": _torchao,
    "quanto": _quanto,
    "hqq": _hqq,
    "fp8": lambda _config: Scheme("fp8", 8, 8),
    "fbgemm_fp8": lambda _config: Scheme("fp8", 8, 8),
    "mxfp4": lambda _config: Scheme("mxfp4", 4),
    "bitnet": lambda _config: Scheme("bitnet", 1.58, 8),
}

ACCELERATE: Final = ("accelerate", "accelerate>=1.1.0")
PACKAGES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "aqlm": (("aqlm", "aqlm[gpu,cpu]"), ACCELERATE),
    "auto-round": (("auto_round", "auto-round>=0.5"),),
    "awq": (("gptqmodel", "gptqmodel"), ACCELERATE),
    "bitnet": (ACCELERATE,),
    "bitsandbytes": (("bitsandbytes", "bitsandbytes>=0.46.1"), ACCELERATE),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors>=0.15.0"),),
    "eetq": (("kernels", "kernels"), ACCELERATE),
    "fbgemm_fp8": (("fbgemm_gpu", "fbgemm-gpu"), ACCELERATE),
    "fp8": (ACCELERATE,),
    "gptq": (("gptqmodel", "gptqmodel"), ("optimum", "optimum")),
    "higgs": (("flute", "flute-kernel>=0.3.0"), ("fast_hadamard_transform", "fast_hadamard_transform"), ACCELERATE),
    "hqq": (("hqq", "hqq"),),
    "intel/auto-round": (("auto_round", "auto-round>=0.5"),),
    "mxfp4": (ACCELERATE,),
    "quanto": (("optimum.quanto", "optimum-quanto"), ACCELERATE),
    "quark": (("quark", "amd-quark"),),
    "sinq": (("sinq", "sinq"),),
    "spqr": (("spqr_quant", "spqr_quant[gpu]"), ACCELERATE),
    "torchao": (("torchao", "torchao"),),
    "vptq": (("vptq", "vptq>=0.0.4"), ACCELERATE),
}
"""What transformers asks for on loading each method: its own list, ``validate_environment`` of every quantizer (5.17)."""
