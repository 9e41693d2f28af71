"""What to do about a red candidate: a snippet to paste, its price in bytes, and whether it works.

The snippet is for the tool that wrote the candidate, as far as the candidate tells; the price is what the named
matrices weigh more unquantized. A fix is proven before anybody ships it: where an engine of this machine makes such a
candidate, the reference is quantized again with these matrices left alone, and measured; else the candidate is measured
with the reference's own matrices given back through a hook. That is done for a red gate only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from swcheck import engines
from swcheck.coverage import quantization_of
from swcheck.lent import sizes_of
from swcheck.observe import plain_weight
from swcheck.proof import Pairs, Trial, prove
from swcheck.respelling import spec_of
from swcheck.skip import OPTION, parted

if TYPE_CHECKING:
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
WRAPPED: Final = "base_model.model."
"""What an adapter's wrapper puts before every name."""

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


def _tag(name: str) -> str:
    """Hqq's linear tag: the name of a map without its place."""
    return ".".join(part for part in name.split(".") if part not in {"model", "layers"} and not part.isdecimal())


def _hqq(names: Sequence[str]) -> str:
    tags = _listed(tuple(dict.fromkeys(_tag(name) for name in names)))
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

UNTOUCHED: Final[Mapping[str, str]] = {
    "pruned": "prune these matrices less",
    "finetuned": "leave these matrices as they were, or train them more gently",
}
"""What to do for a matrix that no quantizer has damaged, by what was done to the candidate."""

USELESS: Final[Mapping[str, str]] = {
    "quantized": "more bits or smaller groups: to spare these matrices alone does not help",
    "pruned": "prune less: to spare these matrices alone does not help",
    "finetuned": "train more gently: to spare these matrices alone does not help",
}
"""What is left where sparing the named matrices was tried and brought nothing back."""

USUAL: Final = ("compressed-tensors", "bitsandbytes", "torchao", "quanto", "gguf")
"""What is shown where nobody says which tool it was."""


@dataclass(frozen=True)
class Remedy:
    """``snippet`` to paste, ``price`` in bytes (None where it cannot be told), and the words and numbers of its proof.

    ``known`` says whether the tool that made the candidate is known, and with it that one did; ``kind`` is what was done
    to it.
    """

    snippet: str
    price: int | None
    proof: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    known: bool = True
    kind: str = "quantized"

    @property
    def words(self) -> str:
        """What to try, in one line."""
        start = "" if self.known or self.kind != "quantized" else "if a quantizer made it, "
        if self.facts.get("perplexity") is not None and not self.facts["proven"]:
            return f"{start}{USELESS[self.kind]}"
        if self.kind in UNTOUCHED and not self.known:
            return f"{UNTOUCHED[self.kind]}: {'; '.join(self.facts['matrices'])}"
        price = "" if self.price is None else f" (+{self.price:,} bytes)"
        return f"{start}leave these matrices unquantized: {self.snippet}{price}"


def remedy(
    candidate: Subject,
    reference: Subject,
    matrices: Sequence[str],
    pair: Pairs = ((), ()),
    *,
    kind: str = "quantized",
) -> Remedy:
    """How to keep ``matrices``, qualified names in the candidate; ``pair`` are super weights and where they stand in it.

    ``kind`` is what was done to the candidate: what was pruned or trained needs no quantizer's words.
    """
    names = tuple(name.removeprefix(WRAPPED) for name in matrices)
    again = respelled(candidate, names)
    price = price_of(candidate, _left_out(candidate, matrices))
    words, known = snippet(candidate, names), again is not None or tool_of(candidate) in SNIPPETS
    key = ("remedy", names, tuple(pair[0]))
    trial = Trial(candidate, reference, tuple(matrices), again, pair)
    proof, facts = candidate.beside(reference, key, lambda: prove(trial))  # after that its weights may be gone
    facts = {"matrices": list(names), "bytes": price, **facts}
    return Remedy(words, price, proof, facts, known, kind)


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
    return f"{made},{OPTION}{'+'.join(dict.fromkeys((*spared(candidate), *names)))}"


def spared(candidate: Subject) -> tuple[str, ...]:
    """The linear maps of the layers that a candidate keeps in plain floats, where it packs others."""
    path = candidate.body.path
    maps = {
        name: plain_weight(module) is not None
        for name, module in candidate.live.named_modules()
        if name.startswith(f"{path}.")
        and getattr(module, "in_features", 0)
        and not any(True for _ in module.children())
    }
    return () if all(maps.values()) else tuple(name for name, plain in maps.items() if plain)


def _left_out(candidate: Subject, matrices: Sequence[str]) -> tuple[str, ...]:
    """What the snippet leaves out: hqq knows no single layer, every other tool the named maps alone."""
    if tool_of(candidate) != "hqq":
        return tuple(matrices)
    tags = {_tag(name) for name in matrices}
    return tuple(name for name, _ in candidate.live.named_modules() if _tag(name) in tags)


def price_of(candidate: Subject, matrices: Sequence[str]) -> int | None:
    """How many bytes more these matrices take in the candidate's own float dtype than quantized; None if not known."""
    if candidate.scheme is None or candidate.scheme.weight_bits >= 16:
        return None
    get = getattr(candidate.live, "get_input_embeddings", None)
    table = getattr(get(), "weight", None) if get else None
    floats = table.dtype.itemsize * 8 if table is not None and table.is_floating_point() else 16
    total = 0
    for name in matrices:
        total += math.prod(sizes_of(candidate.live.get_submodule(name)))
    return round(total * (floats - candidate.scheme.weight_bits) / 8) if total else None
