"""A runtime: another program that computes a candidate, as llama.cpp computes a GGUF file.

An engine returns it as the ``model`` of its ``Loaded``. There are no modules and no hooks then; the checks ask for
capabilities, and a check whose capability a runtime does not have is not applicable. The log-probabilities of a prompt
are the one thing that every runtime has. T tokens, V vocabulary, H residual width, F inner width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swcheck.base.errors import NotObservedError
from swcheck.base.records import SuperWeight

if TYPE_CHECKING:
    import torch


class Capability(StrEnum):
    """What a runtime may show beside log-probabilities."""

    TOKEN_IDS = "the token ids of a text"  # noqa: S105 - no secret
    VALUES = "the values of tensors inside a pass"
    OVERRIDE = "a pass with a weight overridden"
    EVICTION = "a cache that loses tokens"
    CHUNKS = "a window in chunks"
    BATCHES = "several windows at once"
    SETTINGS = "a window under other settings"
    REQUESTS = "several requests at once"


class Runtime(ABC):
    """A model that another program computes. Derive from it, set what is known, and write what ``shows`` states.

    ``title`` names the program and how it was set up: it stands in reports. ``vocabulary`` is V. ``context`` is the
    largest number of tokens in one pass, None if that is not known. ``sizes`` are the number of layers, H and F, None if
    the program does not tell. ``twin`` is a spec by which an engine loads the same stored weights as a torch module,
    with the reference given; empty if none does. ``caches`` are the types of key-value cache that it can be given beside
    the one that it has; ``coarse_cache`` says that its own has so few bits that chunks of a sound model differ from windows.
    ``settings`` are other ways in which it can be set to compute a window, in words that follow "129
    tokens": "in physical batches of 32". ``by_prefix`` says that each token is computed from a prompt of its own, so that all
    lengths are scored with a window. ``advice`` says how the program is set up to show more; it stands where a check is not
    applicable.
    """

    title: str
    vocabulary: int
    shows: frozenset[Capability] = frozenset()
    context: int | None = None
    sizes: tuple[int, int, int] | None = None
    twin: str = ""
    caches: tuple[str, ...] = ()
    coarse_cache: bool = False
    settings: tuple[str, ...] = ()
    by_prefix: bool = False
    advice: str = ""

    @abstractmethod
    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities in nats of every next token, float32 ``(T - 1, V)`` on the CPU.

        ``ids`` is int64 ``(T,)``. Entries that the program does not tell are ``-inf``; that of the token that follows
        has to be told.
        """

    def token_ids(self, text: str) -> Sequence[int]:  # noqa: ARG002 - for those that derive
        """Return the ids of a text by the runtime's own tokenizer, with BOS where that adds it."""
        raise self.not_shown(Capability.TOKEN_IDS)

    def values(
        self,
        ids: torch.Tensor,  # noqa: ARG002
        *,
        residual: Sequence[int] = (),  # noqa: ARG002
        inputs: Sequence[int] = (),  # noqa: ARG002
    ) -> tuple[Mapping[int, torch.Tensor], Mapping[int, torch.Tensor]]:
        """Return tensors of one pass over ``ids``, int64 ``(T,)``, by layer, float32 on the CPU.

        First the residual stream after the layers ``residual``, each ``(T, H)``. Then what the down projections of the
        layers ``inputs`` read, each ``(T, F)``.
        """
        raise self.not_shown(Capability.VALUES)

    def weight_value(self, weight: SuperWeight) -> float:  # noqa: ARG002
        """Return the value of a scalar of a down projection as the program stores it, dequantized."""
        raise self.not_shown(Capability.VALUES)

    def overridden(self, values: Mapping[SuperWeight, float]) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a block in which scalars of down projections have other values; nothing is left of it afterwards."""
        raise self.not_shown(Capability.OVERRIDE)

    def rolled_log_probabilities(self, ids: torch.Tensor, *, window: int, first: int) -> torch.Tensor:  # noqa: ARG002
        """Return what ``log_probabilities`` does, from a key-value cache of ``window`` tokens that rolls over.

        Before a token is computed that has no room in it, the oldest one behind the ``first`` leaves. Positions are not
        shifted.
        """
        raise self.not_shown(Capability.EVICTION)

    def chunked_log_probabilities(self, ids: torch.Tensor, *, cuts: Sequence[int], cache: str = "") -> torch.Tensor:  # noqa: ARG002
        """Return what ``log_probabilities`` does, computed up to the first of ``cuts``, then on to each further one.

        ``cache`` is one of ``caches``, empty for the type of key-value cache that the program was set up with.
        """
        raise self.not_shown(Capability.CHUNKS)

    def batched_log_probabilities(self, rows: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:  # noqa: ARG002
        """Return what ``log_probabilities`` does of each of ``rows``, int64 ``(T,)`` of several lengths, computed together."""
        raise self.not_shown(Capability.BATCHES)

    def set_log_probabilities(self, ids: torch.Tensor, *, setting: str) -> torch.Tensor:  # noqa: ARG002
        """Return what ``log_probabilities`` does, computed under one of ``settings``."""
        raise self.not_shown(Capability.SETTINGS)

    def concurrent_log_probabilities(self, rows: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:  # noqa: ARG002
        """Return what ``log_probabilities`` does of each of ``rows``, asked for in requests that wait at the same time."""
        raise self.not_shown(Capability.REQUESTS)

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Free what the program holds. May be called twice."""

    def can(self, *capabilities: Capability) -> bool:
        """Return whether the runtime has all of these capabilities."""
        return self.shows.issuperset(capabilities)

    def not_shown(self, capability: Capability) -> NotObservedError:
        """Return the error for a capability that the runtime does not have."""
        return NotObservedError(
            f"{capability.value}, of {self.title}",
            f"it shows {', '.join(sorted(one.value for one in self.shows)) or 'log-probabilities alone'}",
            self.advice or "compare predictions, or load the same weights in torch",
        )


def tokenizer_in(folder: Path) -> Any:
    """Return the tokenizer of transformers that lies in a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
