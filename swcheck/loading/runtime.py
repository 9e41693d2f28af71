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
from typing import TYPE_CHECKING

from swcheck.base.errors import NotObservedError
from swcheck.base.records import SuperWeight

if TYPE_CHECKING:
    import torch
    from torch import nn


class Capability(StrEnum):
    """What a runtime may show beside log-probabilities."""

    TOKEN_IDS = "the token ids of a text"  # noqa: S105 - no secret
    VALUES = "the values of tensors inside a pass"
    OVERRIDE = "a pass with a weight overridden"


class Runtime(ABC):
    """A model that another program computes. Derive from it, set what is known, and write what ``shows`` states.

    ``title`` names the program and how it was set up: it stands in reports. ``vocabulary`` is V. ``context`` is the
    largest number of tokens in one pass, None if that is not known. ``sizes`` are the number of layers, H and F, None if
    the program does not tell. ``twin`` is a spec by which an engine loads the same stored weights as a torch module,
    with the reference given; empty if none does.
    """

    title: str
    vocabulary: int
    shows: frozenset[Capability] = frozenset()
    context: int | None = None
    sizes: tuple[int, int, int] | None = None
    twin: str = ""

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
            "compare predictions, or load the same weights in torch",
        )


def exportable(model: nn.Module) -> nn.Module:
    """Return a module of token ids, int64 ``(1, T)``, to logits ``(1, T, V)``, which exporters can trace.

    It runs the transformers module ``model`` without a cache. The causal mask is written out, because the code that
    transformers makes it with has no counterpart in most formats. So a window that slides is not exported.
    """
    import torch

    class LogitsOfIds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            length = input_ids.shape[1]
            mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
            answer = self.model(input_ids=input_ids, attention_mask=mask.to(next(model.parameters())), use_cache=False)
            logits: torch.Tensor = answer.logits
            return logits

    return LogitsOfIds().eval()
