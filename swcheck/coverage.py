"""What a candidate's scheme says and its layers do not: maps that a quantizer silently left as they were.

Widths that a group does not divide, names that no pattern meets: the quantizer goes on without a word, and the file is
larger and better than its scheme. A map that answers fixed random inputs as the reference's does was not quantized.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

from swcheck.skip import parted

if TYPE_CHECKING:
    from torch import nn

    from swcheck.subject import Subject

SAME: Final = 1e-6
"""Two answers of one map differ by less than this where both are computed in float32."""

HALF: Final = 2e-3
"""And by less than this where one of them is computed in two bytes; eight bits of weights cost three times as much."""

EXCLUDING: Final = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore", "exclude", "ignored_layers")
"""Where the quantizers' configs name what they leave alone."""


def unknown_maps(reference: Subject) -> str:
    """Why it is not known what every linear map of the reference answers; empty where it is, or can be measured."""
    if reference.at_hand:
        return ""
    if not reference.remembers("echoes"):
        return "that needs the reference: it has too many linear maps for a baseline"
    return "" if reference.echoes().comparable else "the baseline was measured where other random numbers are drawn"


def map_errors(candidate: Subject, reference: Subject) -> list[tuple[str, float]]:
    """Every linear map by how far its answers to fixed random inputs are off, relative to the reference's norm.

    Worst first; names begin with the layer, as ``1.mlp.down_proj``.
    """

    def compute() -> list[tuple[str, float]]:
        return sorted(candidate.map_errors(reference.echoes()).items(), key=lambda item: -item[1])

    return candidate.beside(reference, ("map errors",), compute)


def unquantized(candidate: Subject, reference: Subject) -> tuple[str, ...]:
    """The linear maps of the layers that the scheme means and that answer as the reference's; by their names.

    Those that the config or the engine's ``skip=`` leaves out by name are no news. Empty for a candidate without a
    scheme of less than 16 bits, and where the reference's answers are not known.
    """
    scheme = candidate.scheme
    if scheme is None or not scheme.weight_bits < 16 or scheme.method == "lora" or unknown_maps(reference):
        return ()
    slack = HALF if scheme.weight_bits <= 8 else SAME
    path, config = candidate.body.path, quantization_of(candidate.live)
    same = [f"{path}.{name}" for name, error in map_errors(candidate, reference) if error <= slack]
    order = {name: number for number, (name, _) in enumerate(candidate.live.named_modules())}
    meant = (name for name in same if not _excluded(name, config, candidate.name) and _targeted(name, config))
    return tuple(sorted(meant, key=lambda name: order.get(name, 0)))


def quantization_of(model: nn.Module) -> Mapping[str, Any]:
    """The ``quantization_config`` of a model, as plain values; empty where it has none."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return config
    found: Any = config.to_dict()
    method = getattr(config, "quant_method", "")
    return {**found, "quant_method": getattr(method, "value", method)}


def _excluded(name: str, config: Mapping[str, Any], spec: str) -> bool:
    """Whether a module was left out by name: in its config, or behind ``skip=`` in the spec it was made by."""
    return any(_meets(name, str(pattern)) for pattern in (*_exclusions(config), *parted(spec)[1]))


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
    groups = config.get("config_groups")
    targets = [str(one) for group in (groups or {}).values() if isinstance(group, Mapping) for one in group.get("targets") or ()]  # fmt: skip
    return not targets or any(target == "Linear" or _meets(name, target) for target in targets)


def _meets(name: str, pattern: str) -> bool:
    """Whether a pattern means a module: its name or the end or a part of it, a container, a glob, or ``re:``."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    return f".{pattern}." in f".{name}." or fnmatchcase(name, pattern)
