"""The engines: ways to obtain a candidate, found by the entry-point group ``swcheck.engines``.

Discovery reads names and imports nothing. An engine is imported when it is asked for; wrong wiring is refused then,
with the culprit named. ``huggingface`` is registered like any other.
"""

from __future__ import annotations

import inspect
import os
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import EngineError, OptionError, SwcheckError, brief_message
from swcheck.base.isolation import captured_output
from swcheck.base.records import Engine, Loaded
from swcheck.loading import hub, tiny

if TYPE_CHECKING:
    import torch

GROUP: Final = "swcheck.engines"
BUILT_IN: Final = "huggingface"
BRINGERS: Final = (("adapter_config.json", "swcheck-peft"), ("*.gguf", "swcheck-gguf"))
"""Files that tell what a path is, and the distribution that brings an engine for it: advice where none is installed."""

DTYPES: Final = ("float32", "bfloat16", "float16")


def installed_engines() -> dict[str, EntryPoint]:
    """The registered engines by name, in alphabetical order; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def engine(name: str) -> Engine:
    """The engine of this name, imported now.

    Raises ``EngineError`` where it is not installed, cannot be imported, or is wired wrongly.
    """
    points = installed_engines()
    if name not in points:
        close = get_close_matches(name, points, n=3)
        raise EngineError(
            f"engine {name!r}",
            f"installed: {', '.join(points)}" + (f"; the closest: {', '.join(close)}" if close else ""),
            f"install the distribution that brings it (swcheck-{name}?), or write a path with a leading ./",
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
    """Raise ``EngineError`` unless ``found`` has the name and the ``load(spec, *, reference, device, dtype)`` of the contract."""
    load = getattr(found, "load", None)
    parameters = inspect.signature(load).parameters if callable(load) else {}
    missing = [part for part in ("spec", "reference", "device", "dtype") if part not in parameters]
    if getattr(found, "name", None) != name or missing:
        wrong = f"load() lacks {', '.join(missing)}" if missing else f"its name is {getattr(found, 'name', None)!r}"
        raise EngineError(
            f"engine {name!r}", f"{origin}: {wrong}", "an engine has a name and load(spec, *, reference, device, dtype)"
        )


def load(
    spec: str | os.PathLike[str],
    *,
    reference: str | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    device_map: str | None = None,
) -> Loaded:
    """Load a model: ``tiny``, ``tiny-pair``, a known name, a hub id, a directory, or ``engine:scheme``.

    ``reference`` is the name or directory of the model that a quantizing engine works on; loaders need none.
    ``device`` None takes an accelerator if there is one; ``device_map`` spreads the model over devices and main memory
    instead, with accelerate, and not every engine can do that; ``dtype`` None keeps the checkpoint's own;
    ``trust_remote_code`` lets a checkpoint run the Python it brings, which is refused otherwise; ``offline`` forbids
    downloads. Returns a record with ``.model`` (the transformers module), ``.tokenizer`` and ``.name``. Raises
    ``UnknownModelError``, ``CheckpointError``, ``UnsafeCheckpointError``, ``ArchitectureError``, ``EngineError`` or
    ``OptionError``.
    """
    spec = os.fspath(spec) if isinstance(spec, os.PathLike) else spec
    name, scheme = route(spec)
    if dtype is not None:
        dtype = str(dtype).removeprefix("torch.")
        check_dtype(dtype)
    if name == BUILT_IN:
        _check_claimed(spec)
    chosen = _with(engine(name), trust_remote_code=trust_remote_code, offline=offline)
    if device_map is not None:
        check_device_map(device_map)
        spread = _with(chosen, device_map=device_map)
        if spread == chosen:
            raise EngineError(f"engine {name!r}", "it cannot spread a model over devices", "leave out the device map")
        chosen = spread
    with nullcontext() if name == BUILT_IN else captured_output():  # the built-in says what it downloads
        try:
            return chosen.load(scheme, reference=reference, device=device, dtype=dtype)
        except SwcheckError:
            raise
        except ImportError as error:  # a package is absent, or does not go with another
            raise EngineError(
                spec, f"a package that it needs: {brief_message(error)}", "install or repair it"
            ) from error


def _with(chosen: Engine, **wishes: Any) -> Engine:
    """``chosen`` with those of the wishes that it knows; an engine need not know any."""
    if not is_dataclass(chosen):
        return chosen
    known = {field.name for field in fields(chosen)}
    return replace(chosen, **{name: wish for name, wish in wishes.items() if name in known})


def route(spec: str) -> tuple[str, str]:
    """Which engine ``spec`` goes to, and what that engine is asked for."""
    if not isinstance(spec, str) or not spec.strip():
        found = "an empty value" if isinstance(spec, str) else type(spec).__name__
        raise OptionError("the name of a model", found, "give `tiny`, a known name, a hub id or a directory")
    name, colon, scheme = spec.partition(":")
    if colon and len(name) > 1 and not os.path.exists(spec) and not any(mark in name for mark in "/\\.~"):  # noqa: PTH110 - never raises
        return name, scheme
    return claimed(spec) or BUILT_IN, spec


def claimed(spec: str) -> str | None:
    """The engine that says an existing path is one of its own, None where none does.

    Engines may have ``claims(path)``; one that cannot be imported claims nothing. Raises ``EngineError`` where two do.
    """
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 - a user that does not exist is no error here
    if spec in tiny.CHECKPOINTS or not os.path.exists(path):  # noqa: PTH110 - too long a name is no error here
        return None
    found = [name for name in installed_engines() if name != BUILT_IN and _claims(name, path)]
    if len(found) > 1:
        raise EngineError(f"an engine for {spec}", f"claimed by {', '.join(found)}", f"name one: {found[0]}:{spec}")
    return found[0] if found else None


def _claims(name: str, path: Path) -> bool:
    try:
        return bool(getattr(engine(name), "claims", lambda _path: False)(path))
    except Exception:  # a broken engine is an error when it is asked for
        return False


def _check_claimed(spec: str) -> None:
    """Raise ``EngineError`` with the install line for a path that needs an engine which is not installed."""
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 - as above
    if not os.path.exists(path) or (path / "config.json").exists():  # noqa: PTH110 - as above
        return
    for mark, distribution in BRINGERS:
        if path.match(mark) or (path / mark).exists():
            found = f"{mark.strip('*')}, which none of these engines reads: {', '.join(installed_engines())}"
            raise EngineError(f"a model in {spec}", found, f"pip install {distribution}")


def check(spec: str, *, trust_remote_code: bool = False, offline: bool = False) -> None:
    """Raise a worded error for a ``spec`` that cannot be loaded, in milliseconds and without importing torch.

    An engine is imported and asked, where it has a ``check(spec)``.
    """
    name, scheme = route(spec)
    if name != BUILT_IN:
        ask(engine(name), scheme)
    else:
        _check_claimed(spec)
        if spec in installed_engines() and spec != BUILT_IN and hub.existing(spec) is None:
            ask(engine(spec), "")  # most say which schemes they have
            raise EngineError(f"model {spec!r}", "an engine's name, without a scheme", f"--candidate={spec}:SCHEME")
        hub.check(scheme, trust_remote_code=trust_remote_code, offline=offline)


def fetch(spec: str, *, offline: bool = False) -> None:
    """Download what ``spec`` names where it is not here yet; raises ``UnknownModelError`` where that is impossible."""
    name, scheme = route(spec)
    if name == BUILT_IN and scheme not in tiny.CHECKPOINTS:
        hub.find(scheme, offline=offline)


def ask(chosen: Engine, scheme: str) -> None:
    """Raise what ``check(spec)`` of an engine raises for ``scheme``, if it has one; what is no worded error becomes one."""
    try:
        getattr(chosen, "check", lambda _spec: None)(scheme)
    except SwcheckError:
        raise
    except Exception as error:  # whatever an installed engine raises here is its own fault, and said so
        found = f"its check() fails: {type(error).__name__}: {brief_message(error)}"
        raise EngineError(f"{chosen.name}:{scheme}", found, "repair or remove that engine") from error


def name_of(spec: str) -> str:
    """What a model is called in tables: the name of its directory, else ``spec`` itself."""
    name, scheme = route(spec)
    return str(hub.name_of(scheme)) if name == BUILT_IN or scheme == spec else spec


def meaning(spec: str) -> str:
    """What ``spec`` stands for, the same for two ways to name one model."""
    name, scheme = route(spec)
    return str(hub.meaning(scheme)) if name == BUILT_IN or scheme == spec else spec


def directory_of(spec: str) -> Path | None:
    """The local directory of a model, in the hub's cache too; None where there is none or an engine makes it."""
    name, scheme = route(spec)
    if name != BUILT_IN:
        return None
    if scheme in tiny.CHECKPOINTS:
        return tiny.CHECKPOINTS[scheme]
    found: Path | None = hub.local(scheme)
    return found


