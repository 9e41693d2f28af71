"""A runtime that computes with a torch model of its own, and can show as little as it is told to: for tests.

Its numbers are real. What is damaged in it is its own: ``edit`` changes the module, ``ids`` its tokenizer, and ``tail``
its kernels, for the tokens behind that place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache

import swcheck
from swcheck import Capability, Loaded, Runtime, Scheme, SuperWeight, anatomy, observe
from swcheck.gate.checks.serving.eviction import band
from swcheck.lens.intervene import set_to
from swcheck.loading.kv_cache import cache_name

ALL = frozenset(Capability)
EIGHT_BITS = Scheme("absmax", 8)


class InProcess(Runtime):
    """``told`` is the number of the likeliest tokens that it tells of each position, None for all."""

    title = "a runtime of the tests"

    def __init__(self, loaded: Loaded, shows=ALL, *, twin="", told=None, ids=None, tail=None) -> None:
        self.module, self._tokenizer = loaded.model, loaded.tokenizer
        self.shows, self.twin, self._told, self._tail = frozenset(shows), twin, told, tail
        self._ids = ids or (lambda text: loaded.tokenizer(text)["input_ids"])
        body = anatomy(self.module)
        self.vocabulary = self.module.config.vocab_size
        self.context = self.module.config.max_position_embeddings
        self.sizes = (len(body.layers), body.hidden, body.inner) if self.can(Capability.VALUES) else None
        self.closed = 0

    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = self.module(ids[None], use_cache=False).logits[0]
        if self._tail is not None:
            logits[self._tail :] = logits[self._tail :].roll(1, -1)
        logs = logits[:-1].float().log_softmax(-1)
        if self._told is None:
            return logs
        kept = torch.zeros_like(logs, dtype=torch.bool).scatter(1, logs.topk(self._told).indices, True)
        return logs.where(kept.scatter(1, ids[1:, None], True), -torch.inf)

    def token_ids(self, text: str) -> Sequence[int]:
        if not self.can(Capability.TOKEN_IDS):
            return super().token_ids(text)
        return self._ids(text)

    def values(self, ids, *, residual=(), inputs=()):
        if not self.can(Capability.VALUES):
            return super().values(ids)
        with torch.no_grad(), observe(self.module, residual=residual, inputs=inputs) as sight:
            self.module(ids[None], use_cache=False)
        return {n: sight.residual[n][0] for n in residual}, {n: sight.inputs[n][0] for n in inputs}

    def weight_value(self, weight: SuperWeight) -> float:
        if not self.can(Capability.VALUES):
            return super().weight_value(weight)
        return float(anatomy(self.module).down_map(weight).weight[weight.row, weight.column])

    def overridden(self, values: Mapping[SuperWeight, float]):
        if not self.can(Capability.OVERRIDE):
            return super().overridden(values)
        return self._overridden(values)

    @contextmanager
    def _overridden(self, values):
        with set_to(self.module, [SuperWeight(w.layer, w.row, w.column, value) for w, value in values.items()]):
            yield

    def rolled_log_probabilities(self, ids, *, window, first):
        if not self.can(Capability.EVICTION):
            return super().rolled_log_probabilities(ids, window=window, first=first)
        seen = band(len(ids), window - first, first)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
        with torch.no_grad():
            return self.module(ids[None], attention_mask=mask, use_cache=False).logits[0, :-1].log_softmax(-1)

    def chunked_log_probabilities(self, ids, *, cuts, cache=""):
        if not self.can(Capability.CHUNKS):
            return super().chunked_log_probabilities(ids, cuts=cuts, cache=cache)
        past, parts = DynamicCache(config=self.module.config), []
        with torch.no_grad():
            for start, end in pairwise((0, *cuts, len(ids))):
                asked = {cache_name(self.module): past}
                parts.append(self.module(ids[None, start:end], **asked, use_cache=True).logits[0])
        return torch.cat(parts)[:-1].log_softmax(-1)

    def batched_log_probabilities(self, rows):
        if not self.can(Capability.BATCHES):
            return super().batched_log_probabilities(rows)
        return [self.log_probabilities(row) for row in rows]

    def set_log_probabilities(self, ids, *, setting):
        if not self.can(Capability.SETTINGS):
            return super().set_log_probabilities(ids, setting=setting)
        return self.log_probabilities(ids)

    def concurrent_log_probabilities(self, rows):
        if not self.can(Capability.REQUESTS):
            return super().concurrent_log_probabilities(rows)
        return [self.log_probabilities(row) for row in rows]

    def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class InProcessEngine:
    """An engine whose candidates run in it: ``float``, or ``rounded``."""

    name: str = "inprocess"
    edit: Callable[[Any], None] = lambda _module: None
    options: Mapping[str, Any] = ()

    def load(self, spec, *, reference, device, dtype):
        if spec.partition(",")[0] != "float" or "," in spec:
            raise swcheck.EngineError(f"inprocess:{spec}", "known: float", "inprocess:float")
        return candidate(self.edit, name=f"inprocess:{spec}", **dict(self.options))


def candidate(edit=lambda _module: None, *, name="candidate", scheme=EIGHT_BITS, shows=ALL, **options) -> Loaded:
    """Return a candidate made from ``tiny`` that runs in ``InProcess``; ``edit`` changes its module first."""
    loaded = swcheck.load("tiny", device="cpu")
    with torch.no_grad():
        edit(loaded.model)
    return Loaded(InProcess(loaded, shows, **options), loaded.tokenizer, name, loaded.text, scheme=scheme)
