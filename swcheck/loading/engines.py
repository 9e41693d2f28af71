"""Find and use engines: ways to obtain a model, registered in the entry-point group ``swcheck.engines``.

Listing the engines reads their names and imports nothing. An engine is imported when it is first used. If its interface
is wrong, the error then names the distribution it comes from. The built-in loader, ``huggingface``, is registered like
any other engine.

A *spec* is the name of a model as a user types it: ``tiny``, a hub id, a directory, or ``engine:scheme``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import CheckpointError, EngineError, OptionError, SwcheckError, brief_message
from swcheck.base.isolation import captured_output, undisturbed
from swcheck.base.reading.bounded import open_regular
from swcheck.base.records import Engine, Loaded
from swcheck.loading import hub, tiny

if TYPE_CHECKING:
    import torch

ENTRY_POINT_GROUP: Final = "swcheck.engines"
BUILT_IN: Final = "huggingface"
ENGINE_DISTRIBUTIONS: Final = (("adapter_config.json", "swcheck-peft"), ("*.gguf", "swcheck-gguf"))
"""File patterns of formats that need an engine, with the distribution to install: the advice if that is missing."""

DTYPES: Final = ("float32", "bfloat16", "float16")


def installed_engines() -> dict[str, EntryPoint]:
    """Return the registered engines by name, in alphabetical order. Nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)}


