"""The default limits of all checks, each with its source.

No limit is on an absolute magnitude. Each is on a value relative to the reference, or to the same model with no weight
zeroed. A user (``swcheck.run.limit_overrides``) or a caller may set another limit in place of a default; its source
then begins with ``GIVEN``.
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
"""The limit of each measured value.

Candidate over reference: ``contribution``, ``activation``, ``perplexity``, and ``dependence`` (capped nats of
collapse). Candidate against reference: ``kl`` in nats per token, ``top1`` as a share of the positions. Perplexity of
one model with weights zeroed over its perplexity intact: ``collapse`` for the super weights, ``null`` for matched
weights, ``others`` for the largest other weights.
"""

BY_SCHEME: Final[Mapping[str, tuple[float | None, float | None, float | None]]] = MappingProxyType(
    {
        "8-bit weights": (1.01, 0.005, 0.97),
        "8-bit weights and activations": (1.03, 0.02, 0.95),
        "good 4-bit": (1.05, 0.05, 0.90),
        "plain 4-bit": (1.10, 0.08, 0.88),
        "4-bit weights and activations": (1.20, 0.15, 0.85),
        "3-bit": (1.25, 0.20, 0.80),
        "2-bit": (1.60, 0.45, 0.70),
        "fine-tuned or pruned": (None, None, None),
    }
)
"""The limits of perplexity ratio, mean KL (nats) and top-1 agreement for each class of scheme. None: not judged.

Derived from published measurements of real quantizations (llama.cpp's and torchao's tables, 2024-2025). KL and top-1 of
the two classes with quantized activations are interpolated between their neighbours. 2 bits are held to what llama.cpp's
q2_K keeps of Llama-3-8B: x1.565, 0.445 nats, 71.1 % (of Llama-2-7B x1.108, 0.109 nats, 85.6 %).
"""

NOTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "2-bit": "2-bit: what q2_K keeps of Llama-3-8B (x1.565, KL 0.445, top-1 71 %); plain rounding to 2 bits keeps less"
    }
)
"""The source of the limits of a class, where it is not the usual one."""

JUDGED_OR_REPORTED: Final = frozenset({"perplexity", "kl", "top1"})
"""The limits that a user may lift: the value is then reported, not judged."""

SINGLE_MODEL_LIMITS: Final = frozenset({"collapse", "null", "others"})
"""The limits that apply to a single model. All others compare a candidate with its reference."""

GIVEN: Final = "given"
"""The source of a limit that a user or a caller set begins with this word."""

KINDS: Final = ("auto", "quantized", "finetuned", "merged", "pruned", "distilled")
"""What may have been done to a candidate (``--swcheck-kind``).

``auto`` decides by the candidate's config, its engine or its weights: ``swcheck.gate.relation.candidate_kind``. ``distilled`` has to
be said: a student's weights tell nothing of its teacher.
"""

TOP1_CONFIDENCE: Final = 0.6
"""The mean top-1 probability of the models from which the top-1 limits were derived.

The top token of a less confident model changes more often.
"""

KIND_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {"finetuned": "fine-tuned", "merged": "merged", "pruned": "pruned", "distilled": "distilled"}
)

FEW_PARAMETERS: Final = 3_000_000_000
"""A smaller model with a good 4-bit scheme is held to the limits of a plain 4-bit scheme."""

NULL_DRAWS: Final = 3
"""How many times a matched null is drawn at random. The worst draw counts."""

MOST_GUESSED: Final = 1.5
"""A candidate that was taken for fine-tuned or pruned by its weights may have at most this perplexity ratio.

A kind that nobody declared must not excuse a diverged training or a lost layer, which were measured at x1.7 to x12.
"""

BY_PATTERN: Final[Mapping[str, tuple[float, str]]] = MappingProxyType(
    {
        "2:4": (2.2, "2:4 sparsity: Wanda and SparseGPT keep LLaMA-7B within x2.03 and x1.94"),
        "4:8": (1.7, "4:8 sparsity: Wanda and SparseGPT keep LLaMA-7B within x1.51 and x1.52"),
    }
)
"""The largest perplexity ratio, and its source, of a candidate that was pruned in a pattern: N of M neighbours are left.

