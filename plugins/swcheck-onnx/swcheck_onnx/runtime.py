"""An ONNX graph as ONNX Runtime computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch

from swcheck import Capability, CheckpointError, GraphRuntime
from swcheck_onnx.graph import Places, with_changes

PLAIN: Final = (False, ())
"""What the session of the graph as it is is kept under."""

SMALL: Final = 2**30
"""Bytes of a graph up to which its session stays beside that of a changed one; more take longer to score than to load."""


class OnnxRuntime(GraphRuntime):
    """A graph in ONNX Runtime: all logits; tensors as further outputs; a scalar corrected behind its product."""

    def __init__(self, proto: Any, title: str, threads: int = 1, tokenizer: Path | None = None) -> None:
        self._proto, self._asked, self._threads = proto, title, threads
        self._places = Places(proto)
        self._sessions: dict[Any, Any] = {}
        self._is_small = proto.ByteSize() <= SMALL
        reads = (down.read for down in self._places.downs.values())
        self._shown = list(dict.fromkeys((*self._places.streams.values(), *reads)))
        self.title = f"ONNX Runtime {onnxruntime.__version__}"
        self.vocabulary = int(self._run(torch.tensor([[0, 0]]), ())[0].shape[-1])
        rows = next(one for one in proto.graph.input if one.name == "input_ids").type.tensor_type.shape.dim[0]
        self.found(self._places.streams, self._places.downs, tokenizer, batches=not rows.HasField("dim_value"))

    def _run(self, ids: torch.Tensor, outputs: tuple[str, ...], mask: torch.Tensor | None = None) -> list[Any]:
        """Return the logits and the tensors ``outputs`` of a pass over ``ids`` ``(B, T)``, all of them without a ``mask``."""
        key = (bool(outputs), tuple(self.changes.items()))
        if key not in self._sessions:
            self._sessions = {one: kept for one, kept in self._sessions.items() if one == PLAIN and self._is_small}
            shown = self._shown if outputs else []
            changed = with_changes(self._proto, shown, self.changes) if shown or self.changes else self._proto
            self._sessions[key] = self._session(changed)
        session = self._sessions[key]
        fed = self._inputs(session, ids, torch.ones_like(ids) if mask is None else mask)
        try:
            return list(session.run(["logits", *outputs], fed))
        except Exception as error:  # its errors have no common class
            raise CheckpointError(self._asked, str(error).splitlines()[0][:300], "export it again") from error

    def _session(self, proto: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self._threads, 4
        try:
            return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as above
            raise CheckpointError(self._asked, str(error).splitlines()[0][:300], "export it again") from error

    def _inputs(self, session: Any, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, np.ndarray]:
        """Return what the graph asks for: ids, a mask, positions, an empty cache."""
        (rows, length), found = ids.shape, {}
        for one in session.get_inputs():
            kind = np.float16 if "float16" in one.type else np.float32 if "float" in one.type else np.int64
            if one.name == "input_ids":
                found[one.name] = ids.numpy()
            elif one.name == "attention_mask":
                found[one.name] = mask.numpy().astype(kind)
            elif one.name in {"position_ids", "cache_position"}:
                found[one.name] = (
                    np.tile(np.arange(length, dtype=kind), (rows, 1))
                    if one.name == "position_ids"
                    else np.arange(length)
                )
            elif one.name.startswith("past_key_values"):
                sides = [size if isinstance(size, int) else 0 for size in one.shape]
                found[one.name] = np.zeros([rows, *sides[1:]], kind)
            else:
                words = f"it asks for {one.name} {one.shape}"
                raise CheckpointError(self._asked, words, "a graph of input_ids, attention_mask, position_ids")
        return found

    def stored_matrix(self, layer: int) -> np.ndarray:
        """Return the down projection of a layer ``(H, F)``, dequantized from the graph."""
        return self._places.matrix(layer)

    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of every next token, float32 ``(T - 1, V)``."""
        return torch.from_numpy(self._run(ids[None], ())[0])[0, :-1].float().log_softmax(-1)

    def padded_logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, T, V)`` of a padded batch."""
        return torch.from_numpy(self._run(ids, (), mask)[0])

    def values(
        self, ids: torch.Tensor, *, residual: Sequence[int] = (), inputs: Sequence[int] = ()
    ) -> tuple[Mapping[int, torch.Tensor], Mapping[int, torch.Tensor]]:
        """Return tensors of one pass by layer: the residual stream, and what the down projections read."""
        if not self.can(Capability.VALUES):
            return super().values(ids)
        names = {("residual", n): self._places.streams[n] for n in residual}
        names |= {("input", n): self._places.downs[n].read for n in inputs}
        outputs = tuple(dict.fromkeys(names.values()))
        found = dict(zip(outputs, self._run(ids[None], outputs)[1:], strict=True))
        tensors = {key: torch.from_numpy(found[name])[0].float() for key, name in names.items()}
        return {n: tensors["residual", n] for n in residual}, {n: tensors["input", n] for n in inputs}

    def close(self) -> None:
        """Free the sessions; they are made again when they are needed."""
        self._sessions.clear()


def read(file: Path) -> Any:
    """Return the graph in a file. Raises ``CheckpointError`` for what is none, or is cut off."""
    title, attempt = f"onnx:{file}", "a whole ONNX file, with its .data beside it"
    try:
        proto = onnx.load(file)
    except Exception as error:  # protobuf and onnx raise several
        raise CheckpointError(title, f"{type(error).__name__}: {str(error).splitlines()[0]}"[:300], attempt) from error
    if "logits" not in {one.name for one in proto.graph.output}:
        raise CheckpointError(title, "it has no output called logits", "an export of a causal language model")
    return proto
