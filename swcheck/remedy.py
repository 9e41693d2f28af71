"""What to do about a red candidate: a snippet to paste, its price in bytes, and whether it works.

The snippet is for the tool that wrote the candidate, as far as the candidate tells; the price is what the named
matrices weigh more unquantized. A fix is proven before anybody ships it: where an engine of this machine makes such a
candidate, the reference is quantized again with these matrices left alone, and measured; else the candidate is measured
with the reference's own matrices given back through a hook. That is done for a red gate only, and never with more than
two models in memory, unless they are small or a caller keeps both there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck import engines
from swcheck.activations import LOADED_AGAIN
from swcheck.anatomy import device_of
from swcheck.coverage import quantization_of
from swcheck.errors import first_words
from swcheck.intervene import given_back
from swcheck.kinship import related
from swcheck.measure import token_nats
from swcheck.observe import first_tensor, plain_weight
from swcheck.ratios import LARGEST_EXPONENT, ratio_of, times
from swcheck.respelling import spec_of
from swcheck.skip import OPTION, parted
from swcheck.subject import subject_of

if TYPE_CHECKING:
    from swcheck.records import Loaded, SuperWeight
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
FELT: Final = 0.02
"""The least share of the lost nats that a fix has to bring back, or it does not help; a limit says what is enough."""

ROUNDED: Final = 0.01
"""So far apart may one weight be in two formats; bfloat16 rounds to 0.4 %."""

COLUMNS: Final = 32
PARALLEL: Final = 0.95
RESCALED: Final = 0.1
"""Rounding keeps most columns of a matrix within this of their size; AWQ's factors are far beyond."""

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
    names = tuple(name.removeprefix(WRAPPED) for name in matrices)
    again = respelled(candidate, names)
    price = price_of(candidate, _left_out(candidate, matrices))
    key = ("remedy", reference.mark, names, tuple(pair[0]))
    case = _Case(candidate, reference, tuple(matrices), again, pair)
    proof, facts = candidate.once(key, lambda: _proof(case))
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
        total += math.prod(_sizes(candidate.live.get_submodule(name)))
    return round(total * (floats - candidate.scheme.weight_bits) / 8) if total else None


@dataclass(frozen=True)
class _Case:
    """A red candidate and its reference; ``matrices`` by their names in it, ``again`` is the spec that spares them.

    ``pair`` are the super weights, and where they stand in the candidate.
    """

    candidate: Subject
    reference: Subject
    matrices: tuple[str, ...]
    again: str | None
    pair: Pairs

    @property
    def sinks(self) -> tuple[int, ...]:
        """The token of the default prompt at which each super weight writes."""
        return self.reference.sinks(self.pair[0], self.reference.prompt_ids()) if self.pair[0] else ()


_Measured = tuple[torch.Tensor, tuple[float, ...]]
"""The nats of every token of the reference's windows, and what the super weights write."""


def _proof(case: _Case) -> tuple[str, dict[str, Any]]:
    """The first way of a proof that can be gone here, in words and numbers; else why there is none."""
    reference, (weights, there) = case.reference, case.pair
    nats = case.candidate.against(reference)[0]
    due = reference.written(weights) if weights else ()
    had = case.candidate.contributions(there, reference.prompt_ids(), case.sinks) if weights else ()
    reference.rest()
    reasons: list[str] = []
    failed = ""
    for how, measure in _WAYS.items():
        try:
            now = measure(case)
        except _CannotError as error:
            reasons.append(str(error))
        except Exception as error:  # whatever a quantizer raises: the verdict stands without this proof
            reasons.append(f"{how}: {first_words(error)}")
            failed = f"; {reasons[-1]}"
        else:
            words, facts = _compared(reference.intact()[0], (nats, had), now, due)
            helps = "" if facts["proven"] else "this does not help, "
            more = {"by": how, "spec": case.again, "instead": "; ".join(reasons)}
            return f"{helps}{how}: {words}{failed}", {**facts, **more}
    return f"not proven: {'; '.join(reasons)}", {"proven": False}


