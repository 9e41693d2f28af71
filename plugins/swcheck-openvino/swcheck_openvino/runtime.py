"""An OpenVINO graph as OpenVINO computes it on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import openvino
import torch

from swcheck import Capability, CheckpointError, GraphRuntime
from swcheck_openvino.graph import CORE, Places, with_changes

PLAIN: Final = (False, ())
"""What the graph as it is is compiled under."""

SMALL: Final = 2**30
"""Bytes of weights up to which the plain graph stays compiled beside a changed one; more take longer to score than to compile."""


class OpenVino(GraphRuntime):
    """A graph in OpenVINO: all logits; tensors as further outputs; a scalar corrected behind its product."""

    def __init__(self, graph: Any, title: str, options: Mapping[str, str], tokenizer: Path | None = None) -> None:
        self._graph, self._asked = graph, title
        self._settings = {"INFERENCE_NUM_THREADS": options.get("threads", "1")}
        if "precision" in options:
            self._settings["INFERENCE_PRECISION_HINT"] = options["precision"]
        self._places = Places(graph)
        self._requests: dict[Any, Any] = {}
        stored = (one.get_byte_size() for one in graph.get_ops() if one.get_type_name() == "Constant")
        self._is_small = sum(stored) <= SMALL
        said = "".join(f", {key}={value}" for key, value in options.items() if key != "group")
        self.title = f"OpenVINO {openvino.__version__.partition('-')[0]}{said}"
        self.vocabulary = int(self._run(torch.tensor([[0, 0]]))["logits"].shape[-1])
        rows = graph.input("input_ids").get_partial_shape()[0]
        self.found(self._places.streams, self._places.downs, tokenizer, batches=rows.is_dynamic)

    def _run(
        self,
        ids: torch.Tensor,
        residual: Sequence[int] = (),
        inputs: Sequence[int] = (),
        mask: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Return the logits and the wanted tensors of a pass over ``ids`` ``(B, T)``, by their names."""
        key = (bool(residual or inputs), tuple(self.changes.items()))
        try:
            if key not in self._requests:
                self._requests = {one: kept for one, kept in self._requests.items() if one == PLAIN and self._is_small}
                self._requests[key] = self._compiled(*key).create_infer_request()
            request = self._requests[key]
            request.reset_state()  # of a graph that keeps its cache
            found = request.infer(self._inputs(request, ids, torch.ones_like(ids) if mask is None else mask))
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise CheckpointError(self._asked, lines[-1][:300], "convert it again") from error
        return {name: value for output, value in found.items() for name in output.names}

    def _compiled(self, watched: bool, changes: tuple[tuple[tuple[int, int, int], float], ...]) -> Any:
        """Return the graph compiled: if it is ``watched`` with all tensors that may be asked for, and with ``changes``."""
        layers = (self._places.streams, self._places.downs) if watched else ((), ())
        graph = with_changes(self._graph, *layers, dict(changes)) if watched or changes else self._graph
        return CORE.compile_model(graph, "CPU", self._settings)

    def _inputs(self, request: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
        """Return what the graph asks for: ids, a mask, positions, no reordering of beams."""
        whole = {
            "input_ids": ids.numpy(),
            "attention_mask": mask.numpy(),
            "position_ids": np.tile(np.arange(ids.shape[1], dtype=np.int64), (len(ids), 1)),
            "beam_idx": np.arange(len(ids), dtype=np.int32),
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
        return torch.from_numpy(self._run(ids, mask=mask)["logits"].copy())

    def values(
        self, ids: torch.Tensor, *, residual: Sequence[int] = (), inputs: Sequence[int] = ()
    ) -> tuple[Mapping[int, torch.Tensor], Mapping[int, torch.Tensor]]:
        """Return tensors of one pass by layer: the residual stream, and what the down projections read."""
        if not self.can(Capability.VALUES):
            return super().values(ids)
        found = self._run(ids[None], residual, inputs)
        both = (("residual", residual), ("input", inputs))
        streams, read = (
            {n: torch.from_numpy(found[f"swcheck {kind} {n}"].copy())[0].float() for n in layers}
            for kind, layers in both
        )
        return streams, read

    def close(self) -> None:
        """Free the compiled graphs; they are compiled again when they are needed."""
        self._requests.clear()
