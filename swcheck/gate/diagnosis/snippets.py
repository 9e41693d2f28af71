"""The line to paste that leaves some matrices unquantized, in the words of each tool (from its own documentation)."""

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
}
HEAD: Final = "lm_head"
"""Named along where a list of names takes the place of the quantizer's own, which spares the head."""


def _listed(names: Sequence[str], *more: str) -> str:
    return "[" + ", ".join(f'"{name}"' for name in (*more, *names)) + "]"


def _gguf(names: Sequence[str]) -> str:
    found = [(re.search(r"\.(\d+)\.", name), name) for name in names]
    blocks = [
        f"blk.{layer[1]}.{GGUF_NAMES.get('.'.join(name.split('.')[-2:]), name)}" for layer, name in found if layer
    ]
    return "llama-quantize " + " ".join(f"--tensor-type {block}=f16" for block in sorted(set(blocks)))


def _gptq(names: Sequence[str]) -> str:
    entries = ", ".join('"-:^' + re.escape(name).replace("\\", "\\\\") + '$": {}' for name in names)
    return f"GPTQ dynamic={{{entries}}}"


def hqq_tag(name: str) -> str:
    """Return hqq's linear tag of a map: its name without its place; one tag stands for the maps of all layers."""
    return ".".join(part for part in name.split(".") if part not in {"model", "layers"} and not part.isdecimal())


def _hqq(names: Sequence[str]) -> str:
    tags = _listed(tuple(dict.fromkeys(hqq_tag(name) for name in names)))
    return f"hqq (by linear tag, in every layer) quant_config={{tag: config for tag in model.linear_tags if tag not in {tags}}}"


SNIPPETS: Final[Mapping[str, Callable[[Sequence[str]], str]]] = {
    "compressed-tensors": lambda names: f"llm-compressor ignore={_listed(names, HEAD)}",
    "bitsandbytes": lambda names: f"bitsandbytes llm_int8_skip_modules={_listed(names, HEAD)}",
    "torchao": lambda names: f"torchao modules_to_not_convert={_listed(names, HEAD)}",
    "quanto": lambda names: f"quanto exclude={_listed(names)}",
    "gguf": _gguf,
    "gptq": _gptq,
    "hqq": _hqq,
    "awq": lambda names: f"AWQ modules_to_not_convert={_listed(names)}",
    "auto-round": lambda names: "AutoRound layer_config={" + ", ".join(f'"{name}": {{"bits": 16}}' for name in names) + "}",
}  # fmt: skip
"""The pasteable line for each tool, by the name of its engine or its ``quant_method``; each tool's own documentation."""
