"""The engines: ways to obtain a candidate, found by the entry-point group ``swcheck.engines``.

Discovery reads names and imports nothing. An engine is imported when it is asked for; wrong wiring is refused then,
with the culprit named. ``huggingface`` is registered like any other.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from swcheck.errors import EngineError, OptionError
from swcheck.records import Engine, Loaded

GROUP: Final = "swcheck.engines"
BUILT_IN: Final = "huggingface"
DTYPES: Final = ("float32", "bfloat16", "float16")


def installed() -> dict[str, EntryPoint]:
    """The registered engines by name, in alphabetical order; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def engine(name: str) -> Engine:
    """The engine of this name, imported now.

    Raises ``EngineError`` where it is not installed, cannot be imported, or is wired wrongly.
    """
    points = installed()
    if name not in points:
        raise EngineError(
            f"engine {name!r}",
            f"installed: {', '.join(points)}",
            f"install the distribution that brings it (swcheck-{name}?), or write the path with a leading ./",
        )
    point = points[name]
    origin = f"{point.value} of {point.dist.name if point.dist else 'an unknown distribution'}"
    try:
        found = point.load()
    except Exception as error:  # whatever an installed engine raises on import is its own fault, and said so
        raise EngineError(f"engine {name!r}", f"{origin} cannot be imported: {error}", "repair or remove it") from error
    check_wiring(found, name, origin)
    return found  # type: ignore[no-any-return]


def check_wiring(found: object, name: str, origin: str) -> None:
    """Raise ``EngineError`` unless ``found`` has the name and the ``load(spec, *, device, dtype)`` of the contract."""
    load = getattr(found, "load", None)
    parameters = inspect.signature(load).parameters if callable(load) else {}
    missing = [part for part in ("spec", "device", "dtype") if part not in parameters]
    if getattr(found, "name", None) != name or missing:
        wrong = f"load() lacks {', '.join(missing)}" if missing else f"its name is {getattr(found, 'name', None)!r}"
        raise EngineError(
            f"engine {name!r}", f"{origin}: {wrong}", "an engine has a name and load(spec, *, device, dtype)"
        )


def load(spec: str, *, device: str | None = None, dtype: str | None = None, trust_remote_code: bool = False) -> Loaded:
    """Load a model: ``tiny``, a known name, a hub id, a directory, or ``engine:scheme``.

    ``device`` None takes an accelerator if there is one; ``dtype`` None keeps the checkpoint's own;
    ``trust_remote_code`` lets a checkpoint run the Python it brings, which is refused otherwise. Returns a record
    with ``.model`` (the transformers module), ``.tokenizer`` and ``.name``. Raises ``UnknownModelError``,
    ``CheckpointError``, ``UnsafeCheckpointError``, ``ArchitectureError``, ``EngineError`` or ``OptionError``.
    """
    name, scheme = route(spec)
    if dtype is not None:
        check_dtype(dtype)
    chosen = engine(name)
    if trust_remote_code and hasattr(chosen, "trust_remote_code"):
        chosen = replace(chosen, trust_remote_code=True)  # type: ignore[type-var]
    return chosen.load(scheme, device=device, dtype=dtype)


def route(spec: str) -> tuple[str, str]:
    """Which engine ``spec`` goes to, and what that engine is asked for."""
    if not spec.strip():
        raise OptionError("a model", "an empty value", "give `tiny`, a known name, a hub id or a directory")
    name, colon, scheme = spec.partition(":")
    if colon and len(name) > 1 and not Path(spec).exists() and not any(mark in name for mark in "/\\."):
        return name, scheme
    return BUILT_IN, spec


def check(spec: str, *, trust_remote_code: bool = False) -> None:
    """Raise a worded error for a ``spec`` that cannot be loaded, in milliseconds and without importing torch."""
    name, scheme = route(spec)
    if name not in installed():
        engine(name)
    if name == BUILT_IN:
        import_module("swcheck.huggingface").check(scheme, trust_remote_code=trust_remote_code)


def check_dtype(name: str) -> None:
    """Raise ``OptionError`` for a dtype that models are not loaded in."""
    if name not in DTYPES:
        raise OptionError(f"dtype {name!r}", f"known: {', '.join(DTYPES)}", "leave it out to keep the checkpoint's own")