def needs_reference(spec: str) -> bool:
    """Whether an engine makes a candidate of its reference, where others are files of their own."""
    name, scheme = route(spec)
    return name != BUILT_IN and hub.existing(scheme) is None


def tokenizer_of(spec: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model that is on this machine, None where it is not, or an engine makes it."""
    directory = directory_of(spec)
    return None if directory is None else _built_in().tokenizer_of(directory, trust_remote_code)


def device_of(name: str | None) -> str:
    """The kind of device that models of this run are on; raises ``OptionError`` where it cannot be used."""
    return str(_built_in().device_of(name).type)


def text_of(spec: str) -> str | None:
    """The text that belongs to a model, None where it has none of its own."""
    return tiny.HELDOUT.read_text(encoding="utf-8") if spec in tiny.CHECKPOINTS else None


def check_dtype(name: str) -> None:
    """Raise ``OptionError`` for a dtype that models are not loaded in."""
    if name not in DTYPES:
        raise OptionError(f"dtype {name!r}", f"known: {', '.join(DTYPES)}", "leave it out to keep the checkpoint's own")


def check_device(name: str) -> None:
    """Raise ``OptionError`` for a device that this machine does not have; torch is imported to try it."""
    _built_in().device_of(name)


def check_device_map(name: str) -> None:
    """Raise ``OptionError`` for a device map that accelerate does not know, ``EngineError`` where that is missing."""
    known = ("auto", "balanced", "balanced_low_0", "sequential")
    if name not in known:
        raise OptionError(f"device map {name!r}", f"known: {', '.join(known)}", "--swcheck-device-map=auto")
    if find_spec("accelerate") is None:
        raise EngineError(f"device map {name!r}", "accelerate is not installed", "pip install 'swcheck[device-map]'")


def _built_in() -> Any:
    return import_module("swcheck.loading.huggingface")
