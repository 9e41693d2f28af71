"""The shared check of an engine: one line in a third party's tests says whether swcheck can see inside what it makes.

    from swcheck.conformance import check_engine
    check_engine("bitsandbytes", ["int8", "nf4"])

Each scheme is loaded for real from a small reference. What is wrong with the engine is an ``AssertionError`` that says
what was asked, what was found and what to try; what cannot be done because of the reference is a ``SwcheckError``.
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
from swcheck.lens.anatomy import anatomy, device_of
from swcheck.lens.linear_maps import plain_weight
from swcheck.loading import engines
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
    """Load every scheme of ``engine`` and look at it as swcheck does; returns what was read.

    ``engine`` is the name of an installed entry point, or the engine itself. ``super_weights`` are those to look at,
    by default the ones located in ``reference``. ``dequantize`` gives the weight ``(H, F)`` of one of the engine's
    linear maps where the module itself offers no public way; None where there is none. Raises ``AssertionError`` for
    whatever the engine does wrong.
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
    kept = check_skip(cases[0])
    return tuple(replace(reading, skip=kept) for case in cases for reading in _check_scheme(case))


def own_dequantization(module: nn.Module) -> torch.Tensor | None:
    """The weight ``(H, F)`` as the module says it is: its plain tensor, else what its own ``dequantize`` gives."""
    plain = plain_weight(module)
    if plain is not None:
        return plain
    weight = getattr(module, "weight", None)
    for owner in (weight, module):
        give = getattr(type(owner), "dequantize", None)
        if give is None or give is torch.Tensor.dequantize:
            continue  # every tensor has this method; on an ordinary one it says nothing
        with torch.no_grad():
            found = give(owner)
        if isinstance(found, torch.Tensor) and found.ndim == 2 and found.is_floating_point():
            return found
    return None


def narrowed(folder: Path, inner: int) -> str:
    """A copy of ``tiny`` with only the first ``inner`` of its 512 inner neurons, saved in ``folder``; the super weight,
    at column 301, may go with the rest. For tests of widths that no group divides.
    """
    loaded = engines.load("tiny", device="cpu")
    for layer in anatomy(loaded.model).layers:
        mlp: Any = layer.mlp
        for part, kept in (
            (mlp.gate_proj, (slice(inner),)),
            (mlp.up_proj, (slice(inner),)),
            (mlp.down_proj, (slice(None), slice(inner))),
        ):
            part.weight = torch.nn.Parameter(part.weight.detach()[kept].clone())
    loaded.model.config.intermediate_size = inner
    with captured_output():
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return str(folder)


# --- the engine itself -------------------------------------------------------------------------------------------------


# --- one scheme --------------------------------------------------------------------------------------------------------


def _check_scheme(case: EngineCase) -> list[Reading]:
    begun = time.perf_counter()
    loaded = load_scheme(case)
    seconds = time.perf_counter() - begun
    scheme = check_record(case, loaded)
    fresh = state_fingerprint(loaded.model)
    check_anatomy(case, loaded)
    sight, logits = look_inside(case, loaded.model)
    check_quantized(case, sight, scheme)
    before = state_fingerprint(loaded.model)
    readings = [read_weight(case, loaded, sight, weight, scheme, seconds) for weight in case.weights]
    for reading in readings:
        for alpha in ALPHAS:
            check_scaled(case, loaded.model, reading, alpha, logits)
    check_traces(case, loaded.model, before, logits)
    saved = check_saved(case, loaded, fresh, logits)
    return [replace(reading, saved=saved) for reading in readings]
