"""A runtime whose program holds a graph. T tokens, V vocabulary, B windows, H residual width, F inner width."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.records import SuperWeight
from swcheck.loading.runtime import Capability, Runtime, tokenizer_in

if TYPE_CHECKING:
    import numpy as np
    import torch

PLAIN: Final = (False, "", ())
"""What the program of the graph as it is is kept under."""

SMALL: Final = 2**30
"""Bytes of weights up to which the plain program stays beside a changed one; more take longer to score than to compile."""


class GraphRuntime(Runtime):
    """A runtime whose program holds a graph that can be given further outputs and corrected products.

    Derive from it, call ``found`` once the graph is read, and run each pass with ``changes``: what is added to scalars
    of down projections, by layer, row and column. ``stored_bytes`` is the size of the graph's weights.
    """

    changes: Mapping[tuple[int, int, int], float] = MappingProxyType({})
    stored_bytes = 0

    def found(
        self, streams: Collection[int], downs: Collection[int], tokenizer: Path | None, further: Collection[Capability]
    ) -> None:
        """State what the graph shows, from the layers whose residual stream and down projection were found in it.

        ``tokenizer`` is the folder of a tokenizer beside the graph, None if there is none. ``further`` is what its inputs
        allow: ``BATCHES`` if it takes several windows, ``CHUNKS`` if it takes a key-value cache and gives it back.
        """
        self._tokenizer: Any = tokenizer
        shows = {Capability.TOKEN_IDS} if tokenizer is not None else set()
        if streams and set(streams) == set(downs) == set(range(len(downs))):
            shows |= {Capability.VALUES, Capability.OVERRIDE}
            rows, columns = self._matrix(0).shape
            self.sizes = len(downs), rows, columns
        self.shows = frozenset({*shows, *further})

    @abstractmethod
    def compiled(self, *, watched: bool, cache: str) -> Any:
        """Return a program of the graph with ``changes``: if ``watched`` with all tensors that are shown as outputs.

        ``cache`` is one of ``caches``, empty for the type of key-value cache that the program was set up with.
        """

    @cached_property
    def _programs(self) -> dict[Any, Any]:
        return {}

    def program(self, *, watched: bool = False, cache: str = "") -> Any:
        """Return what ``compiled`` does. The last one is kept, and beside it that of a small graph as it is."""
        key = watched, cache, tuple(self.changes.items())
        if key not in self._programs:
            for one in list(self._programs):
                if one != PLAIN or self.stored_bytes > SMALL:
                    del self._programs[one]
            self._programs[key] = self.compiled(watched=watched, cache=cache)
        return self._programs[key]

    def close(self) -> None:
        """Free the programs; they are compiled again when they are needed."""
        self._programs.clear()

    @abstractmethod
    def padded_logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, T, V)`` of windows ``ids``, int64 ``(B, T)``, padded on the right where ``mask`` is 0."""

    @abstractmethod
    def logits_in_chunks(self, chunks: Sequence[torch.Tensor], cache: str) -> Iterator[torch.Tensor]:
        """Yield the logits ``(t, V)`` of each chunk of one window, int64 ``(1, t)``, computed behind the cache of those before."""

    def chunked_log_probabilities(self, ids: torch.Tensor, *, cuts: Sequence[int], cache: str = "") -> torch.Tensor:
        """Return the log-probabilities of a window, computed in passes that end at ``cuts``."""
        if not self.can(Capability.CHUNKS):
            return super().chunked_log_probabilities(ids, cuts=cuts, cache=cache)
        import torch

        chunks = [ids[None, start:end] for start, end in pairwise((0, *cuts, len(ids)))]
        return torch.cat(list(self.logits_in_chunks(chunks, cache)))[:-1].float().log_softmax(-1)

    def batched_log_probabilities(self, rows: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the log-probabilities of each window, computed in one padded batch."""
        if not self.can(Capability.BATCHES):
            return super().batched_log_probabilities(rows)
        from torch.nn.utils.rnn import pad_sequence

        ids = pad_sequence(list(rows), batch_first=True)
        mask = pad_sequence([one.new_ones(len(one)) for one in rows], batch_first=True)
        logits = self.padded_logits(ids, mask)
        return [one[: len(row) - 1].float().log_softmax(-1) for one, row in zip(logits, rows, strict=True)]

    @abstractmethod
    def stored_matrix(self, layer: int) -> np.ndarray[Any, Any]:
        """Return the down projection of a layer ``(H, F)``, dequantized from the graph."""

    @cached_property
    def _matrices(self) -> dict[int, np.ndarray[Any, Any]]:
        return {}

    def _matrix(self, layer: int) -> np.ndarray[Any, Any]:
        if layer not in self._matrices:
            self._matrices[layer] = self.stored_matrix(layer)
        return self._matrices[layer]

    def token_ids(self, text: str) -> Sequence[int]:
        """Return the ids of a text by the tokenizer beside the graph."""
        if not self.can(Capability.TOKEN_IDS):
            return super().token_ids(text)
        if isinstance(self._tokenizer, Path):
            self._tokenizer = tokenizer_in(self._tokenizer)
        return list(self._tokenizer(text)["input_ids"])

    def weight_value(self, weight: SuperWeight) -> float:
        """Return a scalar of a down projection, dequantized from the graph."""
        if not self.can(Capability.VALUES):
            return super().weight_value(weight)
        return float(self._matrix(weight.layer)[weight.row, weight.column])

    def overridden(self, values: Mapping[SuperWeight, float]) -> AbstractContextManager[None]:
        """Return a block in which scalars of down projections have other values."""
        return self._overridden(values) if self.can(Capability.OVERRIDE) else super().overridden(values)

    @contextmanager
    def _overridden(self, values: Mapping[SuperWeight, float]) -> Iterator[None]:
        before = self.changes
        changes = {(w.layer, w.row, w.column): value - self.weight_value(w) for w, value in values.items()}
        self.changes = {**before, **changes}
        try:
            yield
        finally:
            self.changes = before
