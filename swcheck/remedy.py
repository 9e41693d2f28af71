"""What to do about a red candidate: a snippet to paste, its price in bytes, and whether it works.

The snippet is for the tool that wrote the candidate, as far as the candidate tells; the price is what the named
matrices weigh more unquantized. Where an engine of this machine makes such a candidate, the reference is quantized
again with these matrices left alone and measured, so that a fix is proven before anybody ships it. That is done for a
red gate only, and never with more than two models in memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck import engines
from swcheck.coverage import quantization_of
from swcheck.measure import token_nats
from swcheck.ratios import LARGEST_EXPONENT, ratio_of, times
from swcheck.skip import OPTION, parted
from swcheck.subject import subject_of

if TYPE_CHECKING:
    from swcheck.records import SuperWeight
    from swcheck.subject import Subject

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


SNIPPETS: Final[Mapping[str, Callable[[Sequence[str]], str]]] = {
    "compressed-tensors": lambda names: f"llm-compressor ignore={_listed(names, HEAD)}",
    "bitsandbytes": lambda names: f"bitsandbytes llm_int8_skip_modules={_listed(names, HEAD)}",
    "torchao": lambda names: f"torchao modules_to_not_convert={_listed(names, HEAD)}",
    "quanto": lambda names: f"quanto exclude={_listed(names)}",
    "gguf": _gguf,
    "gptq": _gptq,
    "awq": lambda names: f"AWQ modules_to_not_convert={_listed(names)}",
    "auto-round": lambda names: "AutoRound layer_config={" + ", ".join(f'"{name}": {{"bits": 16}}' for name in names) + "}",
}  # fmt: skip
"""The pasteable line for each tool, by the name of its engine or its ``quant_method``; each tool's own documentation."""

USUAL: Final = ("compressed-tensors", "bitsandbytes", "torchao", "quanto", "gguf")
"""What is shown where nobody says which tool it was."""


@dataclass(frozen=True)
class Remedy:
    """``snippet`` to paste, ``price`` in bytes (None where it cannot be told), and the words and numbers of its proof.

    ``known`` says whether the tool that made the candidate is known, and with it that one did.
    """

    snippet: str
    price: int | None
    proof: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    known: bool = True

    @property
    def words(self) -> str:
        """What to try, in one line."""
        price = "" if self.price is None else f" (+{self.price:,} bytes)"
        start = "" if self.known else "if a quantizer made it, "
        return f"{start}leave these matrices unquantized: {self.snippet}{price}"


def remedy(candidate: Subject, reference: Subject, matrices: Sequence[str], pair: Pairs = ((), ())) -> Remedy:
    """How to keep ``matrices``, qualified names in the candidate; ``pair`` are super weights and where they stand in it."""
    names = tuple(name.removeprefix("base_model.model.") for name in matrices)
    again = respelled(candidate, names)
    price = price_of(candidate, matrices)
    key = ("remedy", reference.mark, names, tuple(pair[0]))
    proof, facts = candidate.once(key, lambda: _proof(candidate, reference, again, pair))
    known = again is not None or tool_of(candidate) in SNIPPETS
    facts = {"matrices": list(names), "bytes": price, **facts}
    return Remedy(snippet(candidate, names), price, proof, facts, known)


Pairs = tuple[Sequence["SuperWeight"], Sequence["SuperWeight"]]


def snippet(candidate: Subject, names: Sequence[str]) -> str:
    """The line for the candidate's own tool; one for each usual tool where that is not known."""
    tool = tool_of(candidate)
    made = respelled(candidate, names)
    if tool in SNIPPETS:
        return SNIPPETS[tool](names)
    if made is not None:
        return made
    return "; ".join(SNIPPETS[usual](names) for usual in USUAL)


def tool_of(candidate: Subject) -> str:
    """The engine or the ``quant_method`` that wrote a candidate; empty where nothing says so."""
    name, scheme = engines.route(candidate.name)
    if name != engines.BUILT_IN and scheme != candidate.name and name in engines.installed():
        return name
    method = str(quantization_of(candidate.live).get("quant_method", "")).rpartition(".")[2].lower()
    return {"intel/auto-round": "auto-round", "quanto": "quanto"}.get(method, method)


def respelled(candidate: Subject, names: Sequence[str]) -> str | None:
    """The engine's spec that makes this candidate with ``names`` skipped; None where no engine here makes such a one."""
    name, scheme = engines.route(candidate.name)
    if name != engines.BUILT_IN and name in engines.installed():
        if scheme.endswith((".gguf", ".GGUF")):
            return None
        bare, before = parted(scheme)
        return f"{name}:{bare},{OPTION}{'+'.join(dict.fromkeys((*before, *names)))}"
    made = spec_of(quantization_of(candidate.live))
    if made is None or made.partition(":")[0] not in engines.installed():
        return None
    return f"{made},{OPTION}{'+'.join(names)}"


