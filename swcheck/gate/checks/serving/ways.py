"""How a window is scored in other shapes: lengths around the blocks of kernels, a batch, chunks, types of cache.

Each has a name as it stands in reports. B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.lens.architecture.storage import device_of, evaluating
from swcheck.lens.likelihood import nats_of, nats_of_logits, through_cache, token_nats
from swcheck.loading.kv_cache import STATIC, cache_types
from swcheck.loading.runtime import Capability, Runtime

if TYPE_CHECKING:
    from torch import nn

    from swcheck.superweights.subject.subject import Subject

LENGTHS: Final = (31, 32, 33, 63, 64, 65, 127, 128, 129)
"""The lengths around which blocks of kernels end."""

IN_BATCH: Final = (129, 65, 33, 31)
"""The lengths that are scored in one padded batch."""

SET: Final = 65
"""The tokens that are scored under each other setting of a runtime: two blocks, and one more."""

CHUNKS: Final = (32, 33)
"""The tokens in each pass of those that are scored behind a cache."""

SINGLES: Final = range(34, 44)
"""Behind these places a pass has one token alone, as in generation."""

OTHER_CACHE: Final = (32, 33, 65, 127)
"""Where passes end that are scored behind another type of cache than the candidate's own."""

NOISE: Final = 0.05
"""Nats per token by which another shape may differ from whole windows: other kernels round otherwise."""

COARSE_NOISE: Final = 0.15
"""The same behind a cache of few bits, or with inputs of few, whose range may be that of all tokens in a pass.

Measured on sound candidates of ``tiny``: at most 0.05 through caches of 4 bits, 0.07 with ONNX Runtime's inputs of 8 bits.
"""


@dataclass(frozen=True)
class Way:
    """Scores a shape: ``score`` returns the nats of the first tokens of the window ``row``, float64 ``(n,)``.

    ``places`` are those of them that are computed in the shape; all where it is None. ``noise`` is what they may differ by.
    ``may_lack`` says that an error of swcheck's own there means that there is no such shape.
    """

    score: Callable[[], torch.Tensor]
    row: int = 0
    places: Sequence[int] | None = None
    noise: float = NOISE
    may_lack: bool = False


def ways_of(subject: Subject, ids: torch.Tensor, *, with_cache: bool) -> tuple[dict[str, Way], list[str]]:
    """Return how each shape of the windows ``ids``, int64 ``(B, T)``, is scored, by its name; and what there is no way for.

    Without ``with_cache`` a torch module is not scored behind one: not every model takes it, and the reference would show.
    """
    first = ids[0]
    if subject.is_runtime:
        runtime = subject.runtime
        lacking = [one.value for one in (Capability.CHUNKS, Capability.BATCHES) if not runtime.can(one)]
        return dict(_in_runtime(runtime, first)), [f"{' and '.join(lacking)} (not shown)"] if lacking else []
    model = subject.module
    found = {**dict(_alone(model, first)), **dict(_in_batch(model, first)), **_last_window(model, ids)}
    if not with_cache:
        return found, ["a window in chunks (that needs the reference in memory)"]
    return {**found, **dict(_in_chunks(model, first))}, []


def _in_runtime(runtime: Runtime, ids: torch.Tensor) -> Iterator[tuple[str, Way]]:
    for length in () if runtime.by_prefix else _fitting(LENGTHS, ids):
        yield f"{length} tokens alone", Way(partial(_told, runtime.log_probabilities, ids[:length]))
    if runtime.can(Capability.BATCHES):
        yield from _together(runtime.batched_log_probabilities, ids, "a batch of {}")
    if runtime.can(Capability.REQUESTS):
        yield from _together(runtime.concurrent_log_probabilities, ids, "{} requests at once", may_lack=True)
    part = ids[:SET]
    for setting in runtime.settings if runtime.can(Capability.SETTINGS) else ():
        score = partial(_told, partial(runtime.set_log_probabilities, setting=setting), part)
        yield f"{len(part)} tokens {setting}", Way(score, may_lack=True)
    if runtime.can(Capability.CHUNKS):
        for kind in ("", *runtime.caches):
            asked = partial(runtime.chunked_log_probabilities, cache=kind)
            words = f", {kind} KV cache" if kind else ""
            noise = COARSE_NOISE if kind or runtime.coarse_cache else NOISE
            yield from _of_chunks(ids, words, partial(_told_in_chunks, asked), noise)


