"""A GGUF file as llama.cpp computes it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gguf
import torch

from swcheck import Capability, CheckpointError, Runtime, SuperWeight, read_gguf_header
from swcheck_llamacpp.library import library
from swcheck_llamacpp.passes import Passes, Settings, Watch

DOWN: Final = "blk.{}.ffn_down.weight"
FEW: Final = 32
"""Tokens in a physical batch that is smaller than a window: a block of most kernels."""


class LlamaCpp(Runtime):
    """A GGUF file in llama.cpp: all logits, its own tokenizer, named tensors and overridden scalars by its callback.

    ``keeps`` is held as long as the runtime: the folder of a file that was made for it.
    """

    shows = frozenset(Capability) - {Capability.REQUESTS}

    def __init__(self, file: Path, settings: Settings, said: str = "", keeps: Any = None) -> None:
        self._file, self._settings, self._keeps = file, settings, keeps
        self._tensors = {tensor.name: tensor for tensor in read(file).tensors}
        self._overrides: dict[SuperWeight, tuple[float, float]] = {}
        self._library = library()
        self._passes: Passes | None = None
        c, model = self._library.c, self._open().model
        down = self._tensors.get(DOWN.format(0))
        self.title = f"llama.cpp (xllamacpp {self._library.version}{said})"
        self.vocabulary = int(c.llama_vocab_n_tokens(c.llama_model_get_vocab(model)))
        self.context = int(c.llama_model_n_ctx_train(model))
        self.twin = f"gguf:{file}"
        self.caches = tuple(kind for kind in ("f16", "q8_0", "q4_0") if kind != settings.cache)
        self.coarse_cache = settings.cache[:2] in {"q4", "q5"}
        self._other = {**_batches(settings), **_flash(settings)}
        self.settings = tuple(self._other)
        if down is None:
            self.shows -= {Capability.VALUES, Capability.OVERRIDE}
        else:
            self.sizes = int(c.llama_model_n_layer(model)), int(c.llama_model_n_embd(model)), int(down.shape[0])

    def _open(self) -> Passes:
        if self._passes is None:
            self._passes = Passes(self._library, str(self._file), self._settings)
        return self._passes

    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of every next token, float32 ``(T - 1, V)``."""
        return self._open().run(ids, Watch(overrides=self._overrides))[:-1].log_softmax(-1)

    def rolled_log_probabilities(self, ids: torch.Tensor, *, window: int, first: int) -> torch.Tensor:
        """Return the same from a cache of ``window`` tokens, out of which the oldest behind the ``first`` go."""
        logits = self._open().run_rolling(ids, window, first, Watch(overrides=self._overrides))
        return logits[:-1].log_softmax(-1)

    def chunked_log_probabilities(self, ids: torch.Tensor, *, cuts: Sequence[int], cache: str = "") -> torch.Tensor:
        """Return the same in passes that end at ``cuts``, from a cache of the type ``cache``; empty for the own."""
        logits = self._open().run_chunks(ids, cuts, cache, Watch(overrides=self._overrides))
        return logits[:-1].log_softmax(-1)

    def batched_log_probabilities(self, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the same of several windows that are sequences of one batch."""
        together = self._open().run_together(rows, Watch(overrides=self._overrides))
        return [logits[:-1].log_softmax(-1) for logits in together]

    def set_log_probabilities(self, ids: torch.Tensor, *, setting: str) -> torch.Tensor:
        """Return the same with smaller physical batches, or with the other kernels of attention."""
        return self._open().run(ids, Watch(overrides=self._overrides), self._other[setting])[:-1].log_softmax(-1)

    def token_ids(self, text: str) -> Sequence[int]:
        """Return the ids of a text by the tokenizer in the file, with BOS where its flag says so."""
        c, raw = self._library.c, text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        vocab = c.llama_model_get_vocab(self._open().model)
        count = c.llama_tokenize(vocab, raw, len(raw), room, len(room), True, False)
        if count < 0:
            raise CheckpointError(f"{self._file}: ids of a text", "its tokenizer gives none", "convert it again")
        return list(room[:count])

    def values(
        self, ids: torch.Tensor, *, residual: Sequence[int] = (), inputs: Sequence[int] = ()
    ) -> tuple[Mapping[int, torch.Tensor], Mapping[int, torch.Tensor]]:
        """Return tensors of one pass by layer: the residual stream, and what the down projections read."""
        watch = Watch(tuple(residual), tuple(inputs), self._overrides)
        self._open().run(ids, watch)
        streams = {layer: torch.cat(watch.read["residual", layer]) for layer in residual}
        return streams, {layer: torch.cat(watch.read["input", layer]) for layer in inputs}

    def weight_value(self, weight: SuperWeight) -> float:
        """Return a scalar of a down projection, dequantized from its row of the file."""
        tensor = self._tensors[DOWN.format(weight.layer)]
        row = gguf.quants.dequantize(tensor.data[weight.row : weight.row + 1], tensor.tensor_type)
        return float(row[0, weight.column])

    @contextmanager
    def overridden(self, values: Mapping[SuperWeight, float]) -> Iterator[None]:
        """Run with scalars of other values: the callback adds the difference times the input to the output."""
        before = self._overrides
        self._overrides = {**before, **{one: (self.weight_value(one), value) for one, value in values.items()}}
        try:
            yield
        finally:
            self._overrides = before

    def close(self) -> None:
        """Free context and model; they are opened again when they are needed."""
        if self._passes is not None:
            self._passes.close()
        self._passes = None


def _batches(own: Settings) -> dict[str, Settings]:
    """Return the settings of a physical batch that splits a window, by words; none where the own is as small."""
    is_small = own.batch is not None and own.batch <= FEW
    return {} if is_small else {f"in physical batches of {FEW}": replace(own, batch=FEW)}


def _flash(own: Settings) -> dict[str, Settings]:
    """Return the settings of flash attention beside the own, by words."""
    words = {"on": "with flash attention", "off": "without flash attention"}
    return {said: replace(own, flash=kind) for kind, said in words.items() if kind != own.flash}


def read(file: Path) -> Any:
    """Return the reader of a file. Raises ``CheckpointError`` for what is none, or is cut off, or lacks layers."""
    header = read_gguf_header(file)  # the reader believes every number in a file
    count = header.facts.get(f"{header.facts.get('general.architecture')}.block_count")
    layers = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if isinstance(count, int | float) and len(layers) < count:
        words = f"it says {count:g} layers and has tensors of {len(layers)}"
        raise CheckpointError(f"llamacpp:{file}", words, "a whole GGUF file")
    return gguf.GGUFReader(file)