def spec_of(config: Mapping[str, Any]) -> str | None:
    """The engine and scheme that write this ``quantization_config``, None where none is known."""
    read = _SPECS.get(str(config.get("quant_method", "")).lower())
    try:
        return read(config) if read else None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
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
    for kind, scheme in _TORCHAO.items():
        if kind in text:
            return f"torchao:{scheme}"
    size = f",group={group[1]}" if group else ""
    if "IntxWeightOnlyConfig" in text and bits:
        return f"torchao:int{bits[1]}-weight-only{size}"
    if "Int8DynamicActivationIntxWeightConfig" in text and bits and bits[1] == "4":
        return f"torchao:int4-int8-dynamic{size}"
    return None


_TORCHAO: Final = {
    "Int8WeightOnlyConfig": "int8-weight-only",
    "Int8DynamicActivationInt8WeightConfig": "int8-dynamic",
    "Float8WeightOnlyConfig": "fp8-weight-only",
}


def _compressed(config: Mapping[str, Any]) -> str | None:
    groups = list(config["config_groups"].values())
    weights, inputs = groups[0]["weights"], groups[0].get("input_activations")
    bits, kind, symmetric = int(weights["num_bits"]), weights.get("type", "int"), weights.get("symmetric", True)
    if len(groups) > 1 or weights.get("actorder"):
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


_SPECS: Final[Mapping[str, Callable[[Mapping[str, Any]], str | None]]] = {
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
    "compressed-tensors": _compressed,
}


def price_of(candidate: Subject, matrices: Sequence[str]) -> int | None:
    """How many bytes more these matrices take in the candidate's own float dtype than quantized; None if not known."""
    if candidate.scheme is None or candidate.scheme.weight_bits >= 16:
        return None
    get = getattr(candidate.live, "get_input_embeddings", None)
    table = getattr(get(), "weight", None) if get else None
    floats = table.dtype.itemsize * 8 if table is not None and table.is_floating_point() else 16
    total = 0
    for name in matrices:
        module = candidate.live.get_submodule(name)
        total += int(getattr(module, "in_features", 0)) * int(getattr(module, "out_features", 0))
    return round(total * (floats - candidate.scheme.weight_bits) / 8) if total else None


def _proof(candidate: Subject, reference: Subject, again: str | None, pair: Pairs) -> tuple[str, dict[str, Any]]:
    """Quantize the reference again that way and measure: words and numbers."""
    reason = _hindrance(candidate, reference, again)
    if reason:
        return f"not proven: {reason}", {"proven": False}
    theirs = reference.intact()[0]
    was = math.exp(min(LARGEST_EXPONENT, float((candidate.against(reference)[0] - theirs).mean())))
    due = reference.written(pair[0]) if pair[0] else ()
    sinks = reference.sinks(pair[0], reference.prompt_ids()) if pair[0] else ()
    had = candidate.contributions(pair[1], reference.prompt_ids(), sinks) if pair[0] else ()
    reference.rest()
    try:
        nats, has = _measured(candidate, reference, str(again), (pair[0], sinks))
    except Exception as error:  # whatever a quantizer raises: the verdict stands without a proof
        return f"not proven: {again}: {' '.join(str(error).split())[:200]}", {"proven": False}
    now = math.exp(min(LARGEST_EXPONENT, float((nats - theirs).mean())))
    words = f"perplexity {times(now)} (was {times(was)})"
    written = None
    if due:
        before, after = (
            min((ratio_of(a, b) for a, b in zip(some, due, strict=True)), key=_closeness) for some in (had, has)
        )
        written = after
        words += f", the super weight writes x{after:z.3f} (was x{before:z.3f})"
    works = bool(torch.isfinite(nats).all()) and now < was
    facts = {"proven": works, "perplexity": now, "before": was, "written": written, "spec": again}
    return f"{'with this' if works else 'this does not help'}: {words}", facts


def _measured(
    candidate: Subject, reference: Subject, spec: str, places: tuple[Sequence[SuperWeight], Sequence[int]]
) -> tuple[torch.Tensor, tuple[float, ...]]:
    """The nats of what ``spec`` makes of the reference, and what its super weights write; it is gone afterwards."""
    made = subject_of(candidate.maker(spec, reference.source))
    weights, sinks = places
    has = made.contributions(weights, reference.prompt_ids(), sinks) if weights else ()
    return token_nats(made.live, reference.windows()), has


def _closeness(ratio: float) -> float:
    """Lowest for the ratio farthest from 1."""
    return -abs(math.log(ratio)) if ratio > 0 and math.isfinite(ratio) else -math.inf


def _hindrance(candidate: Subject, reference: Subject, again: str | None) -> str:
    """Why a fix cannot be proven here; empty where it can."""
    if again is None:
        return "no engine of this machine makes such a candidate"
    if not reference.source:
        return "the reference is not on this machine, only its baseline"
    if reference.module is not None and reference.again is None:
        return f"two models are in memory already; pytest --model=REFERENCE --candidate={again} does it"
    del candidate
    return ""