def import_engine(name: str) -> Engine:
    """Import and return the engine of this name.

    Raises ``EngineError`` if it is not installed, cannot be imported, or has a wrong interface.
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
    except Exception as error:  # an engine may raise anything on import; the error names it as the cause
        raise EngineError(f"engine {name!r}", f"{origin} cannot be imported: {error}", "repair or remove it") from error
    check_interface(found, name, origin)
    return found  # type: ignore[no-any-return]


def check_interface(found: object, name: str, origin: str) -> None:
    """Raise ``EngineError`` unless ``found`` has the interface of an ``Engine`` called ``name``.

    That is an attribute ``name`` and a method ``load(spec, *, reference, device, dtype)``. ``origin`` says in the
    message where the engine comes from.
    """
    load = getattr(found, "load", None)
    parameters = inspect.signature(load).parameters if callable(load) else {}
    missing = [parameter for parameter in ("spec", "reference", "device", "dtype") if parameter not in parameters]
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
    stream: bool | None = None,
    tensor_parallel: bool = False,
) -> Loaded:
    """Load a model: ``tiny``, ``tiny-pair``, a known name, a hub id, a directory, or ``engine:scheme``.

    ``reference`` is the name or directory of the model that a quantizing engine quantizes; loaders ignore it.
    ``device`` None takes an accelerator if there is one. ``device_map`` spreads the model over devices and main memory
    instead, with accelerate; not every engine supports it. ``dtype`` None keeps the checkpoint's own.
    ``trust_remote_code`` lets a checkpoint run its own Python code, which is refused otherwise. ``offline`` forbids
    downloads. ``stream`` reads the weights from the disk each time they are used, on the CPU; None does so for a model
    that does not fit into memory. ``tensor_parallel`` shares the weights among the processes of torchrun, which all have
    to call this, and all that follows, in the same order.

    Returns a record with ``.model`` (the transformers module), ``.tokenizer`` and ``.name``. Raises
    ``UnknownModelError``, ``CheckpointError``, ``UnsafeCheckpointError``, ``ArchitectureError``, ``EngineError`` or
    ``OptionError``.
    """
    spec = os.fspath(spec) if isinstance(spec, os.PathLike) else spec
    name, scheme = route(spec)
    if dtype is not None:
        dtype = str(dtype).removeprefix("torch.")
        check_dtype(dtype)
    if name == BUILT_IN:
        _check_engine_installed(spec)
    chosen = _with_options(import_engine(name), trust_remote_code=trust_remote_code, offline=offline)
    if tensor_parallel:
        chosen = _tensor_parallel(chosen, name, {"device map": device_map, "device": device, "stream": stream})
    if stream is not None:
        chosen = _streaming(chosen, name, stream, device_map)
    if device_map is not None:
        check_device_map(device_map)
        with_device_map = _with_options(chosen, device_map=device_map)
        if with_device_map == chosen:
            raise EngineError(f"engine {name!r}", "it cannot spread a model over devices", "leave out the device map")
        chosen = with_device_map
    # the built-in engine prints what it downloads
    with undisturbed(), nullcontext() if name == BUILT_IN else captured_output():
        try:
            return chosen.load(scheme, reference=reference, device=device, dtype=dtype)
        except SwcheckError:
            raise
        except ImportError as error:  # a package is missing, or incompatible with another
            raise EngineError(
                spec, f"a package that it needs: {brief_message(error)}", "install or repair it"
            ) from error


def _tensor_parallel(chosen: Engine, name: str, others: Mapping[str, object]) -> Engine:
    """Return a copy of an engine that shares a model among processes. ``others`` also say where a model is: none is given."""
    given = next((word for word, value in others.items() if value), None)
    if given is not None:
        found = "two answers to where a model is"
        raise OptionError(f"tensor parallel with a {given} of {others[given]}", found, "give one of them")
    if not hasattr(chosen, "tensor_parallel"):
        found = "it cannot share a model among the processes of torchrun"
        raise EngineError(f"engine {name!r}", found, "save what it makes, and give the directory; or run one process")
    return _with_options(chosen, tensor_parallel=True, stream=False)


def _streaming(chosen: Engine, name: str, stream: bool, device_map: str | None) -> Engine:
    """Return a copy of an engine that streams, or does not. Raises an error where it is asked to and cannot."""
    if stream and device_map is not None:
        raise OptionError(
            f"stream with the device map {device_map}", "two answers to where a model is", "give one of them"
        )
    found = _with_options(chosen, stream=stream)
    if stream and getattr(found, "stream", None) is None:
        raise EngineError(f"engine {name!r}", "it cannot stream a model from its files", "leave out streaming")
    return found


def _with_options(chosen: Engine, **options: Any) -> Engine:
    """Return a copy of an engine with ``options`` set. Options that the engine has no field for are ignored."""
    if not is_dataclass(chosen):
        return chosen
    known = {field.name for field in fields(chosen)}
    return replace(chosen, **{name: value for name, value in options.items() if name in known})


def route(spec: str) -> tuple[str, str]:
    """Return the name of the engine that ``spec`` goes to, and the spec that the engine gets.

    Raises ``OptionError`` if ``spec`` is empty, no text, or has a NUL byte.
    """
    if not isinstance(spec, str) or not spec.strip() or "\0" in spec:
        found = type(spec).__name__ if not isinstance(spec, str) else "a NUL byte" if spec.strip() else "an empty value"
        raise OptionError("the name of a model", found, "give `tiny`, a known name, a hub id or a directory")
    name, colon, scheme = spec.partition(":")
    if colon and len(name) > 1 and not os.path.exists(spec) and not any(mark in name for mark in "/\\.~"):  # noqa: PTH110 - never raises
        return name, scheme
    return claiming_engine(spec) or BUILT_IN, spec


def claiming_engine(spec: str) -> str | None:
    """Return the name of the engine that claims an existing path as its own format, None if no engine does.

    An engine may have a method ``claims(path)``. An engine that cannot be imported claims nothing. Raises
    ``EngineError`` if several engines claim the path.
    """
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 - pathlib raises for an unknown user
    if spec in tiny.CHECKPOINTS or not os.path.exists(path):  # noqa: PTH110 - pathlib raises for too long a name
        return None
    found = [name for name in installed_engines() if name != BUILT_IN and _is_claimed_by(name, path)]
    if len(found) > 1:
        raise EngineError(f"an engine for {spec}", f"claimed by {', '.join(found)}", f"name one: {found[0]}:{spec}")
    return found[0] if found else None


def _is_claimed_by(name: str, path: Path) -> bool:
    try:
        return bool(getattr(import_engine(name), "claims", lambda _path: False)(path))
    except Exception:  # a broken engine is reported when a user asks for it
        return False


def _check_engine_installed(spec: str) -> None:
    """Raise ``EngineError``, with an install command, if a path is of a format whose engine is not installed.

    Raises ``CheckpointError`` for what is named like a file of it, and is none.
    """
    path = Path(os.path.expanduser(spec))  # noqa: PTH111 - as above
    if not os.path.exists(path) or (path / "config.json").exists():  # noqa: PTH110 - as above
        return
    for pattern, distribution in ENGINE_DISTRIBUTIONS:
        file = path if path.match(pattern) else path / pattern
        if file.is_dir():
            found, hint = "a directory that is named like a file", "give the file itself, or rename the directory"
            raise CheckpointError(f"{pattern.strip('*')} in {spec}", found, hint)
        if file.exists():
            open_regular(file, f"{pattern.strip('*')} in {spec}").close()
            found = f"{pattern.strip('*')}, which none of these engines reads: {', '.join(installed_engines())}"
            raise EngineError(f"a model in {spec}", found, f"pip install {distribution}")


def check(spec: str, *, trust_remote_code: bool = False, offline: bool = False) -> None:
    """Raise a ``SwcheckError`` if ``spec`` cannot be loaded, as far as can be told quickly and without importing torch.

    An engine is imported; if it has a method ``check(spec)``, that is called.
    """
    name, scheme = route(spec)
    if name != BUILT_IN:
        check_scheme(import_engine(name), scheme)
    else:
        _check_engine_installed(spec)
        if spec in installed_engines() and spec != BUILT_IN and hub.existing_path(spec) is None:
            check_scheme(import_engine(spec), "")  # most engines answer with the schemes that they know
            raise EngineError(f"model {spec!r}", "an engine's name, without a scheme", f"--candidate={spec}:SCHEME")
        hub.check(scheme, trust_remote_code=trust_remote_code, offline=offline)


def download(spec: str, *, offline: bool = False) -> None:
    """Download the model of ``spec`` if it is not on this machine. Raises ``UnknownModelError`` if that fails."""
    name, scheme = route(spec)
    if name == BUILT_IN and scheme not in tiny.CHECKPOINTS:
        hub.find_directory(scheme, offline=offline)


def check_scheme(chosen: Engine, scheme: str) -> None:
    """Call ``chosen.check(scheme)``, if the engine has that method.

    Raises the ``SwcheckError`` that ``check`` raises. Any other exception becomes an ``EngineError``.
    """
    try:
        getattr(chosen, "check", lambda _spec: None)(scheme)
    except SwcheckError:
        raise
    except Exception as error:  # an engine may raise anything here; the error names it as the cause
        found = f"its check() fails: {type(error).__name__}: {brief_message(error)}"
        raise EngineError(f"{chosen.name}:{scheme}", found, "repair or remove that engine") from error


def name_of(spec: str) -> str:
    """Return the name of a model for tables: that of its directory, else ``spec`` itself."""
    name, scheme = route(spec)
    return str(hub.name_of(scheme)) if name == BUILT_IN or scheme == spec else spec


def canonical_name(spec: str) -> str:
    """Return a canonical name: two specs of the same model give the same one."""
    name, scheme = route(spec)
    return str(hub.canonical_name(scheme)) if name == BUILT_IN or scheme == spec else spec


def directory_of(spec: str, *, whole: bool = True) -> Path | None:
    """Return the local directory of a model, maybe in the hub's cache. None if there is none, or an engine makes it.

    Unless it has to be ``whole``, a snapshot in the cache may hold ``config.json`` alone.
    """
    name, scheme = route(spec)
    if name != BUILT_IN:
        return None
    if scheme in tiny.CHECKPOINTS:
        return tiny.CHECKPOINTS[scheme]
    found: Path | None = hub.local_directory(scheme, whole=whole)
    return found


def needs_reference(spec: str) -> bool:
    """Return whether the candidate is made from its reference by an engine, rather than read from files of its own."""
    name, scheme = route(spec)
    return name != BUILT_IN and hub.existing_path(scheme) is None


def tokenizer_of(spec: str, *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer of a model, None if the model is not on this machine or an engine makes it."""
    directory = directory_of(spec)
    with undisturbed():
        return None if directory is None else _built_in_module().tokenizer_of(directory, trust_remote_code)


