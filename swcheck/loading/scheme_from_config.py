"""Read a checkpoint's quantization from its config: from ``quantization_config`` to ``Scheme``.

The fields are those that the quantizers write, as transformers documents them for each ``quant_method``. The scheme is
None if the config does not tell it; the candidate is then held to the limits of an unknown scheme.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Final

from swcheck.base.records import Scheme

Config = Mapping[str, Any]

MOST_BITS: Final = 64
"""The most bits of a number; a config that says more, or NaN, says nothing."""


def scheme_of(config: Config) -> Scheme | None:
    """Return the scheme of a model's ``config.json``, None if it is not quantized or does not say how."""
    quantization = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(quantization, Mapping):
        return None
    read = READERS.get(str(quantization.get("quant_method", "")).lower())
    try:
        scheme = read(quantization) if read else None
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError):
        return None
    return (
        scheme if scheme and 0 < scheme.weight_bits <= MOST_BITS and 0 < scheme.activation_bits <= MOST_BITS else None
    )


def missing_packages(config: Config) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the quantization method of a ``config.json``, and the packages that loading it needs and that are missing.

    The method is empty if there is none. Each package is (module, requirement). Nothing is imported.
    """
    quantization = config.get("quantization_config") or config.get("compression_config")
    method = str(quantization.get("quant_method", "")).lower() if isinstance(quantization, Mapping) else ""
    return method, tuple(entry for entry in PACKAGES.get(method, ()) if not is_installed(entry[0]))


def is_installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it. ``None`` in ``sys.modules`` means no."""
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


def _bits_reader(method: str, *, calibrated: bool) -> Callable[[Config], Scheme]:
    """Return a reader for a method whose config differs only in its number of bits."""

    def read(config: Config) -> Scheme:
        return Scheme(method, float(config.get("bits", config.get("w_bit", 4))), calibrated=calibrated)

    return read


def _auto_round(config: Config) -> Scheme:
    """Read AutoRound's config, which omits fields at their defaults.

    No ``iters`` means the default of 200 tuning steps; or, with ``enable_quanted_input`` False, round-to-nearest
    without tuning.
    """
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
    calibrated = (
        weights.get("observer") not in {None, "minmax", "memoryless_minmax"} or weights.get("actorder") is not None
    )
    return Scheme(method, bits, float(inputs.get("num_bits", 16)), calibrated=calibrated)


def _torchao(config: Config) -> Scheme | None:
    kind = config.get("quant_type", "")
    kind = kind.get("default", kind) if isinstance(kind, Mapping) else kind
    has_class_name = isinstance(kind, Mapping) and "_type" in kind
    name = re.sub(r"[^a-z0-9]", "", str(kind["_type"] if has_class_name else kind).lower())
    activation_bits = 8 if "dynamicactivation" in name else 16
    # Most class names have the bits before "weight". Intx has them in a field. Other digits name layouts.
    bits = re.search(r"int(\d)weight", name)
    if bits is None and has_class_name and isinstance(kind.get("_data"), Mapping):
        bits = re.search(r"int(\d)", str(kind["_data"].get("weight_dtype")))
    if bits is not None:
        return Scheme("rtn", float(bits[1]), activation_bits)
    return Scheme("fp8", 8, activation_bits) if "float8" in name or "fp8" in name else None


def _quanto(config: Config) -> Scheme:
    weights, activations = str(config.get("weights", "int8")), config.get("activations")
    bits = float(re.sub(r"\D", "", weights) or 8)
    return Scheme("fp8" if "float" in weights else "rtn", bits, 8 if activations else 16)


def _hqq(config: Config) -> Scheme:
    parameters = config.get("quant_config", {}).get("weight_quant_params", config)
    return Scheme("hqq", float(parameters.get("nbits", 4)), calibrated=True)


READERS: Final[Mapping[str, Callable[[Config], Scheme | None]]] = {
    "bitsandbytes": _bitsandbytes,
    "gptq": _bits_reader("gptq", calibrated=True),
    "awq": _bits_reader("awq", calibrated=True),
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
"""The packages that transformers needs to load each method, as (module, requirement).

Taken from ``validate_environment`` of every quantizer in transformers 5.17.
"""
