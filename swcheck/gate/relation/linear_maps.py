"""How far each linear map of a candidate answers off, and which ones a quantizer silently left as they were.

Where a group does not divide a width, or no pattern meets a name, a quantizer goes on without a word: the file is larger
and better than its scheme. A map that answers fixed random inputs as the reference's does was not quantized.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from swcheck.lens.map_responses import MapResponses, response_errors, responses_of
from swcheck.loading.skip_option import split_skip
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from torch import nn

SAME: Final = 1e-6
"""Two answers of one map differ by less than this where both are computed in float32."""

SAME_IN_TWO_BYTES: Final = 2e-3
"""And by less than this where one of them is computed in two bytes; eight bits of weights cost three times as much."""

EXCLUDING: Final = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore", "exclude", "ignored_layers")
"""Where the quantizers' configs name the modules that they leave alone."""


@measurement("echoes", Cost.LINEAR_MAPS, of_weights=True)
def map_responses(subject: Subject) -> MapResponses:
    """Return what every linear map of the layers answers to the fixed random inputs, as count sketches."""
    return responses_of(subject.anatomy)


def why_unknown(reference: Subject) -> str:
    """Return why it is not known what every linear map of the reference answers; empty where it is, or can be measured."""
    if reference.is_measurable:
        return ""
    if not map_responses.knows(reference):
        return "that needs the reference: it has too many linear maps for a baseline"
    return (
        "" if map_responses(reference).comparable else "the baseline was measured where other random numbers are drawn"
    )


@measurement("map errors", Cost.LINEAR_MAPS, in_baseline=InBaseline.NO)
def map_errors(candidate: Subject, reference: Subject) -> list[tuple[str, float]]:
    """Return every linear map with the error of its answers, relative to the norm of the reference's; worst first.

    Names begin with the layer, as ``1.mlp.down_proj``. A map that the candidate does not have is left out.
    """
    expected = map_responses(reference)  # first: it may need the reference in memory
    return sorted(response_errors(candidate.anatomy, expected).items(), key=lambda item: -item[1])


def not_quantized(candidate: Subject, reference: Subject) -> tuple[str, ...]:
    """Return the linear maps of the layers that the scheme means and that answer as the reference's, by their names.

    Those that the config, or the engine's ``skip=``, names to be left out do not count. Empty for a candidate without a
    scheme of less than 16 bits, and where the reference's answers are not known.
    """
    scheme = candidate.scheme
    if scheme is None or not scheme.weight_bits < 16 or scheme.method == "lora" or why_unknown(reference):
        return ()
    slack = SAME_IN_TWO_BYTES if scheme.weight_bits <= 8 else SAME
    errors = map_errors(candidate, reference)
    path, config = candidate.anatomy.path, quantization_of(candidate.module)
    same = [f"{path}.{name}" for name, error in errors if error <= slack]
    order = {name: number for number, (name, _) in enumerate(candidate.module.named_modules())}
    meant = (name for name in same if not _excluded(name, config, candidate.name) and _targeted(name, config))
    return tuple(sorted(meant, key=lambda name: order.get(name, 0)))


def quantization_of(model: nn.Module) -> Mapping[str, Any]:
    """Return the ``quantization_config`` of a model as plain values; empty where it has none."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return config
    found: Any = config.to_dict()
    method = getattr(config, "quant_method", "")
    return {**found, "quant_method": getattr(method, "value", method)}


def _excluded(name: str, config: Mapping[str, Any], spec: str) -> bool:
    """Whether a module was left out by name: in its config, or by ``skip=`` in the spec it was made by."""
    return any(_matches(name, str(pattern)) for pattern in (*_exclusions(config), *split_skip(spec)[1]))


def _exclusions(config: Mapping[str, Any]) -> Iterator[str]:
    for key in EXCLUDING:
        found = config.get(key) or ()
        yield from (found,) if isinstance(found, str) else found
    for pattern in config.get("dynamic") or ():
        if str(pattern).startswith("-:"):
            yield f"re:{str(pattern)[2:]}"
    for pattern, options in (config.get("extra_config") or {}).items():
        if isinstance(options, Mapping) and float(options.get("bits", 0)) >= 16:
            yield str(pattern)


def _targeted(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the groups of a config mean this module: all linear maps, unless they name some."""
    groups = (config.get("config_groups") or {}).values()
    targets = [str(target) for group in groups if isinstance(group, Mapping) for target in group.get("targets") or ()]
    return not targets or any(target == "Linear" or _matches(name, target) for target in targets)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern means a module: its name, the end or a part of it, a container, a glob, or ``re:``."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return f".{pattern}." in f".{name}." or fnmatchcase(name, pattern)