def _together(
    log_probabilities: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]],
    ids: torch.Tensor,
    words: str,
    *,
    may_lack: bool = False,
) -> Iterator[tuple[str, Way]]:
    """Yield the shapes of beginnings of one window that a runtime computes together."""
    lengths = _fitting(IN_BATCH, ids)
    scored = cache(lambda: log_probabilities([ids[:length] for length in lengths]))
    yield from _of_batch(lengths, lambda place: nats_of(scored()[place], ids[: lengths[place]]), words, may_lack)


def _told(log_probabilities: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    return nats_of(log_probabilities(ids), ids)


def _told_in_chunks(
    log_probabilities: Callable[..., torch.Tensor], ids: torch.Tensor, cuts: Sequence[int]
) -> torch.Tensor:
    return nats_of(log_probabilities(ids, cuts=cuts), ids)


def _of_batch(
    lengths: Sequence[int],
    nats: Callable[[int], torch.Tensor],
    words: str = "a batch of {}",
    may_lack: bool = False,
) -> Iterator[tuple[str, Way]]:
    for place, length in enumerate(lengths if len(lengths) > 1 else ()):
        yield f"{length} tokens in {words.format(len(lengths))}", Way(partial(nats, place), may_lack=may_lack)


def _fitting(lengths: Sequence[int], ids: torch.Tensor) -> list[int]:
    """Return the lengths behind which a window has a further token."""
    return [length for length in lengths if length < len(ids)]


def _alone(model: nn.Module, ids: torch.Tensor) -> Iterator[tuple[str, Way]]:
    for length in _fitting(LENGTHS, ids):
        yield f"{length} tokens alone", Way(partial(_beginning, model, ids, length))


def _beginning(model: nn.Module, ids: torch.Tensor, length: int) -> torch.Tensor:
    with evaluating(model):
        logits = model(ids[None, :length].to(device_of(model)), use_cache=False).logits
    return nats_of_logits(logits[0], ids[1 : length + 1])


def _in_batch(model: nn.Module, ids: torch.Tensor) -> Iterator[tuple[str, Way]]:
    lengths = _fitting(IN_BATCH, ids)
    scored = cache(lambda: _padded(model, ids, lengths))
    yield from _of_batch(lengths, lambda place: scored()[place])


def _padded(model: nn.Module, ids: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Return the nats of the beginnings of one window, in a batch that is padded on the right."""
    mask = torch.arange(lengths[0])[None] < torch.tensor(lengths)[:, None]
    rows, place = torch.where(mask, ids[: lengths[0]], ids[0]), device_of(model)
    with evaluating(model):
        logits = model(rows.to(place), attention_mask=mask.long().to(place), use_cache=False).logits
    return [nats_of_logits(row[:length], ids[1 : length + 1]) for row, length in zip(logits, lengths, strict=True)]


def _last_window(model: nn.Module, ids: torch.Tensor) -> Mapping[str, Way]:
    """A fault in all rows of a batch but the first is seen by a window that was scored in another row."""
    return {"the last window alone": Way(lambda: token_nats(model, ids[-1:])[0], len(ids) - 1)}


def _in_chunks(model: nn.Module, ids: torch.Tensor) -> Iterator[tuple[str, Way]]:
    for words, make in cache_types(model, max(LENGTHS) + 1).items():
        noise = NOISE if words in {"", STATIC} else COARSE_NOISE
        yield from _of_chunks(ids, words, partial(_behind_cache, model, make), noise)


def _behind_cache(model: nn.Module, make: Callable[[], Any], ids: torch.Tensor, cuts: Sequence[int]) -> torch.Tensor:
    return through_cache(model, ids[None], make(), cuts)[0][0]


def _of_chunks(
    ids: torch.Tensor, words: str, nats: Callable[[torch.Tensor, Sequence[int]], torch.Tensor], noise: float
) -> Iterator[tuple[str, Way]]:
    """Yield the shapes of the beginning of a window behind one type of cache, ``words``; empty for the own, with all of them."""
    part = ids[: max(LENGTHS) + 1]
    if words:
        cuts = _fitting(OTHER_CACHE, part)
        if cuts:
            places = range(cuts[0], len(part) - 1)
            yield f"chunks{words}", Way(partial(nats, part, cuts), places=places, noise=noise, may_lack=True)
        return
    for size in _fitting(CHUNKS, part):
        yield f"chunks of {size}", Way(partial(nats, part, range(size, len(part), size)), noise=noise)
    cuts = _fitting(sorted({*LENGTHS, *SINGLES}), part)
    if cuts:
        scored = cache(partial(nats, part, cuts))
        single = [place for place, following in pairwise((*cuts, len(part))) if following == place + 1]
        yield "uneven chunks", Way(scored, noise=noise)
        behind = [place for place in single if place < len(part) - 1]
        yield "single tokens", Way(scored, places=behind, noise=noise)
