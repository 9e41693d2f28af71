"""The default limits, in one place, each with the reason it stands where it does.

A limit is a ratio to the reference, never an absolute number. What a run or a caller asks for in place of one is said
to be given; ``swcheck.run.limit_overrides`` reads that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from swcheck.base.errors import OptionError
from swcheck.base.records import Limit, Scheme

DEFAULTS: Final[Mapping[str, Limit]] = MappingProxyType(
    {
        "contribution": Limit(0.75, 2.0, "alpha 0.75 costs 3 % perplexity, 0.5 up to x8; alpha 2 at most 0.3 points"),
        "activation": Limit(0.75, 2.0, "as the contribution that writes it"),
        "perplexity": Limit(None, 1.05, "as for a good 4-bit quantization; the candidate's own scheme is unknown"),
        "kl": Limit(None, 0.05, "as for a good 4-bit quantization; the candidate's own scheme is unknown"),
        "top1": Limit(0.90, None, "as for a good 4-bit quantization; the candidate's own scheme is unknown"),
        "collapse": Limit(10.0, None, "a set is critical from x10; no quantization of 2 bits and more reaches it"),
        "dependence": Limit(0.5, None, "half of the reference's collapse, in nats"),
        "null": Limit(None, 1.01, "the largest of 50 such nulls in the literature is x1.001"),
        "others": Limit(None, 1.30, "the paper's own row is x1.07"),
    }
)

BY_SCHEME: Final[Mapping[str, tuple[float | None, float | None, float | None]]] = MappingProxyType(
    {
        "8-bit weights": (1.01, 0.005, 0.97),
        "8-bit weights and activations": (1.03, 0.02, 0.95),
        "good 4-bit": (1.05, 0.05, 0.90),
        "plain 4-bit": (1.10, 0.08, 0.88),
        "4-bit weights and activations": (1.20, 0.15, 0.85),
        "3-bit": (1.25, 0.20, 0.80),
        "2-bit": (None, None, None),
        "fine-tuned or pruned": (None, None, None),
    }
)
"""Perplexity ratio, mean KL in nats and top-1 agreement by kind of scheme; None is reported, not judged.

Derived from published measurements of real quantizations (llama.cpp's and torchao's tables, 2024-2025); the KL and
top-1 of the two kinds with quantized activations are interpolated between their neighbours.
"""

SINGLE_MODEL_LIMITS: Final = frozenset({"collapse", "null", "others"})
"""The limits that a model is held to on its own; the others are of a candidate beside it."""

GIVEN: Final = "given"
"""How the source of a limit begins that somebody asked for."""

KINDS: Final = ("auto", "quantized", "finetuned", "pruned")
"""What may have been done to a candidate; auto decides by its config, its engine, or its weights (``swcheck.superweights.candidate_kind``)."""

CONFIDENCE: Final = 0.6
"""The mean top-1 probability of the models the top-1 limits were taken on; a less confident one flips more."""

KIND_WORDS: Final[Mapping[str, str]] = MappingProxyType({"finetuned": "fine-tuned", "pruned": "pruned"})

FEW_PARAMETERS: Final = 3_000_000_000
"""Below this many parameters a good 4-bit scheme is held to the limits of a plain one."""

NULL_DRAWS: Final = 3
"""So many times a matched null is drawn; the worst counts."""

CRITICAL: Final = 10.0
CONTRIBUTING: Final = 1.1


def collapse_class(collapse: float) -> str:
    """What a set is called that multiplies the perplexity by ``collapse`` when it is zeroed together."""
    if collapse >= CRITICAL:
        return "critical"
    return "contributing" if collapse >= CONTRIBUTING else "inert"


def scheme_class(scheme: Scheme | None, parameters: int = FEW_PARAMETERS) -> str | None:
    """The row of ``BY_SCHEME`` that a scheme falls into, None where it is unknown."""
    if scheme is None:
        return None
    if scheme.method in {"lora", "finetuned", "pruned"}:
        return "fine-tuned or pruned"
    quantized_activations = scheme.activation_bits <= 8 or scheme.method in {"fp8", "nvfp4", "mxfp4"}
    if scheme.weight_bits >= 8:
        return "8-bit weights and activations" if quantized_activations else "8-bit weights"
    if scheme.weight_bits < 3.5:
        return "2-bit" if scheme.weight_bits < 2.5 else "3-bit"
    if quantized_activations:
        return "4-bit weights and activations"
    return "good 4-bit" if scheme.calibrated and parameters >= FEW_PARAMETERS else "plain 4-bit"


def limits_for_scheme(scheme: Scheme | None, parameters: int = FEW_PARAMETERS) -> Mapping[str, Limit]:
    """The limits of perplexity, KL and top-1 agreement for a candidate of this scheme."""
    kind = scheme_class(scheme, parameters)
    if kind is None:
        return DEFAULTS
    perplexity, kl, top1 = BY_SCHEME[kind]
    source = f"{kind}: {'reported, not judged' if perplexity is None else 'what published ones keep'}"
    chosen = {
        "perplexity": Limit(None, perplexity, source),
        "kl": Limit(None, kl, source),
        "top1": Limit(top1, None, source),
    }
    return MappingProxyType({**DEFAULTS, **chosen})


def limits_for_kind(name: str, *, sure: bool = True) -> Mapping[str, Limit]:
    """The limits of a fine-tuned or pruned candidate: what quantization is held to is reported.

    Where nobody said so (not ``sure``), a loss as large as that of a critical set stays red.
    """
    words = f"{KIND_WORDS[name]}: reported, not judged"
    guess = f"taken for {KIND_WORDS[name]} by its weights; no training costs that much, --swcheck-kind={name} lifts it"
    chosen = {
        "activation": Limit(0.5, 2.0, f"{KIND_WORDS[name]}: a healthy one was seen at x1.21"),
        "perplexity": Limit(None, None, words) if sure else Limit(None, CRITICAL, guess),
        "kl": Limit(None, None, words),
        "top1": Limit(None, None, words),
    }
    return MappingProxyType({**DEFAULTS, **chosen})


def is_given(limit: Limit) -> bool:
    """Whether somebody asked for this limit; it then stands as it was asked for."""
    return limit.source.startswith(GIVEN)


def scaled_to_confidence(limit: Limit, confidence: float) -> Limit:
    """A default top-1 limit for a reference less confident than the models it was taken on: more flips are ordinary."""
    if limit.low is None or confidence >= CONFIDENCE or is_given(limit):
        return limit
    low = 1 - (1 - limit.low) * (1 - confidence) / (1 - CONFIDENCE)
    return Limit(max(0.0, low), None, f"{limit.source}, scaled to a confidence of {confidence:.2f}")


def chosen_limit(name: str, low: float | None = None, high: float | None = None) -> Limit:
    """The default limit ``name``, with what the caller gave in place of it.

    Raises ``OptionError`` for a limit that is not finite or an interval that is empty.
    """
    default = DEFAULTS[name]
    if low in {None, default.low} and high in {None, default.high}:
        return default
    chosen = Limit(default.low if low is None else low, default.high if high is None else high, GIVEN)
    ends = [end for end in (chosen.low, chosen.high) if end is not None]
    if any(not math.isfinite(end) for end in ends) or (len(ends) == 2 and ends[0] > ends[1]):
        raise OptionError(f"limit {name} = {chosen}", "an interval that nothing finite is in", f"default: {default}")
    return chosen