def _compared(
    intact: torch.Tensor, before: _Measured, after: _Measured, due: Sequence[float]
) -> tuple[str, dict[str, Any]]:
    """What a fix brings back: of the nats over the ``intact`` ones, and of what the super weights are ``due`` to write."""
    lost, left = (float((nats - intact).mean()) for nats, _ in (before, after))
    was, now = (math.exp(min(LARGEST_EXPONENT, nats)) for nats in (lost, left))
    words = f"perplexity {times(now)} (was {times(was)})"
    bad, written = _worst(before[1], due), _worst(after[1], due)
    if due:
        words += f", the super weight writes x{written:z.3f} (was x{bad:z.3f})"
    nearer = bool(due) and _closeness(written) > _closeness(bad) / 2
    works = bool(torch.isfinite(after[0]).all()) and (lost - left > FELT * abs(lost) or (nearer and left <= lost))
    return words, {"proven": works, "perplexity": now, "before": was, "written": written if due else None}


class _CannotError(Exception):
    """A proof that cannot be had here, and why."""


def _quantized_again(case: _Case) -> _Measured:
    """The reference as ``again`` makes it; that model is gone afterwards."""
    candidate, reference = case.candidate, case.reference
    if case.again is None:
        raise _CannotError("no engine of this machine makes such a candidate")
    if not reference.source:
        raise _CannotError("where the reference lies is not known, so that it cannot be quantized again")
    made = subject_of(
        _third(case, case.again) if _is_kept(reference) else candidate.maker(case.again, reference.source)
    )
    has = made.contributions(case.pair[0], reference.prompt_ids(), case.sinks) if case.pair[0] else ()
    return token_nats(made.live, reference.windows()), has


def _is_kept(reference: Subject) -> bool:
    """Whether a caller keeps it in memory."""
    return reference.module is not None and reference.again is None


def _third(case: _Case, spec: str) -> Loaded:
    """What ``spec`` makes of the directory of a reference that a caller keeps in memory, as it is there."""
    reference = case.reference
    if reference.parameters > LOADED_AGAIN:
        raise _CannotError("a third model beside the two in memory need not fit")
    for name in case.matrices:
        here, filed = _counterpart(case, name).float().cpu(), reference.stored(f"{name.removeprefix(WRAPPED)}.weight")
        if not isinstance(filed, str) and not torch.allclose(here, filed.float(), rtol=ROUNDED, atol=1e-6):
            raise _CannotError(f"the reference in memory has another {name} than its directory")
    dtype = str(reference.live.dtype).removeprefix("torch.")
    place = str(device_of(reference.live))
    return engines.load(
        spec, reference=reference.source, device=place, dtype=dtype if dtype in engines.DTYPES else None
    )


def _given_back(case: _Case) -> _Measured:
    """The candidate with the reference's own matrices in the place of its own; nothing of it is remembered or changed."""
    candidate, reference = replace(case.candidate, memo=None), case.reference
    maps = _matrices(case)
    with given_back(candidate.live, maps, {}):
        has = candidate.contributions(case.pair[1], reference.prompt_ids(), case.sinks) if case.pair[1] else ()
        nats = token_nats(candidate.live, reference.windows())
    helps = float(nats.mean()) < float(case.candidate.against(reference)[0].mean())
    if not helps and any(_is_rescaled(candidate, name, weight) for name, weight in maps.items()):
        raise _CannotError(
            "matrices cannot be given back, their inputs or outputs are rescaled (as by AWQ, SmoothQuant)"
        )
    return nats, has


