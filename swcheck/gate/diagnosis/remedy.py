"""Proposes a fix of a red candidate: a snippet to paste, its price in bytes, and the proof whether it helps.

The snippet is for the tool that made the candidate, if the candidate says which. The price is how many more bytes the
named matrices take unquantized. Whether the fix helps is measured by ``fix_trial``, for a red gate only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.gate.diagnosis.evidence.reference_matrices import ADAPTER_PREFIX, map_sizes
from swcheck.gate.diagnosis.fix_trial import Fix, Weights, try_fix
from swcheck.gate.diagnosis.snippets import SNIPPETS, hqq_tag
from swcheck.gate.relation.linear_maps import quantization_config_of
from swcheck.lens.architecture.storage import has_plain_weight
from swcheck.loading import engines
from swcheck.loading.skip_option import SKIP_OPTION, split_skip
from swcheck.loading.spec_from_config import spec_of
from swcheck.superweights.subject.measurement import Slot
from swcheck.superweights.subject.memory import Cost, InBaseline

if TYPE_CHECKING:
    from swcheck.superweights.subject.subject import Subject

NOT_QUANTIZED: Final[Mapping[str, str]] = {
    "pruned": "prune these matrices less",
    "finetuned": "leave these matrices as they were, or train them more gently",
    "merged": "take these matrices from one of the merged models alone",
}
"""What to try for matrices that no quantizer has damaged, by the kind of the candidate."""

DOES_NOT_HELP: Final[Mapping[str, str]] = {
    "quantized": "more bits or smaller groups",
    "pruned": "prune less",
    "finetuned": "train more gently",
    "merged": "merge with other weights, or models that are nearer to each other",
}
"""What to try if leaving the matrices unquantized was measured and does not help, by the kind of the candidate."""

SPARED: Final = "to spare these matrices alone does not help"

TOO_LITTLE: Final = 0.25
"""A fix that returns less than this share of the lost nats is not advised: it would stay red."""

LEAST_LOSS: Final = 1.05
"""Up to this perplexity ratio a fix is judged by what the super weights write, not by the loss that it returns."""

COMMON_TOOLS: Final = ("compressed-tensors", "bitsandbytes", "torchao", "quanto", "gguf")
"""The tools whose snippets are shown if it is not known which one made the candidate."""

_PROOF: Final = Slot[tuple[str, dict[str, Any]]]("remedy", Cost.FIX, in_baseline=InBaseline.NO)


@dataclass(frozen=True)
class Remedy:
    """How to keep the matrices: ``snippet`` to paste, ``price`` in bytes (None if not known), ``proof`` in words.

    ``known`` says whether the tool that made the candidate is known. ``kind`` is ``quantized``, ``finetuned`` or
    ``pruned``.
    """

    snippet: str
    price: int | None
    proof: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    known: bool = True
    kind: str = "quantized"

    @property
    def words(self) -> str:
        """The advice, in one line."""
        start = self._start
        if self.facts.get("perplexity") is not None and not self.facts["proven"]:
            return self.words_without_help
        if self.kind in NOT_QUANTIZED and not self.known:
            return f"{NOT_QUANTIZED[self.kind]}: {'; '.join(self.facts['matrices'])}"
        price = "" if self.price is None else f" (+{self.price:,} bytes)"
        return f"{start}leave these matrices unquantized{price}: {self.snippet}"

    @property
    def words_without_help(self) -> str:
        """The advice where to keep the matrices was measured, and does not help what is red."""
        return f"{self._start}{DOES_NOT_HELP[self.kind]} ({SPARED})"

    @property
    def _start(self) -> str:
        return "" if self.known or self.kind != "quantized" else "if a quantizer made it, "

    @property
    def words_for_all_maps(self) -> str:
        """The advice where all linear maps lost precision: to spare the worst ones, only if that returns enough."""
        if self.returned is None or self.returned >= TOO_LITTLE:
            return self.words
        spared = f"to spare the {len(self.facts['matrices'])} worst alone returns {self.returned:.0%} of the loss"
        return f"{DOES_NOT_HELP[self.kind]} ({spared})"

    @property
    def returned(self) -> float | None:
        """The share of the lost nats that the fix returned; None if that was not measured, or next to nothing was lost."""
        before, now = (self.facts.get(name) for name in ("before", "perplexity"))
        if before is None or now is None or not before > LEAST_LOSS:
            return None
        return 1 - math.log(now) / math.log(before) if now > 0 and math.isfinite(now) else 0.0


def remedy(
    candidate: Subject,
    reference: Subject,
    matrices: Sequence[str],
    weights: Weights = ((), ()),
    *,
    kind: str = "quantized",
) -> Remedy:
    """Return how to keep ``matrices``, given by their qualified names in the candidate, and whether that helps.

    ``weights`` are the super weights. ``kind`` is what was done to the candidate: a pruned or fine-tuned one needs no
    quantizer's snippet.
    """
    names = tuple(name.removeprefix(ADAPTER_PREFIX) for name in matrices)
    spec = spec_without(candidate, names)
    price = price_of(candidate, _unquantized_by_snippet(candidate, matrices))
    words, known = snippet(candidate, names), spec is not None or tool_of(candidate) in SNIPPETS
    fix = Fix(candidate, reference, tuple(matrices), spec, weights)
    inputs = (names, tuple(weights[0]), reference)
    proof, facts = _PROOF.recall(candidate, inputs, lambda: try_fix(fix))  # this may free the weights, so it comes last
    facts = {"matrices": list(names), "bytes": price, **facts}
    return Remedy(words, price, proof, facts, known, kind)


def snippet(candidate: Subject, names: Sequence[str]) -> str:
    """Return the line to paste for the tool that made the candidate; for each common tool if that is not known."""
    tool = tool_of(candidate)
    made = spec_without(candidate, names)
    if tool in SNIPPETS:
        return SNIPPETS[tool](names)
    if made is not None:
        return made
    return "; ".join(SNIPPETS[common](names) for common in COMMON_TOOLS)


def tool_of(candidate: Subject) -> str:
    """Return the engine or the ``quant_method`` that made a candidate; empty if neither is known."""
    name, scheme = engines.route(candidate.name)
    if name != engines.BUILT_IN and scheme != candidate.name and name in engines.installed_engines():
        return name
    if candidate.is_runtime:
        return ""
    method = str(quantization_config_of(candidate.module).get("quant_method", "")).rpartition(".")[2].lower()
    return {"intel/auto-round": "auto-round", "quanto": "quanto"}.get(method, method)


def spec_without(candidate: Subject, names: Sequence[str]) -> str | None:
    """Return the spec that makes this candidate with ``names`` left unquantized; None if no installed engine can."""
    name, scheme = engines.route(candidate.name)
    if name != engines.BUILT_IN and name in engines.installed_engines():
        place = scheme.partition(",")[0]
        if place.endswith((".gguf", ".GGUF")) or "://" in place or Path(place).exists():
            return None  # a file, or the model of a server, is as it is
        bare, before = split_skip(scheme)
        return f"{name}:{bare},{SKIP_OPTION}{'+'.join(dict.fromkeys((*before, *names)))}"
    if candidate.is_runtime:
        return None
    made = spec_of(quantization_config_of(candidate.module))
    if made is None or made.partition(":")[0] not in engines.installed_engines():
        return None
    return f"{made},{SKIP_OPTION}{'+'.join(dict.fromkeys((*unquantized_maps(candidate), *names)))}"


def unquantized_maps(candidate: Subject) -> tuple[str, ...]:
    """Return the linear maps of the layers that a candidate keeps in plain floats; empty if it packs none."""
    path = candidate.anatomy.path
    maps = {
        name: has_plain_weight(module)
        for name, module in candidate.module.named_modules()
        if name.startswith(f"{path}.")
        and getattr(module, "in_features", 0)
        and not any(True for _ in module.children())
    }
    return () if all(maps.values()) else tuple(name for name, plain in maps.items() if plain)


def _unquantized_by_snippet(candidate: Subject, matrices: Sequence[str]) -> tuple[str, ...]:
    """Return the maps that the snippet leaves out: for hqq, which cannot name a layer, the same maps of all layers."""
    if candidate.is_runtime or tool_of(candidate) != "hqq":
        return tuple(matrices)
    tags = {hqq_tag(name) for name in matrices}
    return tuple(name for name, _ in candidate.module.named_modules() if hqq_tag(name) in tags)


def price_of(candidate: Subject, matrices: Sequence[str]) -> int | None:
    """Return how many more bytes these matrices take in the candidate's float dtype than quantized, if known."""
    if candidate.is_runtime or candidate.scheme is None or candidate.scheme.weight_bits >= 16:
        return None
    get = getattr(candidate.module, "get_input_embeddings", None)
    table = getattr(get(), "weight", None) if get else None
    floats = table.dtype.itemsize * 8 if table is not None and table.is_floating_point() else 16
    total = 0
    for name in matrices:
        total += math.prod(map_sizes(candidate.module.get_submodule(name)))
    return round(total * (floats - candidate.scheme.weight_bits) / 8) if total else None
