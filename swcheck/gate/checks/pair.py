"""A candidate and its reference, as every check of the gate takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from swcheck.base.errors import NotFiniteError
from swcheck.base.records import Outcome, SuperWeight, Verdict
from swcheck.gate.relation.basis import Relation, relation
from swcheck.gate.relation.candidate_kind import Kind, kind_of
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.scores import intact_scores, paired_nats
from swcheck.superweights.subject.subject import Subject


@dataclass
class Pair:
    """A candidate and its reference, for the check called ``check``.

    ``chosen`` are the super weights that the caller gave, in the reference's coordinates; None means the reference's
    own.
    """

    check: str
    candidate: Subject
    reference: Subject
    chosen: tuple[SuperWeight, ...] | None = None

    @property
    def weights(self) -> tuple[SuperWeight, ...]:
        """The super weights to compare, in the reference's coordinates."""
        return located(self.reference).super_weights if self.chosen is None else self.chosen

    @property
    def relation(self) -> Relation:
        """The relation of the bases of the two residual streams: same, permuted, rotated, none, or unknown."""
        return relation(self.candidate, self.reference)

    @property
    def kind(self) -> Kind:
        """What was done to the candidate: quantized, fine-tuned, pruned and so on."""
        return kind_of(self.candidate, self.reference)

    @property
    def is_student(self) -> bool:
        """Whether the candidate was distilled: none of its weights has a counterpart in the reference, its teacher."""
        return self.kind.name == "distilled"

    @property
    def module_owner(self) -> Subject:
        """The subject whose modules give the names of matrices: the reference of a candidate in another program."""
        return self.reference if self.candidate.is_runtime else self.candidate

    def verdict(self, outcome: Outcome, summary: str, **fields: Any) -> Verdict:
        """Return a verdict of this check about this candidate; ``fields`` are further fields of ``Verdict``."""
        name = None if self.candidate is self.reference else self.candidate.name
        return Verdict(self.check, self.reference.name, outcome, summary, name, **fields)

    def failed(self, cause: str, summary: str, attempt: str = "", **fields: Any) -> Verdict:
        """Return a verdict with the outcome ``failed``."""
        return self.verdict(Outcome.FAILED, summary, cause=cause, attempt=attempt, **fields)

    def nats(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the nats of every token of the reference's windows, first the reference's, then the candidate's.

        Both are float64 ``(B, T - 1)``. Raises ``NotFiniteError`` if one of the reference's is not finite.
        """
        theirs = intact_scores(self.reference)[0]
        if not torch.isfinite(theirs).all():
            raise NotFiniteError(
                f"the perplexity of the reference {self.reference.name}", "NaN or infinity", "check its dtype"
            )
        return paired_nats(self.candidate, self.reference)


def passed_or_near(near: bool) -> Outcome:
    """Return ``near`` for a measured value within the noise of its limit, else ``passed``."""
    return Outcome.NEAR if near else Outcome.PASSED
