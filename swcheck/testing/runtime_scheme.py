"""Checks of a runtime: what it states to show it shows, and what it shows agrees with itself.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from swcheck.base.errors import NotObservedError
from swcheck.base.isolation import captured_output
from swcheck.base.records import Loaded, Scheme, SuperWeight
from swcheck.base.statistics import ratio_of
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.intervene import scaled
from swcheck.loading.runtime import Capability, Runtime
from swcheck.testing.engine_case import ACTIVATIONS_TOO, NOT_OFFERED, SIXTEEN_BITS, EngineCase, Reading

TEXT: Final = "def spam(eggs=1):\n    return [eggs] * 2\n"
SAME_NUMBERS: Final = 1e-3
"""Log-probabilities of two runs of the same window differ by less than this, in nats."""

FEW: Final = 8
"""The tokens in the small cache that is tried."""
NEARLY: Final = 0.05
"""Nats, in the mean, that kernels may differ by which compute fewer tokens at once; a token that has left changes more."""
COARSELY: Final = 1.0
"""The same where inputs, or keys and values in the cache, are rounded to few bits: other tokens than its own change more."""


def check_runtime(case: EngineCase, loaded: Loaded, seconds: float) -> list[Reading]:
    """Check one scheme of an engine whose models run in another program; return a reading for each super weight."""
    runtime: Runtime = loaded.model
    if loaded.tokenizer is None or not loaded.name or not isinstance(loaded.scheme, Scheme | None):
        case.refuse(
            "a tokenizer, a name, and a scheme or None", repr(loaded)[:200], "Loaded(runtime, base.tokenizer, ...)"
        )
    if not runtime.title or runtime.vocabulary < 1:
        case.refuse("a title and a vocabulary", f"{runtime.title!r}, {runtime.vocabulary}", "set both")
    ids = case.ids[0].cpu()
    logs = _log_probabilities(case, runtime, ids)
    _check_stated(case, runtime, ids)
    if runtime.can(Capability.EVICTION):
        _check_eviction(case, runtime, ids, logs)
    _check_shapes(case, runtime, ids, logs, loaded.scheme)
    readings: list[Reading] = []
    if runtime.can(Capability.VALUES):
        _check_sizes(case, runtime, ids)
        readings = [_read(case, loaded, ids, weight, seconds) for weight in case.weights]
    again = _log_probabilities(case, runtime, ids)
    if not float((again - logs).nan_to_num(0.0).abs().max()) < SAME_NUMBERS:
        case.refuse("the same numbers afterwards", "other log-probabilities", "leave nothing of an override behind")
    runtime.close()
    runtime.close()
    return readings


def _log_probabilities(case: EngineCase, runtime: Runtime, ids: torch.Tensor) -> torch.Tensor:
    with captured_output():
        logs = runtime.log_probabilities(ids)
    if tuple(logs.shape) != (len(ids) - 1, runtime.vocabulary) or logs.dtype is not torch.float32:
        words = f"{logs.dtype} {tuple(logs.shape)}"
        case.refuse(f"log-probabilities, float32 {(len(ids) - 1, runtime.vocabulary)}", words, "one row a next token")
    told = logs.gather(1, ids[1:, None])
    if not torch.isfinite(told).all():
        case.refuse("the log-probability of every token that follows", "one is not finite", "tell it, always")
    if not float(logs.exp().sum(1).max()) < 1 + SAME_NUMBERS:
        case.refuse("probabilities of at most 1 together", f"{float(logs.exp().sum(1).max()):.4f}", "log_softmax")
    return logs


def _check_stated(case: EngineCase, runtime: Runtime, ids: torch.Tensor) -> None:
    """Check that each capability that is stated works, and that each other one is refused in words."""
    weight = case.weights[0]
    attempts: dict[Capability, Callable[[], Any]] = {
        Capability.TOKEN_IDS: lambda: runtime.token_ids(TEXT),
        Capability.VALUES: lambda: (runtime.values(ids, residual=[weight.layer]), runtime.weight_value(weight)),
        Capability.OVERRIDE: lambda: runtime.overridden({weight: 0.0}).__enter__(),
        Capability.EVICTION: lambda: runtime.rolled_log_probabilities(ids, window=FEW, first=1),
        Capability.CHUNKS: lambda: runtime.chunked_log_probabilities(ids, cuts=[FEW]),
        Capability.BATCHES: lambda: runtime.batched_log_probabilities([ids, ids[:FEW]]),
        Capability.SETTINGS: lambda: runtime.set_log_probabilities(ids, setting=""),
        Capability.REQUESTS: lambda: runtime.concurrent_log_probabilities([ids, ids[:FEW]]),
    }
    for capability, attempt in attempts.items():
        if runtime.can(capability):
            continue
        try:
            attempt()
        except NotObservedError:
            continue
        case.refuse(f"no {capability.value}, as it states", "it shows that", "add it to shows")
    if runtime.can(Capability.TOKEN_IDS):
        found = list(runtime.token_ids(TEXT))
        if not found or not all(0 <= number < runtime.vocabulary for number in found):
            case.refuse("ids of a text, of the vocabulary", str(found)[:80], "plain numbers")


def _check_eviction(case: EngineCase, runtime: Runtime, ids: torch.Tensor, logs: torch.Tensor) -> None:
    """Check that a cache with room for all tokens changes nothing, and a small one those behind it, and these alone."""
    whole = runtime.rolled_log_probabilities(ids, window=len(ids), first=1)
    small = runtime.rolled_log_probabilities(ids, window=FEW, first=1)
    if whole.shape != logs.shape or not float((whole - logs).abs().max()) < SAME_NUMBERS:
        case.refuse("a cache with room for all tokens changes nothing", "other log-probabilities", "remove none")
    before, behind = ((small - logs).abs()[part].mean() for part in (slice(FEW), slice(FEW, None)))
    if not (float(before) < NEARLY and float(behind) > NEARLY):
        words = f"they change by {float(before):.2g} before the {FEW} are full, and by {float(behind):.2g} behind"
        case.refuse(
            f"a cache of {FEW} tokens changes those behind it alone", words, "remove the oldest token each time"
        )


def _check_shapes(
    case: EngineCase, runtime: Runtime, ids: torch.Tensor, logs: torch.Tensor, scheme: Scheme | None
) -> None:
    """Check that chunks and batches give what a window alone does, and that each type of cache can be asked for.

    A range of all that is computed together, for inputs of few bits, may be another one in each shape.
    """
    coarse = scheme is not None and scheme.rounds_inputs
    found: dict[str, torch.Tensor] = {}
    if runtime.can(Capability.CHUNKS):
        found["a window in chunks"] = runtime.chunked_log_probabilities(ids, cuts=[FEW, FEW + 1])
        found |= {
            f"{kind} cache": runtime.chunked_log_probabilities(ids, cuts=[FEW], cache=kind) for kind in runtime.caches
        }
    for capability, compute, what in (
        (Capability.BATCHES, runtime.batched_log_probabilities, "window of a batch"),
        (Capability.REQUESTS, runtime.concurrent_log_probabilities, "of two requests at once"),
    ):
        if runtime.can(capability):
            both = compute([ids[:FEW], ids])
            found[f"the second {what}"] = both[1]
            if tuple(both[0].shape) != (FEW - 1, runtime.vocabulary):
                words = f"{FEW - 1} rows of the first {what}"
                case.refuse(words, f"{tuple(both[0].shape)}", "as many as it has tokens")
    for setting in runtime.settings if runtime.can(Capability.SETTINGS) else ():
        found[f"a window {setting}"] = runtime.set_log_probabilities(ids, setting=setting)
    for name, one in found.items():
        likely = logs > -FEW  # a coarse type of cache changes what is unlikely by more
        if one.shape != logs.shape or not float((one - logs)[likely].abs().mean()) < (
            COARSELY if coarse or "cache" in name else NEARLY
        ):
            case.refuse(f"{name} gives what it gives alone", "other log-probabilities", "compute the same tokens")


def _check_sizes(case: EngineCase, runtime: Runtime, ids: torch.Tensor) -> None:
    """Check sizes and the shapes of the tensors against the reference's."""
    body = anatomy(case.reference.model)
    wanted = (len(body.layers), body.hidden, body.inner)
    if runtime.sizes != wanted:
        case.refuse(f"layers and widths {wanted}", str(runtime.sizes), "set sizes")
    last = wanted[0] - 1
    residual, inputs = runtime.values(ids, residual=[0, last], inputs=[last])
    shapes = {tuple(residual[0].shape), tuple(residual[last].shape)}
    if shapes != {(len(ids), wanted[1])} or tuple(inputs[last].shape) != (len(ids), wanted[2]):
        found = f"{shapes} and {tuple(inputs[last].shape)}"
        case.refuse("tensors (T, H) and (T, F) of every layer", found, "all tokens, by layer")


