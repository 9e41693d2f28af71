"""The shared check of an engine: one line in an engine's own tests says whether swcheck can look inside its models.

    from swcheck import check_engine
    check_engine("bitsandbytes", ["int8", "nf4"])

Each scheme is really loaded, from a small reference. A fault of the engine raises ``AssertionError`` with what was
asked, what was found and what to try. A problem of the reference raises ``SwcheckError``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from swcheck.base.errors import OptionError
from swcheck.base.isolation import captured_output
from swcheck.base.records import Engine, SuperWeight
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.architecture.storage import device_of, plain_weight
from swcheck.loading import engines
from swcheck.loading.runtime import Runtime
from swcheck.superweights.locating.locate import PROMPT, locate
from swcheck.testing.engine_case import EngineCase, Reading, load_scheme, look_inside
from swcheck.testing.engine_checkpoint import check_saved, state_fingerprint
from swcheck.testing.engine_scheme import (
    ALPHAS,
    check_anatomy,
    check_quantized,
    check_record,
    check_scaled,
    check_traces,
    read_weight,
)
from swcheck.testing.engine_wiring import check_skip, check_unknown_scheme, wired_engine
from swcheck.testing.runtime_scheme import check_runtime

if TYPE_CHECKING:
    from torch import nn


def check_engine(
    engine: Engine | str,
    schemes: Iterable[str],
    *,
    reference: str = "tiny",
    super_weights: Sequence[SuperWeight] = (),
    device: str = "cpu",
    dtype: str | None = None,
    dequantize: Callable[[nn.Module], torch.Tensor | None] | None = None,
) -> tuple[Reading, ...]:
    """Load every scheme of ``engine``, inspect it as swcheck does, and return one reading per scheme and super weight.

    ``engine`` is the name of an installed entry point, or the engine itself. ``super_weights`` are the ones to inspect,
    by default those located in ``reference``. ``dequantize`` returns the weight ``(H, F)`` of one of the engine's
    linear maps if the module itself has no public way, or None if there is none. Raises ``AssertionError`` for whatever
    the engine does wrong.
    """
    names = tuple(schemes)
    if not names:
        raise OptionError(f"check engine {engine}", "no scheme to check", 'check_engine("rtn", ["bits=4"])')
    chosen = wired_engine(engine, names[0])
    loaded = engines.load(reference, device=device, dtype=dtype)
    ids = torch.tensor([loaded.tokenizer(PROMPT)["input_ids"]], dtype=torch.int64, device=device_of(loaded.model))
    weights = tuple(super_weights) or locate(loaded.model, token_ids=ids).super_weights
    if not weights:
        raise OptionError(f"super weights of {reference}", "none was located", "name some: super_weights=[...]")
    reader = dequantize or own_dequantization
    cases = [EngineCase(chosen, name, reference, loaded, ids, weights, device, dtype, reader) for name in names]
    check_unknown_scheme(cases[0], names)
    skip_result = check_skip(cases[0])
    return tuple(replace(reading, skip=skip_result) for case in cases for reading in _check_scheme(case))


def own_dequantization(module: nn.Module) -> torch.Tensor | None:
    """Return the weight ``(H, F)`` that the module reports: a plain tensor, or its own ``dequantize``; else None."""
    plain = plain_weight(module)
    if plain is not None:
        return plain
    weight = getattr(module, "weight", None)
    for owner in (weight, module):
        dequantize = getattr(type(owner), "dequantize", None)
        if dequantize is None or dequantize is torch.Tensor.dequantize:
            continue  # every tensor has this method; on an ordinary tensor it dequantizes nothing
        with torch.no_grad():
            matrix = dequantize(owner)
        if isinstance(matrix, torch.Tensor) and matrix.ndim == 2 and matrix.is_floating_point():
            return matrix
    return None


def save_narrowed_tiny(folder: Path, inner: int) -> str:
    """Save ``tiny`` with only the first ``inner`` of its 512 inner neurons in ``folder``, and return the path.

    For tests of widths that no group size divides. The super weight, at column 301, may be cut off.
    """
    loaded = engines.load("tiny", device="cpu")
    for layer in anatomy(loaded.model).layers:
        mlp: Any = layer.mlp
        for linear, index in (
            (mlp.gate_proj, (slice(inner),)),
            (mlp.up_proj, (slice(inner),)),
            (mlp.down_proj, (slice(None), slice(inner))),
        ):
            linear.weight = torch.nn.Parameter(linear.weight.detach()[index].clone())
    loaded.model.config.intermediate_size = inner
    with captured_output():
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def _check_scheme(case: EngineCase) -> list[Reading]:
    start = time.perf_counter()
    loaded = load_scheme(case)
    seconds = time.perf_counter() - start
    if isinstance(getattr(loaded, "model", None), Runtime):
        return check_runtime(case, loaded, seconds)
    scheme = check_record(case, loaded)
    initial_state = state_fingerprint(loaded.model)
    check_anatomy(case, loaded)
    sight, logits = look_inside(case, loaded.model)
    check_quantized(case, sight, scheme)
    state = state_fingerprint(loaded.model)
    readings = [read_weight(case, loaded, sight, weight, scheme, seconds) for weight in case.weights]
    for reading in readings:
        for alpha in ALPHAS:
            check_scaled(case, loaded.model, reading, alpha, logits)
    check_traces(case, loaded.model, state, logits)
    saved = check_saved(case, loaded, initial_state, logits)
    return [replace(reading, saved=saved) for reading in readings]
