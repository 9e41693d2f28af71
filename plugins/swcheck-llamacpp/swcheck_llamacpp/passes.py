"""Passes of llama.cpp over token ids, and what its evaluation callback reads and changes in them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import torch

from swcheck import CheckpointError, SuperWeight
from swcheck_llamacpp.library import Batch, Blob, EvalCallback, Library, Tensor

CACHE_TYPES: Final = {"f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q5_1": 7, "q5_0": 6, "q4_1": 3, "q4_0": 2}
"""What keys and values of the cache may be kept as, with ggml's number."""
FLASH: Final = {"off": 0, "on": 1}


@dataclass(frozen=True)
class Settings:
    """How llama.cpp is run: tokens in a pass (None: the whole window), cache, flash attention (None: it chooses)."""

    batch: int | None = None
    cache: str = "f16"
    flash: str | None = None
    threads: int = 1


@dataclass
class Watch:
    """What the callback reads, by layer, and the scalars that it replaces, each with its stored and its new value."""

    residual: Sequence[int] = ()
    inputs: Sequence[int] = ()
    overrides: Mapping[SuperWeight, tuple[float, float]] = field(default_factory=dict)
    read: dict[tuple[str, int], list[torch.Tensor]] = field(default_factory=dict)
    error: Exception | None = None

    @cached_property
    def is_blind(self) -> bool:
        """Whether no tensor is wanted: llama.cpp asks for each that it computes."""
        return not (self.residual or self.inputs or self.overrides)

    def layer_of(self, tensor: Tensor) -> tuple[str, int] | None:
        """Return what a tensor is, if it is wanted: ``residual`` or ``down`` (a down projection's output), its layer."""
        name = tensor.name
        if name.startswith("l_out-"):
            layer = int(name[6:]) if name[6:].isdecimal() else -1
            return ("residual", layer) if layer in self.residual else None
        weight = tensor.source(0)
        stored = weight.name if weight is not None else ""
        if not (stored.startswith("blk.") and stored.endswith(".ffn_down.weight")):
            return None
        layer = int(stored.split(".")[1])
        wanted = layer in self.inputs or any(one.layer == layer for one in self.overrides)
        return ("down", layer) if wanted else None

    def visit(self, tensor: Tensor) -> None:
        """Read a tensor that was just computed, and put the overridden scalars into it."""
        found = self.layer_of(tensor)
        if found is None:
            return
        kind, layer = found
        if kind == "residual":
            self.read.setdefault(found, []).append(values_of(tensor))
            return
        inputs = tensor.source(1)
        if inputs is None or tensor.name.startswith("blk."):
            return
        x = values_of(inputs)
        if layer in self.inputs:
            self.read.setdefault(("input", layer), []).append(x)
        for weight, (stored, wanted) in self.overrides.items():
            if weight.layer == layer:
                _add(tensor, weight.row, (wanted - stored) * x[:, weight.column])


def values_of(tensor: Tensor) -> torch.Tensor:
    """Return the values of a contiguous float tensor, float32 ``(T, C)``."""
    tokens, channels = tensor.shape
    if not tensor.is_float or tensor.token_step != 4 * channels:
        raise CheckpointError(f"the tensor {tensor.name}", "it is not contiguous float32", "another architecture")
    buffer = bytearray(4 * tokens * channels)
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    tensor.c.ggml_backend_tensor_get(tensor.at, address, 0, len(buffer))
    return torch.frombuffer(buffer, dtype=torch.float32).view(tokens, channels)


def _add(tensor: Tensor, row: int, change: torch.Tensor) -> None:
    """Add ``change`` ``(T,)`` to one channel of a tensor."""
    value = ctypes.c_float()
    for token, more in enumerate(change.tolist()):
        at = token * tensor.token_step + 4 * row
        tensor.c.ggml_backend_tensor_get(tensor.at, ctypes.addressof(value), at, 4)
        value.value += more
        tensor.c.ggml_backend_tensor_set(tensor.at, ctypes.addressof(value), at, 4)