From table 3 of arXiv 2306.11695 (perplexity 5.68 dense; 50 % in no pattern: x1.28 and x1.27, inside ``MOST_GUESSED``).
"""

DISTILLED: Final = Limit(
    None, 1.5, "distilled: DistilGPT2 keeps GPT-2 within x1.29 on WikiText-103, by its model card; half of the layers"
)
"""The largest perplexity ratio of a student over its teacher. There are no published numbers of its KL divergence."""

CRITICAL: Final = 10.0
CONTRIBUTING: Final = 1.1
"""The smallest collapse ratios of a critical and of a contributing set of super weights."""


def collapse_class(collapse: float) -> str:
    """Return the class of a set of super weights with this collapse ratio: critical, contributing or inert."""
    if collapse >= CRITICAL:
        return "critical"
    return "contributing" if collapse >= CONTRIBUTING else "inert"


def scheme_class(scheme: Scheme | None, parameters: int = FEW_PARAMETERS) -> str | None:
    """Return the key of ``BY_SCHEME`` for a scheme, None for an unknown scheme.

    ``parameters`` is the model's number of parameters: see ``FEW_PARAMETERS``.
    """
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
    """Return all limits, those of perplexity, KL and top-1 agreement chosen for a candidate of this scheme."""
    kind = scheme_class(scheme, parameters)
    if kind is None:
        return DEFAULTS
    perplexity, kl, top1 = BY_SCHEME[kind]
    usual = f"{kind}: {'reported, not judged' if perplexity is None else 'what published ones keep'}"
    source = NOTES.get(kind, usual)
    chosen = {
        "perplexity": Limit(None, perplexity, source),
        "kl": Limit(None, kl, source),
        "top1": Limit(top1, None, source),
    }
    return MappingProxyType({**DEFAULTS, **chosen})


def limits_for_kind(name: str, *, sure: bool = True, pattern: str = "") -> Mapping[str, Limit]:
    """Return all limits for a candidate of kind ``finetuned``, ``merged``, ``pruned`` or ``distilled``.

    Perplexity (but of a distilled one), KL and top-1 agreement are then reported, not judged. ``sure`` is False if the kind
    was only inferred from the weights; then a perplexity ratio above ``MOST_GUESSED`` still fails, or above that of its ``pattern``.
    """
    most, source = BY_PATTERN.get(pattern, (MOST_GUESSED, f"taken for {KIND_WORDS[name]}"))
    reported = f"{KIND_WORDS[name]}: reported, not judged"
    told_by = "files" if name == "merged" else "weights"
    inferred = (
        f"{source}{'' if pattern else f' by its {told_by}, which nobody declared'}; --swcheck-kind={name} lifts it"
    )
    perplexity = Limit(None, None, reported) if sure else Limit(None, most, inferred)
    chosen = {
        "activation": Limit(0.5, 2.0, f"{KIND_WORDS[name]}: a healthy one was seen at x1.21"),
        "perplexity": DISTILLED if name == "distilled" else perplexity,
        "kl": Limit(None, None, reported),
        "top1": Limit(None, None, reported),
    }
    return MappingProxyType({**DEFAULTS, **chosen})


def is_given(limit: Limit) -> bool:
    """Return whether a user or a caller set this limit. Such a limit is never adjusted."""
    return limit.source.startswith(GIVEN)


def scaled_to_confidence(limit: Limit, confidence: float) -> Limit:
    """Return a default top-1 limit, lowered if the reference is less confident than ``TOP1_CONFIDENCE``.

    ``confidence`` is the reference's mean top-1 probability. The top token of such a reference changes more often, in
    healthy candidates too.
    """
    if limit.low is None or confidence >= TOP1_CONFIDENCE or is_given(limit):
        return limit
    low = 1 - (1 - limit.low) * (1 - confidence) / (1 - TOP1_CONFIDENCE)
    return Limit(max(0.0, low), None, f"{limit.source}, scaled to a confidence of {confidence:.2f}")


def chosen_limit(name: str, low: float | None = None, high: float | None = None) -> Limit:
    """Return the default limit ``name``, with its ends replaced by those that the caller gives.

    Raises ``OptionError`` if an end is not finite or the interval is empty.
    """
    default = DEFAULTS[name]
    if low in {None, default.low} and high in {None, default.high}:
        return default
    chosen = Limit(default.low if low is None else low, default.high if high is None else high, GIVEN)
    ends = [end for end in (chosen.low, chosen.high) if end is not None]
    if any(not math.isfinite(end) for end in ends) or (len(ends) == 2 and ends[0] > ends[1]):
        raise OptionError(f"limit {name} = {chosen}", "an interval that nothing finite is in", f"default: {default}")
    return chosen