def device_of(name: str | None) -> str:
    """Return the type (``cpu``, ``cuda``, ...) of the device ``name``, or of the default device for None.

    Raises ``OptionError`` if the device cannot be used.
    """
    return str(_built_in_module().device_of(name).type)


def text_of(spec: str) -> str | None:
    """Return the text of an embedded model to measure on, None for all other models."""
    return tiny.HELDOUT.read_text(encoding="utf-8") if spec in tiny.CHECKPOINTS else None


def check_dtype(name: str) -> None:
    """Raise ``OptionError`` unless models can be loaded in this dtype."""
    if name not in DTYPES:
        raise OptionError(f"dtype {name!r}", f"known: {', '.join(DTYPES)}", "leave it out to keep the checkpoint's own")


def check_device(name: str) -> None:
    """Raise ``OptionError`` unless this machine has the device. Imports torch."""
    _built_in_module().device_of(name)


def check_tensor_parallel(spec: str) -> None:
    """Raise ``EngineError`` unless the engine of ``spec`` can share a model among the processes of torchrun."""
    name, _ = route(spec)
    _tensor_parallel(import_engine(name), name, {})


def check_device_map(name: str) -> None:
    """Raise ``OptionError`` for an unknown device map, ``EngineError`` if accelerate is not installed."""
    known = ("auto", "balanced", "balanced_low_0", "sequential")
    if name not in known:
        raise OptionError(f"device map {name!r}", f"known: {', '.join(known)}", "--swcheck-device-map=auto")
    if find_spec("accelerate") is None:
        raise EngineError(f"device map {name!r}", "accelerate is not installed", "pip install 'swcheck[device-map]'")


def _built_in_module() -> Any:
    return import_module("swcheck.loading.huggingface")