class Passes:
    """A loaded model with a context for windows of up to some length."""

    def __init__(self, library: Library, path: str, settings: Settings) -> None:
        self._library, self._settings, self._title = library, settings, f"llamacpp:{path}"
        self._context, self._length, self._made, self._watch = None, 0, (settings, 1), Watch()
        self._callback = EvalCallback(self._on_tensor)
        library.said.clear()
        self.model = library.c.llama_model_load_from_file(path.encode(), library.c.llama_model_default_params())
        if not self.model:
            raise CheckpointError(self._title, library.last_words(), "a whole file of an architecture that it knows")

    def _on_tensor(self, at: int, ask: bool, _data: Any) -> bool:
        """Say whether a tensor is wanted, or visit it; an error stops the pass, and is raised behind it."""
        if ask and self._watch.is_blind:
            return False
        try:
            tensor = Tensor(self._library.c, at)
            if ask:
                return self._watch.layer_of(tensor) is not None
            self._watch.visit(tensor)
        except Exception as error:  # it may not leave a callback of C
            self._watch.error = error
            return False
        return True

    def _context_for(self, length: int, settings: Settings | None = None, sequences: int = 1) -> Any:
        """Return a context for so many windows of a length at once, with other settings than the own if they are given."""
        settings = settings or self._settings
        made = settings, sequences
        if self._context is not None and length <= self._length and made == self._made:
            return self._context
        self._free_context()
        c, self._made = self._library.c, made
        parameters: Blob = c.llama_context_default_params()
        raw = (ctypes.c_char * ctypes.sizeof(parameters)).from_buffer(parameters)
        self._length = max(length, 512)
        room = self._length * sequences
        struct.pack_into("<IIII", raw, 0, room, room, min(settings.batch or room, room), sequences)
        callback = ctypes.cast(self._callback, ctypes.c_void_p).value
        kind = CACHE_TYPES[settings.cache]
        struct.pack_into("<QQii", raw, self._library.callback_at, callback, 0, kind, kind)
        if settings.flash is not None:
            struct.pack_into("<i", raw, self._library.flash_at, FLASH[settings.flash])
        self._library.said.clear()
        self._context = c.llama_init_from_model(self.model, parameters)
        if not self._context:
            attempt = "another cache or flash attention; fewer tokens"
            raise CheckpointError(self._title, f"no context: {self._library.last_words()}", attempt)
        c.llama_set_n_threads(self._context, settings.threads, settings.threads)
        return self._context

    def run(self, ids: torch.Tensor, watch: Watch, settings: Settings | None = None) -> torch.Tensor:
        """Run one window, int64 ``(T,)``, from an empty cache; return all its logits, float32 ``(T, V)``.

        With other ``settings`` than the own if they are given.
        """
        context, self._watch = self._context_for(len(ids), settings), watch
        self._library.c.llama_memory_clear(self._library.c.llama_get_memory(context), True)
        return self._decode(context, ids.tolist(), 0)

    def run_chunks(self, ids: torch.Tensor, cuts: Sequence[int], cache: str, watch: Watch) -> torch.Tensor:
        """Run one window, int64 ``(T,)``, in passes that end at ``cuts``; return all its logits, float32 ``(T, V)``."""
        settings = replace(self._settings, cache=cache) if cache else None
        context, self._watch = self._context_for(len(ids), settings), watch
        self._library.c.llama_memory_clear(self._library.c.llama_get_memory(context), True)
        tokens = ids.tolist()
        return torch.cat([self._decode(context, tokens[a:b], a) for a, b in pairwise((0, *cuts, len(tokens)))])

    def run_together(self, rows: Sequence[torch.Tensor], watch: Watch) -> list[torch.Tensor]:
        """Run windows, int64 ``(T,)`` each, as sequences of one batch; return the logits of each, float32 ``(T, V)``."""
        context, self._watch = self._context_for(max(map(len, rows)), sequences=len(rows)), watch
        self._library.c.llama_memory_clear(self._library.c.llama_get_memory(context), True)
        places = [(token, at, row) for row, ids in enumerate(rows) for at, token in enumerate(ids.tolist())]
        return list(self._logits_of(context, places).split([len(ids) for ids in rows]))

    def run_rolling(self, ids: torch.Tensor, window: int, first: int, watch: Watch) -> torch.Tensor:
        """Run one window, int64 ``(T,)``, through a cache of ``window`` tokens; return all its logits, float32 ``(T, V)``.

        What fits goes in at once. Before each further token the oldest one behind the ``first`` is removed.
        """
        context, c, self._watch = self._context_for(len(ids)), self._library.c, watch
        memory = c.llama_get_memory(context)
        c.llama_memory_clear(memory, True)
        tokens = ids.tolist()
        parts = [self._decode(context, tokens[:window], 0)]
        for place in range(window, len(tokens)):
            if not c.llama_memory_seq_rm(memory, 0, first, place - window + first + 1):
                raise CheckpointError(
                    self._title, "its memory gives no single tokens back", "a model with attention alone"
                )
            parts.append(self._decode(context, tokens[place : place + 1], place))
        return torch.cat(parts)

    def _decode(self, context: Any, tokens: list[int], start: int) -> torch.Tensor:
        """Compute tokens from the position ``start`` on, behind those in the cache; return their logits ``(T, V)``."""
        return self._logits_of(context, [(token, at, 0) for at, token in enumerate(tokens, start)])

    def _logits_of(self, context: Any, places: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        """Compute tokens, each with its position and sequence; return their logits ``(T, V)``."""
        c, watch = self._library.c, self._watch
        with self._batch(places) as batch:
            status = c.llama_decode(context, batch)
        if watch.error is not None:
            raise watch.error
        if status:
            words = f"llama_decode answers {status}: {self._library.last_words()}"
            raise CheckpointError(self._title, words, "fewer tokens, or another file")
        count = len(places) * c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        buffer = (ctypes.c_float * count).from_address(c.llama_get_logits(context))
        return torch.frombuffer(buffer, dtype=torch.float32).view(len(places), -1).clone()

    @contextmanager
    def _batch(self, places: Sequence[tuple[int, int, int]]) -> Iterator[Batch]:
        batch: Batch = self._library.c.llama_batch_init(len(places), 0, 1)
        try:
            batch.n_tokens = len(places)
            for number, (token, position, sequence) in enumerate(places):
                batch.token[number], batch.pos[number], batch.logits[number] = token, position, 1
                batch.n_seq_id[number], batch.seq_id[number][0] = 1, sequence
            yield batch
        finally:
            self._library.c.llama_batch_free(batch)

    def _free_context(self) -> None:
        if self._context is not None:
            self._library.c.llama_free(self._context)
        self._context = None

    def close(self) -> None:
        """Free the context and the model."""
        self._free_context()
        if self.model:
            self._library.c.llama_model_free(self.model)
        self.model = None

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()