def _is_rescaled(candidate: Subject, name: str, weight: torch.Tensor) -> bool:
    """Whether a map answers as ``weight`` ``(H, F)`` does but for factors of its inputs or of its outputs.

    One-hot inputs of its largest columns; most of what it answers, or of the rows of that, is parallel to what is
    expected and not as large.
    """
    columns = weight.float().norm(dim=0).topk(min(COLUMNS, weight.shape[1])).indices
    probe = torch.zeros(1 + len(columns), weight.shape[1], dtype=weight.dtype)
    probe[1 + torch.arange(len(columns)), columns.cpu()] = 1
    live: Any = candidate.live
    with torch.no_grad():
        given = first_tensor(live.get_submodule(name)(probe.to(device_of(live), live.dtype))).float().cpu()
    ours, theirs = given[1:] - given[0], weight.float().cpu()[:, columns.cpu()].T
    for one, other in ((ours, theirs), (ours.T, theirs.T)):
        factors = (one * other).sum(1) / other.square().sum(1).clamp_min(1e-30)
        parallel = torch.nn.functional.cosine_similarity(one, other) > PARALLEL
        if float((parallel & ((factors - 1).abs() > RESCALED)).float().mean()) > 1 / 2:
            return True
    return False


_WAYS: Final[Mapping[str, Callable[[_Case], _Measured]]] = {
    "quantized again with them left out": _quantized_again,
    "with these matrices given back through a hook": _given_back,
}
"""How a fix is proven, the better way first."""


def _matrices(case: _Case) -> dict[str, torch.Tensor]:
    """The reference's plain weights for the named maps: from the model where it is here, else from its files."""
    candidate, reference = case.candidate, case.reference
    kin = related(candidate.portrait(), reference.portrait())
    if kin.kind in {"permuted", "rotated"}:
        raise _CannotError(f"matrices cannot be given back, {kin.words}")
    if reference.module is not None:
        return {name: _counterpart(case, name) for name in case.matrices}
    filed = {name: reference.stored(f"{name.removeprefix(WRAPPED)}.weight") for name in case.matrices}
    if all(_fits(candidate, name, weight) for name, weight in filed.items()):
        return filed  # type: ignore[return-value]
    if reference.again is None:
        words = next((weight for weight in filed.values() if isinstance(weight, str)), "its files keep them packed")
        raise _CannotError(f"matrices cannot be given back, {words}")
    maps = {name: _counterpart(case, name).clone() for name in case.matrices}
    reference.rest()
    return maps


def _fits(candidate: Subject, name: str, weight: torch.Tensor | str) -> bool:
    """Whether a stored tensor is the plain weight of a linear map of this shape."""
    if isinstance(weight, str) or weight.ndim != 2 or not weight.is_floating_point():
        return False
    return _sizes(candidate.live.get_submodule(name)) == tuple(weight.shape)


def _sizes(module: Any) -> tuple[int, ...]:
    """The outputs and inputs of a linear map, 0 where it does not say; AutoRound's packed ones spell it in one word."""
    return tuple(
        int(getattr(module, f"{side}_features", getattr(module, f"{side}features", 0))) for side in ("out", "in")
    )


def _counterpart(case: _Case, name: str) -> torch.Tensor:
    layer, _, inner = name.removeprefix(f"{case.candidate.body.path}.").partition(".")
    try:
        weight = plain_weight(case.reference.body.layers[int(layer)].get_submodule(inner))
    except (AttributeError, IndexError, ValueError) as error:
        raise _CannotError(f"the reference has no {name}") from error
    if weight is None:
        raise _CannotError(f"the reference keeps {name} packed")
    return weight.detach()


def _worst(written: Sequence[float], due: Sequence[float]) -> float:
    """Of what is written over what is due the ratio farthest from 1; 1 where nothing is due."""
    return min((ratio_of(one, other) for one, other in zip(written, due, strict=True)), key=_closeness, default=1.0)


def _closeness(ratio: float) -> float:
    """Lowest for the ratio farthest from 1."""
    return -abs(math.log(ratio)) if ratio > 0 and math.isfinite(ratio) else -math.inf
