"""Checks of an engine itself: how it is wired, what it refuses, what it can leave unquantized."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from swcheck.base.errors import EngineError, SwcheckError
from swcheck.base.isolation import captured_output
from swcheck.base.records import Engine
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.architecture.storage import plain_weight
from swcheck.loading import engines
from swcheck.loading.runtime import Runtime
from swcheck.testing.engine_case import (
    HEAVY,
    NOT_OFFERED,
    SIXTEEN_BITS,
    UNKNOWN_SCHEME,
    EngineCase,
    load_scheme,
    look_inside,
    refuse,
)
from swcheck.testing.engine_scheme import check_quantized
from swcheck.testing.runtime_scheme import check_kept_in_runtime

if TYPE_CHECKING:
    from torch import nn


def wired_engine(engine: Engine | str, scheme: str) -> Engine:
    """Return the engine, its wiring checked; an installed one must not import a heavy package before it loads."""
    if isinstance(engine, str):
        if engine in engines.installed_engines():
            _check_light(engine, scheme)
        try:
            return engines.import_engine(engine)
        except EngineError as error:
            raise AssertionError(str(error)) from error
    name, kind = getattr(engine, "name", None), type(engine)
    if not isinstance(name, str) or not name or any(mark in name for mark in ":/\\.~ "):
        refuse(
            f"the name of {kind.__qualname__}", repr(name), "a plain word, as in the entry point: name = 'my-engine'"
        )
    try:
        engines.check_interface(engine, name, f"{kind.__module__}:{kind.__qualname__}")
    except EngineError as error:
        raise AssertionError(str(error)) from error
    return engine


def _check_light(name: str, scheme: str) -> None:
    """Refuse an installed engine that imports torch or another heavy package before it loads a model."""
    asked = f"import {engines.installed_engines()[name].module}, engine {name!r}"
    code = f"import sys; from swcheck.loading.engines import check_scheme, installed_engines; check_scheme(installed_engines()[{name!r}].load(), {scheme!r})"
    code += f"; print('heavy:', *[n for n in {HEAVY!r} if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if result.returncode:
        refuse(asked, " ".join(result.stderr.strip().splitlines()[-3:]), "repair or remove it")
    heavy = result.stdout.strip().splitlines()[-1].split()[1:]
    if heavy:
        refuse(asked, f"that alone imports {', '.join(heavy)}", "import it inside load(), and in no check()")


def check_unknown_scheme(case: EngineCase, known: Sequence[str]) -> None:
    """Check that the engine refuses a scheme it does not know with a worded error that names those it knows."""
    asked = f"{case.engine.name}:{UNKNOWN_SCHEME}"
    try:
        with captured_output():
            case.engine.load(UNKNOWN_SCHEME, reference=case.spec, device=case.device, dtype=case.dtype)
    except SwcheckError as error:
        known_names = {
            name.replace("=", ",").split(",")[0] for name in known if not any(mark in name for mark in "/\\.")
        }
        if known_names and not any(word in str(error) for word in known_names):
            refuse(f"{asked}: an error that lists the schemes", str(error).replace("\n", " "), "name all of them")
        _check_check_method(case, known, str(error))
    except Exception as error:  # an engine may raise anything here, and that is what is tested
        found = f"{type(error).__name__}: {error}"
        refuse(f"{asked}: a worded error", found, "raise swcheck.EngineError(asked, found, attempt)")
    else:
        refuse(f"{asked}: an error", "it was loaded", "raise swcheck.EngineError for what you do not know")


def _check_check_method(case: EngineCase, known: Sequence[str], refusal: str) -> None:
    """Check that the optional ``check(spec)`` accepts what ``load`` accepts, and raises the same errors."""
    if not hasattr(case.engine, "check"):
        return
    errors: dict[str, str] = {}
    for scheme in (*known, UNKNOWN_SCHEME):
        try:
            case.engine.check(scheme)
        except Exception as error:  # an engine may raise anything
            errors[scheme] = str(error)
    mismatch = next((f"check({scheme!r}): {errors[scheme]}" for scheme in known if scheme in errors), "")
    if not mismatch and errors.get(UNKNOWN_SCHEME) != refusal:
        mismatch = f"check({UNKNOWN_SCHEME!r}): {errors.get(UNKNOWN_SCHEME, 'nothing is raised')}"
    if mismatch:
        refuse(f"{case.engine.name}: check() as load()", mismatch, "let load() begin with what check() does")


def check_skip(case: EngineCase) -> str:
    """Check that ``,skip=NAME`` leaves that map as in the reference, quantizes the others, and refuses an unknown name.

    Returns "kept", or ``NOT_OFFERED`` if the engine refuses the option.
    """
    layer = case.weights[0].layer
    name = anatomy(case.reference.model).down_name(layer)
    skipping = replace(case, scheme=f"{case.scheme},skip={name}")
    try:
        loaded = load_scheme(skipping)
    except SwcheckError:
        return NOT_OFFERED
    if isinstance(loaded.model, Runtime):
        check_kept_in_runtime(skipping, loaded.model, name)
        return _refuses_misspelt(case, name)
    sight, _ = look_inside(skipping, loaded.model)
    body = anatomy(case.reference.model)
    error = _output_error(body.down_projections[layer], sight.inputs[layer], sight.outputs[layer])
    if not error <= SIXTEEN_BITS:
        skipping.refuse(
            f"{name} as the reference has it", f"it answers {error:.2%} off", "hand the name on, or refuse the option"
        )
    if loaded.scheme is not None:
        check_quantized(skipping, sight, loaded.scheme, kept=(layer,))
    return _refuses_misspelt(case, name)


def _refuses_misspelt(case: EngineCase, name: str) -> str:
    """Check that a name that is none is refused; return "kept"."""
    misspelt = replace(case, scheme=f"{case.scheme},skip={name}_no_such_module")
    try:
        misspelt.load()
    except SwcheckError:
        return "kept"
    return misspelt.refuse(
        "an error: nothing has this name",
        "it was loaded",
        "EngineRequest.modules_to_skip knows the names",
    )


def _output_error(reference_map: nn.Module, x: torch.Tensor, written: torch.Tensor) -> float:
    """Return by which share of its norm the output of the median token differs from the reference map's."""
    weight = plain_weight(reference_map)
    if weight is None:
        return 0.0
    expected = torch.nn.functional.linear(x.detach(), weight.to(x.dtype)).float()
    return float(((expected - written.detach().float()).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)).median())
