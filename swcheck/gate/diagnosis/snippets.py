"""The line to paste that leaves some matrices unquantized, for each tool (from the tool's own documentation)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

GGUF_NAMES: Final[Mapping[str, str]] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.experts": "ffn_down_exps",
    "mlp.gate": "ffn_gate_inp",
}
"""The names of a layer's linear maps in a GGUF file, by their names in transformers."""

LM_HEAD: Final = "lm_head"
"""Listed too where the list replaces the tool's own default, which leaves the head unquantized."""


def _listed(names: Sequence[str], *more: str) -> str:
    return "[" + ", ".join(f'"{name}"' for name in (*more, *names)) + "]"


def _gguf(names: Sequence[str]) -> str:
    found = [(re.search(r"\.(\d+)\.", name), ".".join(name.split(".")[-2:])) for name in names]
    blocks = [f"blk.{layer[1]}.{GGUF_NAMES[name]}" for layer, name in found if layer and name in GGUF_NAMES]
    if not blocks:
        return "llama-quantize --tensor-type NAME=f16, with the names of these tensors in the file"
    return "llama-quantize " + " ".join(f"--tensor-type {block}=f16" for block in sorted(set(blocks)))


def _gptq(names: Sequence[str]) -> str:
    entries = ", ".join('"-:^' + re.escape(name).replace("\\", "\\\\") + '$": {}' for name in names)
    return f"GPTQ dynamic={{{entries}}}"


def hqq_tag(name: str) -> str:
    """Return hqq's linear tag of a map: its name without the layer, so that one tag means this map in all layers."""
    return ".".join(part for part in name.split(".") if part not in {"model", "layers"} and not part.isdecimal())


def _hqq(names: Sequence[str]) -> str:
    tags = _listed(tuple(dict.fromkeys(hqq_tag(name) for name in names)))
    return f"hqq (by linear tag, in every layer) quant_config={{tag: config for tag in model.linear_tags if tag not in {tags}}}"


SNIPPETS: Final[Mapping[str, Callable[[Sequence[str]], str]]] = {
    "compressed-tensors": lambda names: f"llm-compressor ignore={_listed(names, LM_HEAD)}",
    "bitsandbytes": lambda names: f"bitsandbytes llm_int8_skip_modules={_listed(names, LM_HEAD)}",
    "torchao": lambda names: f"torchao modules_to_not_convert={_listed(names, LM_HEAD)}",
    "quanto": lambda names: f"quanto exclude={_listed(names)}",
    "gguf": _gguf,
    "llamacpp": _gguf,
    "gptq": _gptq,
    "hqq": _hqq,
    "awq": lambda names: f"AWQ modules_to_not_convert={_listed(names)}",
    "auto-round": lambda names: "AutoRound layer_config={" + ", ".join(f'"{name}": {{"bits": 16}}' for name in names) + "}",
}  # fmt: skip
"""The line to paste for each tool, by the name of its engine or its ``quant_method``."""