def _read(case: EngineCase, loaded: Loaded, ids: torch.Tensor, weight: SuperWeight, seconds: float) -> Reading:
    """Read a super weight; where it can be overridden, its removal changes the stream by what it writes, there alone."""
    runtime: Runtime = loaded.model
    residual, inputs = runtime.values(ids, residual=[weight.layer], inputs=[weight.layer])
    column = inputs[weight.layer][:, weight.column]
    token, value = int(column.abs().argmax()), runtime.weight_value(weight)
    read = float(column[token])
    written = value * read
    if runtime.can(Capability.OVERRIDE):
        for alpha in (0.0, 3.0):
            with scaled(runtime, [weight], alpha):
                changed = runtime.values(ids, residual=[weight.layer])[0][weight.layer]
            difference = changed[token] - residual[weight.layer][token]
            effect = float(difference[weight.row]) / (alpha - 1)
            if not abs(ratio_of(effect, written) - 1) <= ACTIVATIONS_TOO:
                found = f"x{alpha:g} changes the stream as if it wrote {effect:+.4g}"
                case.refuse(
                    f"{weight.place} writes {written:+.4g}", found, "override the scalar, and read the same one"
                )
            difference[weight.row] = 0
            if float(difference.abs().max()) > abs(written) * SAME_NUMBERS:
                case.refuse("a change in one channel", "others change too", "override one scalar")
    scheme = loaded.scheme or Scheme("unknown", 16)
    return Reading(
        case.scheme, weight, read, written / read, value, value, ACTIVATIONS_TOO, NOT_OFFERED, seconds, scheme
    )


def check_kept_in_runtime(case: EngineCase, runtime: Runtime, name: str) -> None:
    """Check that the map ``name``, which ``,skip=`` names, holds the reference's scalar; unseen where nothing is shown."""
    weight = case.weights[0]
    if runtime.can(Capability.VALUES):
        found, wanted = runtime.weight_value(weight), weight.value or 0.0
        if not abs(ratio_of(found, wanted) - 1) <= SIXTEEN_BITS:
            words = f"{found:+.4g} for {wanted:+.4g}"
            case.refuse(f"{name} as the reference has it", words, "hand the name on, or refuse the option")
    runtime.close()
