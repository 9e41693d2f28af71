"""An ONNX graph as ONNX Runtime computes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
import torch

from swcheck import Capability, CheckpointError, GraphRuntime
from swcheck_onnx.graph import Places, with_changes

PAST: Final = "past_key_values"
"""How the names of the inputs begin that take the keys and values of what came before; what comes out is "present"."""


class OnnxRuntime(GraphRuntime):
    """A graph in ONNX Runtime: all logits; tensors as further outputs; a scalar corrected behind its product."""

    def __init__(self, proto: Any, title: str, threads: int = 1, tokenizer: Path | None = None) -> None:
        self._proto, self._asked, self._threads = proto, title, threads
        self._places = Places(proto)
        self.stored_bytes = proto.ByteSize()
        self._kept = {one.name: one.name.replace(PAST, "present") for one in proto.graph.input if PAST in one.name}
        reads = (down.read for down in self._places.downs.values())
        self._shown = list(dict.fromkeys((*self._places.streams.values(), *reads)))
        self.title = f"ONNX Runtime {onnxruntime.__version__}"
        self.vocabulary = int(self._run(torch.tensor([[0, 0]]))[0].shape[-1])
        rows = next(one for one in proto.graph.input if one.name == "input_ids").type.tensor_type.shape.dim[0]
        further = set() if rows.HasField("dim_value") else {Capability.BATCHES}
        given = {one.name for one in proto.graph.output}
        if self._kept and given.issuperset(self._kept.values()):
            further.add(Capability.CHUNKS)
        self.found(self._places.streams, self._places.downs, tokenizer, further)

    def _run(
        self,
        ids: torch.Tensor,
        outputs: Sequence[str] = (),
        mask: torch.Tensor | None = None,
        past: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Any]:
        """Return the logits and the tensors ``outputs`` of a pass over ``ids`` ``(B, T)`` behind ``past``.

        Without a ``mask`` over both all of them count.
        """
        session = self.program(watched=not set(outputs) <= set(self._kept.values()))
        fed = self._inputs(session, ids, torch.ones_like(ids) if mask is None else mask, past)
        try:
            return list(session.run(["logits", *outputs], fed))
        except Exception as error:  # its errors have no common class
            raise CheckpointError(self._asked, str(error).splitlines()[0][:300], "export it again") from error

    def compiled(self, *, watched: bool, cache: str) -> Any:  # noqa: ARG002 - it has no types of cache
        """Return a session of the graph: if ``watched`` with all tensors that may be asked for."""
        shown = self._shown if watched else []
        changed = with_changes(self._proto, shown, self.changes) if shown or self.changes else self._proto
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self._threads, 4
        try:
            return onnxruntime.InferenceSession(
                changed.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # as above
            raise CheckpointError(self._asked, str(error).splitlines()[0][:300], "export it again") from error

    def _inputs(
        self, session: Any, ids: torch.Tensor, mask: torch.Tensor, past: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """Return what the graph asks for: ids, a mask, the positions of its last places, a cache that is empty at first."""
        (rows, length), end, found = ids.shape, mask.shape[1], {}
        for one in session.get_inputs():
            kind = np.float16 if "float16" in one.type else np.float32 if "float" in one.type else np.int64
            places = np.arange(end - length, end, dtype=kind)
            if one.name == "input_ids":
                found[one.name] = ids.numpy()
            elif one.name == "attention_mask":
                found[one.name] = mask.numpy().astype(kind)
            elif one.name in {"position_ids", "cache_position"}:
                found[one.name] = np.tile(places, (rows, 1)) if one.name == "position_ids" else places
            elif one.name in past:
                found[one.name] = past[one.name]
            elif one.name.startswith(PAST):
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
        return torch.from_numpy(self._run(ids[None])[0])[0, :-1].float().log_softmax(-1)

    def padded_logits(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, T, V)`` of a padded batch."""
        return torch.from_numpy(self._run(ids, mask=mask)[0])

    def logits_in_chunks(self, chunks: Sequence[torch.Tensor], cache: str) -> Iterator[torch.Tensor]:  # noqa: ARG002
        """Yield the logits ``(t, V)`` of each chunk, with the keys and values that the last one gave back."""
        past: dict[str, Any] = {}
        end = 0
        for ids in chunks:
            end += ids.shape[1]
            logits, *given = self._run(ids, tuple(self._kept.values()), ids.new_ones(1, end), past)
            past = dict(zip(self._kept, given, strict=True))
            yield torch.from_numpy(logits[0])

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
