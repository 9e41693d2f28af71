"""The option ``skip=NAME+NAME`` of an engine: modules to leave unquantized.

With it the gate proves the fix that it proposes: it quantizes the reference again with some modules skipped, and
measures the result. For engines, built in or not: each translates the names into the options of its quantizer.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Final

from swcheck.base.errors import EngineError, OptionError

SKIP_OPTION: Final = "skip="


def split_skip(spec: str) -> tuple[str, tuple[str, ...]]:
    """Return ``spec`` without its ``skip=NAME+NAME``, and the names. The option may stand behind any comma."""
    parts = spec.split(",")
    skips = [part.removeprefix(SKIP_OPTION) for part in parts[1:] if part.startswith(SKIP_OPTION)]
    others = [part for part in parts[1:] if not part.startswith(SKIP_OPTION)]
    return ",".join([parts[0], *others]), tuple(name.strip() for skip in skips for name in skip.split("+"))


def read_skip(title: str, spec: str) -> tuple[str, tuple[str, ...]]:
    """As ``split_skip``, but raise ``OptionError`` about ``title`` if a name is empty or the option has no value."""
    remaining, names = split_skip(spec)
    if "" in names or "skip" in remaining.split(",")[1:]:
        raise OptionError(title, "skip= without a module's name", "skip=model.layers.1.mlp.down_proj, more behind a +")
    return remaining, names


def modules_to_skip(title: str, model: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the qualified names of the linear maps that are one of ``names`` or lie inside one, in the model's order.

    ``title`` is the candidate, as in ``torchao:int8-weight-only,skip=...``, for the error message. Raises
    ``EngineError`` for a name that is no module, or a module without a linear map.
    """
    from torch import nn

    maps = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        if not any(_is_within(linear_map, name) for linear_map in maps):
            close = get_close_matches(name, maps, n=1, cutoff=0.0)
            raise EngineError(
                title, f"no linear map in this model is {name!r} or in it", f"skip={close[0]}" if close else ""
            )
    return tuple(linear_map for linear_map in maps if any(_is_within(linear_map, name) for name in names))


def linear_maps_outside(model: Any, container: str) -> tuple[str, ...]:
    """Return the qualified names of the linear maps of ``model`` outside the module ``container``.

    The important one is the head: quantizers skip it by default, but not once they are given other names to skip.
    """
    from torch import nn

    maps = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for name in maps if not _is_within(name, container))


def _is_within(name: str, container: str) -> bool:
    return bool(container) and (name == container or name.startswith(f"{container}."))
