"""A red candidate and its reference, and how many of the lost nats return when something is restored."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.formatting import format_ratio
from swcheck.base.statistics import STANDARD_ERRORS, factor_of, ratio_of
from swcheck.gate.diagnosis.evidence.finding import Detail
from swcheck.lens.kl_divergence import compare_predictions
from swcheck.lens.likelihood import token_nats
from swcheck.superweights.measurements.ablation import intact_nats, intact_nats_against, window_starts
from swcheck.superweights.measurements.contributions import (
    contributions_at,
    contributions_on_default_prompt,
    sink_tokens,
)
from swcheck.superweights.measurements.inputs import prompt_ids, windows
from swcheck.superweights.measurements.scores import intact_scores, noise_floor, scores_against
from swcheck.superweights.measurements.weights import down_name
from swcheck.superweights.subject.measurement import Slot
from swcheck.superweights.subject.memory import Cost, InBaseline

if TYPE_CHECKING:
    import torch
    from torch import nn

    from swcheck.base.records import SuperActivation, SuperWeight
    from swcheck.gate.relation.basis import Relation
    from swcheck.superweights.subject.subject import Subject

PROVEN: Final = 0.5
"""A cause is proven if at least this share of the lost nats returns when it is undone."""

LITTLE_LOSS: Final = 0.1
"""Where fewer nats per token are lost, a proof compares the predictions, which show a change before the loss does."""

NO_LOSS: Final = 1e-4
"""Fewer lost nats per token than this, a hundredth of the tightest limit, count as no loss and prove nothing."""

KEEP_PLACE: Final = "keep that layer, column or expert where the model is made smaller"
"""What to do about a super weight that the candidate has no place for."""

_CONTRIBUTIONS_RESTORED: Final = Slot[tuple[float, str]](
    "contributions restored", Cost.WINDOW_STARTS, in_baseline=InBaseline.NO
)


@dataclass(frozen=True)
class DamagedCandidate:
    """A red candidate and its reference. B windows, P tokens of a window start.

    ``weights`` are the super weights in the reference's coordinates, ``places`` the same in the candidate's. ``share``
    is the share of the reference's collapse that the candidate still shows, given only if that is red. ``absent`` are
    further super weights of the reference, whose layer, column or expert the candidate lacks, each with words for what
    it has instead.
    """

    candidate: Subject
    reference: Subject
    relation: Relation
    weights: tuple[SuperWeight, ...] = ()
    places: tuple[SuperWeight, ...] = ()
    share: float | None = None
    absent: tuple[tuple[SuperWeight, str], ...] = ()

    @cached_property
    def ids(self) -> torch.Tensor:
        """The token ids that are scored after a restoration, int64 ``(B, P)``: starts of the reference's windows."""
        return window_starts(self.reference)

    @cached_property
    def reference_nats(self) -> float:
        """The reference's nats per token on ``ids``."""
        return float(intact_nats(self.reference).mean())

    @cached_property
    def candidate_nats(self) -> float:
        """The candidate's nats per token on ``ids``."""
        return float(intact_nats_against(self.candidate, self.reference).mean())

    @property
    def proven_on(self) -> torch.Tensor:
        """The token ids that ``recovered`` scores, int64 ``(B, T)``: whole windows where little was lost, else ``ids``."""
        return windows(self.reference) if self.candidate_nats - self.reference_nats < LITTLE_LOSS else self.ids

    def recovered(self, restored: Callable[[Any], AbstractContextManager[nn.Module | None]]) -> tuple[float, str]:
        """Return the share of the lost nats that returns inside ``restored(module)``, and words for it.

        Where that yields another module, it is scored in place of the candidate's.
        """
        # before the candidate is loaded, since these may need another model in memory
        ids, lost = self.ids, self.candidate_nats - self.reference_nats
        model = self.candidate.scorer
        with restored(model) as other:
            each = token_nats(model if other is None else other, ids)
        nats = float(each.mean())
        left = factor_of(nats - self.reference_nats) if math.isfinite(nats) else math.inf
        if lost < LITTLE_LOSS:
            return self._drift_returned(restored, left)
        share = (self.candidate_nats - nats) / lost if math.isfinite(nats) else 0.0
        return share, f"perplexity x{left:.3f}, {round(100 * share)}% of the loss returns"

    def _drift_returned(
        self, restored: Callable[[Any], AbstractContextManager[nn.Module | None]], left: float
    ) -> tuple[float, str]:
        """Return the share of the KL divergence that returns inside ``restored(module)``, where little loss could."""
        drift, expected = scores_against(self.candidate, self.reference)[1].mean, intact_scores(self.reference)[1]
        if not drift > max(NO_LOSS, STANDARD_ERRORS * noise_floor(self.reference)[0]):
            return 0.0, f"perplexity x{left:.3f}, no loss beyond the noise that could return"
        ids, model = windows(self.reference), self.candidate.scorer
        with restored(model) as other:
            now = compare_predictions(model if other is None else other, ids, expected)[1].mean
        share = 1 - now / drift if math.isfinite(now) else 0.0
        return share, f"KL {now:.4f} nats (was {drift:.4f}), {round(100 * share)}% of the drift returns"

    def with_contributions_restored(self, attempt: Callable[[], tuple[float, str]]) -> tuple[float, str]:
        """Return what ``attempt`` returns; it is called once and remembered for all checks of the candidate."""
        _ = self.candidate_nats  # computed first, since the attempt is compared with it and ``tried_on`` reports it
        inputs = (self.reference, self.weights, self.places)
        return _CONTRIBUTIONS_RESTORED.recall(self.candidate, inputs, attempt)

    @property
    def tried_on(self) -> Detail:
        """A row with the tokens that were scored and the candidate's perplexity there; empty if nothing was tried."""
        if "candidate_nats" not in vars(self):
            return ()
        windows, length = self.ids.shape
        ratio = format_ratio(factor_of(self.candidate_nats - self.reference_nats))
        beginning = f"the first {length} tokens of {windows} window{'s' * (windows > 1)}"
        return (("tried on", f"{beginning}, where the candidate has perplexity {ratio}"),)

    @cached_property
    def ratios(self) -> tuple[float, ...]:
        """The contribution of each super weight in the candidate over that in the reference."""
        prompt = prompt_ids(self.reference)
        ours = contributions_at(self.candidate, self.places, prompt, sink_tokens(self.reference, self.weights, prompt))
        return tuple(
            ratio_of(one, other)
            for one, other in zip(ours, contributions_on_default_prompt(self.reference, self.weights), strict=True)
        )

    @property
    def absence(self) -> str:
        """Words for the super weights that the candidate has no place for; empty if it has one for each."""
        if not self.absent:
            return ""
        places = ", ".join(weight.place for weight, _ in self.absent)
        found = ", ".join(dict.fromkeys(words for _, words in self.absent))
        return f"no place for the super weight{'s' * (len(self.absent) > 1)} at {places}: {found}"

    def matrix_names(self) -> tuple[str, ...]:
        """Return the qualified names of the matrices that have the super weights."""
        owner = self.reference if self.candidate.is_runtime else self.candidate
        return tuple(dict.fromkeys(down_name(owner, weight.layer, weight.expert) for weight in self.places))

    def place_of(self, place: SuperActivation) -> SuperActivation:
        """Return a super activation of the reference with its channel in the candidate."""
        channels = self.relation.channels
        return replace(place, channel=channels[place.channel]) if channels else place
