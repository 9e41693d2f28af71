"""Compares the linear maps of a candidate with the reference's, and finds those that were silently not quantized.

Where the group size does not divide a width, or no pattern of the config matches a name, a quantizer leaves the matrix
unquantized without a message. The file is then larger, and the model better, than the scheme says. A map was not
quantized if its output for fixed random inputs is the reference's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.map_responses import response_errors
from swcheck.loading.skip_option import split_skip
from swcheck.superweights.measurements.weights import map_responses
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from torch import nn

SAME_IN_FLOAT32: Final = 1e-6
"""Two outputs of the same map differ by less than this, relative to the norm, where both are computed in float32."""

SAME_IN_TWO_BYTES: Final = 2e-3
"""The same where one of them is computed in two bytes; quantizing the weights to 8 bits gives three times as much."""

EXCLUSION_KEYS: Final = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore", "exclude", "ignored_layers")
"""The keys under which the configs of quantizers list the modules that are not quantized."""


def why_responses_unknown(reference: Subject) -> str:
    """Return in words why ``map_responses`` of the reference are unavailable; empty where known or measurable."""
    if reference.is_measurable:
        return ""
    if not map_responses.knows(reference):
        return "that needs the reference: it has too many linear maps for a baseline"
    return (
        ""
        if map_responses(reference).is_comparable
        else "the baseline was measured where other random numbers are drawn"
    )


@measurement("map errors", Cost.LINEAR_MAPS, in_baseline=InBaseline.NO)
def map_errors(candidate: Subject, reference: Subject) -> list[tuple[str, float]]:
    """Return name and error of every linear map, largest error first.

    The error is the norm of the difference of the outputs over the norm of the reference's output. Names begin with
    the layer, as ``1.mlp.down_proj``. A map that the candidate does not have is left out.
    """
    expected = map_responses(reference)  # first: it may need the reference in memory
    with evaluating(candidate.module):
        return sorted(response_errors(candidate.anatomy, expected).items(), key=lambda item: -item[1])


def not_quantized(candidate: Subject, reference: Subject) -> tuple[str, ...]:
    """Return the qualified names of the linear maps that the scheme should have quantized and that are unchanged.

    A map is left out if the config or ``skip=`` in the engine's spec excludes it. Empty for a candidate without a
    scheme, for one of 16 bits or more and for LoRA, and where the reference's map responses are not known.
    """
    scheme = candidate.scheme
    if scheme is None or not scheme.weight_bits < 16 or scheme.method == "lora" or why_responses_unknown(reference):
        return ()
    if candidate.is_runtime:
        return ()
    slack = SAME_IN_TWO_BYTES if scheme.weight_bits <= 8 else SAME_IN_FLOAT32
    errors = map_errors(candidate, reference)
    path, config = candidate.anatomy.path, quantization_config_of(candidate.module)
    same = [f"{path}.{name}" for name, error in errors if error <= slack]
    order = {name: number for number, (name, _) in enumerate(candidate.module.named_modules())}
    meant = (name for name in same if not _is_excluded(name, config, candidate.name) and _is_targeted(name, config))
    return tuple(sorted(meant, key=lambda name: order.get(name, 0)))


def quantization_config_of(model: nn.Module) -> Mapping[str, Any]:
    """Return the ``quantization_config`` of a transformers model as plain values; empty where it has none."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return config
    found: Any = config.to_dict()
    method = getattr(config, "quant_method", "")
    return {**found, "quant_method": getattr(method, "value", method)}


def _is_excluded(name: str, config: Mapping[str, Any], spec: str) -> bool:
    """Return whether the config, or ``skip=`` in the spec that the candidate was made by, excludes a module by name."""
    return any(_matches_pattern(name, str(pattern)) for pattern in (*_exclusions(config), *split_skip(spec)[1]))


def _exclusions(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the patterns of a config for modules that are not quantized, those of GPTQModel and AutoRound included."""
    for key in EXCLUSION_KEYS:
        found = config.get(key) or ()
        yield from (found,) if isinstance(found, str) else found
    for pattern in config.get("dynamic") or ():
        if str(pattern).startswith("-:"):
            yield f"re:{str(pattern)[2:]}"
    for pattern, options in (config.get("extra_config") or {}).items():
        bits = options.get("bits") if isinstance(options, Mapping) else None
        if isinstance(bits, int | float) and bits >= 16:
            yield str(pattern)


def _is_targeted(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether ``config_groups`` target a module; without any ``targets`` they target every linear map."""
    groups = (config.get("config_groups") or {}).values()
    targets = [str(target) for group in groups if isinstance(group, Mapping) for target in group.get("targets") or ()]
    return not targets or any(target == "Linear" or _matches_pattern(name, target) for target in targets)


def _matches_pattern(name: str, pattern: str) -> bool:
    """Return whether a pattern of a config matches the qualified name of a module.

    A pattern is a run of whole components of the name (``mlp``, ``model.layers.1``), a glob, or ``re:`` and a regular
    expression that matches from the start.
    """
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return f".{pattern}." in f".{name}." or fnmatchcase(name, pattern)
