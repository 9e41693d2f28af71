"""What an engine is asked to leave unquantized: ``skip=NAME``, several names joined by ``+``.

With it a gate proves the fix it proposes: the reference is quantized again that way, and measured. For engines, built
in or not; each hands the names on in its own quantizer's words.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, Final

from swcheck.base.errors import EngineError, OptionError

OPTION: Final = "skip="


def split_skip(spec: str) -> tuple[str, tuple[str, ...]]:
    """``spec`` without its ``skip=NAME+NAME``, wherever that stands behind a comma, and those names."""
    parts = spec.split(",")
    asked = [part.removeprefix(OPTION) for part in parts[1:] if part.startswith(OPTION)]
    rest = [part for part in parts[1:] if not part.startswith(OPTION)]
    return ",".join([parts[0], *rest]), tuple(name.strip() for part in asked for name in part.split("+"))


def read_skip(title: str, spec: str) -> tuple[str, tuple[str, ...]]:
    """As ``parted``; raises ``OptionError`` about ``title`` where a name is empty or the option has no value."""
    words, names = split_skip(spec)
    if "" in names or "skip" in words.split(",")[1:]:
        raise OptionError(title, "skip= without a module's name", "skip=model.layers.1.mlp.down_proj, more behind a +")
    return words, names


def modules_to_skip(title: str, model: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    """The linear maps of ``model``, fully named, that these modules are or hold; each once, in the model's order.

    ``title`` is the candidate for which they are asked, as ``torchao:int8-weight-only,skip=...``. Raises ``EngineError``
    for a name that is no module, or one without a linear map in it.
    """
    from torch import nn

    maps = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in names:
        if not any(_within(one, name) for one in maps):
            close = get_close_matches(name, maps, n=1, cutoff=0.0)
            raise EngineError(
                title, f"no linear map in this model is {name!r} or in it", f"skip={close[0]}" if close else ""
            )
    return tuple(one for one in maps if any(_within(one, name) for name in names))


def linear_maps_outside(model: Any, container: str) -> tuple[str, ...]:
    """The linear maps of ``model`` that are not in ``container``, above all its head: quantizers that are given names
    to skip no longer skip it by themselves.
    """
    from torch import nn

    maps = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for name in maps if not _within(name, container))


def _within(name: str, container: str) -> bool:
    return bool(container) and (name == container or name.startswith(f"{container}."))
