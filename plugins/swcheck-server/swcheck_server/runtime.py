"""A model behind a server, as a runtime. T tokens, V vocabulary, H residual width, F inner width."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch

from swcheck import Capability, CheckpointError, Runtime, SuperWeight
from swcheck_server.address import Address
from swcheck_server.completions import Completions
from swcheck_server.connection import NotThereError, ask
from swcheck_server.worker import START, Worker

TEXT: Final = "def spam(eggs=1):\n"
"""What is asked for at first, to see what the server shows."""


class ServerRuntime(Runtime):
    """A model behind a server. What it shows beside log-probabilities is tried when it is made."""

    def __init__(self, address: Address, tokenizer: Any, vocabulary: int) -> None:
        self.vocabulary, self._address = vocabulary, address
        self._completions = Completions(address, tokenizer, vocabulary)
        self._changes: dict[tuple[int, int, int], float] = {}
        self._sizes: dict[int, float] = {}
        self._trial = list(tokenizer(TEXT)["input_ids"])
        self.shows = frozenset({Capability.REQUESTS})
        sent = "token ids were sent"
        if self._tokens_of("x") is not None:
            self.shows |= {Capability.TOKEN_IDS}
            sent += ", and texts for its tokenizer"
        if self._completions.takes_several(self._trial):
            self.shows |= {Capability.BATCHES}
        self._worker: Worker | None = None
        if self._completions.echoes:
            self.advice = self._look_inside()
        if self._worker is not None:
            sent += ", and numbers of layers and of scalars for its extension"
        self.title = f"the server {address.url}, model {address.model}, to which {sent}"

    @property
    def by_prefix(self) -> bool:  # type: ignore[override]
        """Whether each token is computed from a prompt of its own."""
        return not self._completions.echoes

    def _look_inside(self) -> str:
        """Try the extension in the worker of vLLM; return how it is had where it is not there, or why it shows nothing."""
        try:
            self._worker = Worker(self._address)
        except NotThereError:
            return START
        except CheckpointError as error:
            return f"{error.found}; {START}"
        self.sizes = self._worker.sizes
        self.shows |= {Capability.VALUES, Capability.OVERRIDE}
        layers = range(self.sizes[0])
        try:
            self.values(torch.tensor(self._trial), residual=layers, inputs=layers)
        except CheckpointError as error:
            self._worker, self.sizes = None, None
            self.shows -= {Capability.VALUES, Capability.OVERRIDE}
            return f"{error.found}; {START}"
        return ""

    def _salt(self) -> None:
        """From now on the server takes no keys and values for a prompt that it has computed before."""
        self._completions.extras = {"cache_salt": secrets.token_hex(8)}

    def _tokens_of(self, text: str) -> list[int] | None:
        """Return the ids of a text, None where the server does not tell: vLLM's and llama.cpp's names in one."""
        asked = {"model": self._address.model, "prompt": text, "content": text}
        try:
            found = ask(self._address, "POST", "/tokenize", {**asked, "add_special": True, "add_special_tokens": True})
        except CheckpointError:
            return None
        tokens = found.get("tokens")
        return tokens if isinstance(tokens, list) and all(isinstance(one, int) for one in tokens) else None

    def token_ids(self, text: str) -> Sequence[int]:
        """Return the ids of a text by the server's own tokenizer."""
        found = self._tokens_of(text) if self.can(Capability.TOKEN_IDS) else None
        return super().token_ids(text) if found is None else found

    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities that the server tells, float32 ``(T - 1, V)``, ``-inf`` where it tells none."""
        return self._completions.logs_of([ids.tolist()])[0]

    def batched_log_probabilities(self, rows: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the same of each of ``rows``, asked for in one request of several prompts."""
        if not self.can(Capability.BATCHES):
            return super().batched_log_probabilities(rows)
        return self._completions.logs_of([row.tolist() for row in rows])

    def concurrent_log_probabilities(self, rows: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the same of each of ``rows``, each asked for while the others are."""
        with ThreadPoolExecutor(len(rows)) as threads:
            return list(threads.map(self.log_probabilities, rows))

    def values(
        self, ids: torch.Tensor, *, residual: Sequence[int] = (), inputs: Sequence[int] = ()
    ) -> tuple[Mapping[int, torch.Tensor], Mapping[int, torch.Tensor]]:
        """Return tensors of one pass by layer: the residual stream, and what the down projections read."""
        if self._worker is None or self.sizes is None:
            return super().values(ids)
        worker, sent = self._worker, ids.tolist()
        self._salt()
        with worker.keeping(residual, inputs):
            self._completions.pass_over(sent)
            order = worker.order(sent)
            _, hidden, inner = self.sizes
            streams = {layer: worker.tensor("residual", layer, order, hidden) for layer in residual}
            return streams, {layer: worker.tensor("inputs", layer, order, inner) for layer in inputs}

    def weight_value(self, weight: SuperWeight) -> float:
        """Return a scalar of a down projection, read with an input as large as what its layer reads."""
        if self._worker is None:
            return super().weight_value(weight)
        layer = weight.layer
        if layer not in self._sizes:
            read = self.values(torch.tensor(self._trial), inputs=[layer])[1][layer]
            self._sizes[layer] = float(read.abs().max())
        return self._worker.weight((layer, weight.row, weight.column), self._sizes[layer])

    def overridden(self, values: Mapping[SuperWeight, float]) -> AbstractContextManager[None]:
        """Return a block in which scalars of down projections have other values."""
        return super().overridden(values) if self._worker is None else self._overridden(self._worker, values)

    @contextmanager
    def _overridden(self, worker: Worker, values: Mapping[SuperWeight, float]) -> Iterator[None]:
        before = self._changes
        changes = {(w.layer, w.row, w.column): value - self.weight_value(w) for w, value in values.items()}
        try:
            self._correct(worker, {**before, **changes})
            yield
        finally:
            self._correct(worker, before)

    def _correct(self, worker: Worker, changes: dict[tuple[int, int, int], float]) -> None:
        self._changes = changes
        self._salt()
        worker.correct(changes)
