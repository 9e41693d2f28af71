"""An OpenVINO graph as OpenVINO computes it on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino
import torch

from swcheck import Capability, CheckpointError, GraphRuntime, OptionError
from swcheck_openvino.graph import CORE, Places, with_changes

HINTS: Final = {"precision": "INFERENCE_PRECISION_HINT", "cache": "KV_CACHE_PRECISION"}
"""What OpenVINO calls an option."""

CACHES: Final = ("f16", "u8", "u4")
"""The types of key-value cache that a graph with one is scored through beside its own."""


class OpenVino(GraphRuntime):
    """A graph in OpenVINO: all logits; tensors as further outputs; a scalar corrected behind its product; its own cache."""

    def __init__(self, graph: Any, title: str, options: Mapping[str, str], tokenizer: Path | None = None) -> None:
        self._graph, self._asked = graph, title
        self._settings = {"INFERENCE_NUM_THREADS": options.get("threads", "1")}
        self._settings |= {HINTS[name]: options[name] for name in HINTS if name in options}
        self._places = Places(graph)
        stored = (one.get_byte_size() for one in graph.get_ops() if one.get_type_name() == "Constant")
        self.stored_bytes = sum(stored)
        keeps = bool(graph.get_variables())
        if "cache" in options and not keeps:
            raise OptionError(f"cache={options['cache']} in {title}", "this graph keeps no cache", "leave it out")
        said = "".join(f", {key}={value}" for key, value in options.items() if key != "group")
        self.title = f"OpenVINO {openvino.__version__.partition('-')[0]}{said}"
        self.vocabulary = int(self._run(torch.tensor([[0, 0]]))["logits"].shape[-1])
        rows = graph.input("input_ids").get_partial_shape()[0]
        further = {Capability.BATCHES} if rows.is_dynamic else set()
        if keeps:
            own = self.program().get_compiled_model().get_property(HINTS["cache"]).get_type_name()
            self.caches = tuple(kind for kind in CACHES if kind != own)
            self.coarse_cache = own == "u4"
            self.title += "" if "cache" in options else f", cache={own}"
            further.add(Capability.CHUNKS)
        self.found(self._places.streams, self._places.downs, tokenizer, further)

    def _run(self, ids: torch.Tensor, mask: torch.Tensor | None = None, *, watched: bool = False) -> dict[str, Any]:
        """Return the logits and, if ``watched``, all tensors of a pass over ``ids`` ``(B, T)``, by their names."""
        with self._in_words():
            request = self.program(watched=watched)
            request.reset_state()  # of a graph that keeps its cache
            return self._pass(request, ids, torch.ones_like(ids) if mask is None else mask)

    def _pass(self, request: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        """Return what the graph computes of ``ids`` ``(B, T)`` behind what it has kept, with a ``mask`` over both."""
        found = request.infer(self._inputs(request, ids, mask))
        return {name: value for output, value in found.items() for name in output.names}

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise CheckpointError(self._asked, lines[-1][:300], "convert it again") from error

    def compiled(self, *, watched: bool, cache: str) -> Any:
        """Return a request of the graph compiled: if ``watched`` with all tensors that may be asked for."""
        layers = (self._places.streams, self._places.downs) if watched else ((), ())
        is_changed = watched or self.changes
        graph = with_changes(self._graph, *layers, self.changes) if is_changed else self._graph
        settings = {**self._settings, **({HINTS["cache"]: cache} if cache else {})}
        return CORE.compile_model(graph, "CPU", settings).create_infer_request()

    def _inputs(self, request: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
        """Return what the graph asks for: ids, a mask, the positions of its last places, no reordering of beams."""
        (rows, length), end = ids.shape, mask.shape[1]
        whole = {
            "input_ids": ids.numpy(),
            "attention_mask": mask.numpy(),
            "position_ids": np.tile(np.arange(end - length, end, dtype=np.int64), (rows, 1)),
            "beam_idx": np.arange(rows, dtype=np.int32),
        }
        asked = [sorted(one.names, key=lambda name: name not in whole)[0] for one in request.model_inputs]
        unknown = next((name for name in asked if name not in whole), None)
        if unknown is not None:
            raise CheckpointError(self._asked, f"it asks for {unknown}", f"a graph of {', '.join(whole)}")
        return {name: whole[name] for name in asked}

    def stored_matrix(self, layer: int) -> np.ndarray:
        """Return the down projection of a layer ``(H, F)``, as the graph decompresses it."""
        return self._places.matrix(layer)

    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of every next token, float32 ``(T - 1, V)``."""
        return torch.from_numpy(self._run(ids[None])["logits"].copy())[0, :-1].float().log_softmax(-1)

    def padded_logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, T, V)`` of a padded batch."""
        return torch.from_numpy(self._run(ids, mask)["logits"].copy())

    def logits_in_chunks(self, chunks: Sequence[torch.Tensor], cache: str) -> Iterator[torch.Tensor]:
        """Yield the logits ``(t, V)`` of each chunk, behind what the graph has kept of those before."""
        with self._in_words():
            request, end = self.program(cache=cache), 0
            request.reset_state()
            for ids in chunks:
                end += ids.shape[1]
                yield torch.from_numpy(self._pass(request, ids, ids.new_ones(1, end))["logits"][0].copy())

    def values(
        self, ids: torch.Tensor, *, residual: Sequence[int] = (), inputs: Sequence[int] = ()
    ) -> tuple[Mapping[int, torch.Tensor], Mapping[int, torch.Tensor]]:
        """Return tensors of one pass by layer: the residual stream, and what the down projections read."""
        if not self.can(Capability.VALUES):
            return super().values(ids)
        found = self._run(ids[None], watched=True)
        both = (("residual", residual), ("input", inputs))
        streams, read = (
            {n: torch.from_numpy(found[f"swcheck {kind} {n}"].copy())[0].float() for n in layers}
            for kind, layers in both
        )
        return streams, read
