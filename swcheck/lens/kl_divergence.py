"""How far one model's predictions have drifted from another's, without both being in memory.

The reference leaves its likeliest tokens with their log-probabilities, and the mass of all others, at a fixed sample of
positions; the candidate is compared with those. The KL divergence is over these entries and one tail bucket, in nats: a
lower bound of the full one (merging outcomes never raises it), and the covered mass says how tight. The same estimator
serves with a baseline file and without. B batch, T time, N sampled positions, K tokens kept, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from swcheck.lens.anatomy import device_of
from swcheck.lens.likelihood import LOGITS_AT_ONCE, evaluating
from swcheck.lens.tokens import check_token_ids, vocabulary_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

KEPT: Final = 32
POSITIONS: Final = 1024


@dataclass(frozen=True)
class Predictions:
    """A reference's likeliest tokens at sampled positions.

    ``positions`` int64 ``(N,)`` index the flattened ``(B, T - 1)`` predictions; ``tokens`` int64 and ``logs`` float32
    are ``(N, K)``, likeliest first.
    """

    positions: torch.Tensor
    tokens: torch.Tensor
    logs: torch.Tensor

    @property
    def covered(self) -> float:
        """The mean probability that the kept tokens hold."""
        return float(self.logs.exp().sum(1).mean())

    @property
    def confidence(self) -> float:
        """The mean probability of the likeliest token."""
        return float(self.logs[:, 0].exp().mean())


@dataclass(frozen=True)
class Drift:
    """The candidate against it: ``kl`` nats and ``agree`` (same likeliest token), each ``(N,)``."""

    kl: torch.Tensor
    agree: torch.Tensor

    @property
    def mean(self) -> float:
        """Mean KL divergence in nats."""
        return float(self.kl.mean())

    @property
    def error(self) -> float:
        """The standard error of that mean, positions taken as independent."""
        return float(self.kl.double().std() / math.sqrt(len(self.kl))) if len(self.kl) > 1 else 0.0

    @property
    def top1(self) -> float:
        """The share of positions with the same likeliest token."""
        return float(self.agree.double().mean())

    @property
    def top1_error(self) -> float:
        """The standard error of that share."""
        return math.sqrt(self.top1 * (1 - self.top1) / len(self.agree))

    def percentile(self, share: float) -> float:
        """The KL divergence that ``share`` of the positions stay under."""
        return float(self.kl.quantile(share))


def predict(model: nn.Module, token_ids: torch.Tensor) -> tuple[torch.Tensor, Predictions]:
    """Score ``token_ids`` ``(B, T)`` in one pass: the nats of every token, float64 ``(B, T - 1)``, and predictions."""
    positions = sampled(token_ids.shape[0] * (token_ids.shape[1] - 1))
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(logs: torch.Tensor, _places: slice) -> None:
        top = logs.topk(min(KEPT, logs.shape[1]))
        parts.append((top.indices.cpu(), top.values.cpu()))

    nats = _scored(model, token_ids, positions, keep)
    return nats, Predictions(positions, torch.cat([t for t, _ in parts]), torch.cat([v for _, v in parts]))


def compare(model: nn.Module, token_ids: torch.Tensor, reference: Predictions) -> tuple[torch.Tensor, Drift]:
    """Score the same ``token_ids`` with another model in one pass: its nats, and its drift from ``reference``."""
    kls: list[torch.Tensor] = []
    agrees: list[torch.Tensor] = []

    def hold(logs: torch.Tensor, places: slice) -> None:
        tokens, ours = reference.tokens[places], reference.logs[places].double()
        theirs = logs.cpu().double().gather(1, tokens)
        kls.append(_divergence(ours, theirs))
        agrees.append(logs.argmax(1).cpu() == tokens[:, 0])

    nats = _scored(model, token_ids, reference.positions, hold)
    return nats, Drift(torch.cat(kls), torch.cat(agrees))


def _divergence(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """KL(ours, theirs) over the kept entries ``(N, K)`` and one tail bucket, nats ``(N,)``."""
    floor = 1e-12
    tail, other = ((1 - logs.exp().sum(1)).clamp_min(floor) for logs in (ours, theirs))
    head = (ours.exp() * (ours - theirs)).sum(1)
    return (head + tail * (tail.log() - other.log())).clamp_min(0)


def sampled(count: int) -> torch.Tensor:
    """At most ``POSITIONS`` of ``count`` positions, evenly spaced, int64."""
    return torch.linspace(0, count - 1, min(POSITIONS, count), dtype=torch.float64).long()


def _scored(
    model: nn.Module,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    visit: Callable[[torch.Tensor, slice], None],
) -> torch.Tensor:
    """The nats of every token; ``visit`` sees the log-probabilities ``(n, V)`` at the sampled positions, in order."""
    check_token_ids(token_ids, vocabulary_size(model))
    width = token_ids.shape[1] - 1
    rows = max(1, LOGITS_AT_ONCE // (token_ids.shape[1] * (vocabulary_size(model) or 2**16)))
    nats, done = [], 0
    with evaluating(model):
        for first in range(0, len(token_ids), rows):
            part = token_ids[first : first + rows].to(device_of(model))
            logs = model(part, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            nats.append(-logs.gather(2, part[:, 1:, None])[..., 0].double().cpu())
            here = positions[(positions >= first * width) & (positions < (first + len(part)) * width)] - first * width
            if len(here):
                visit(logs.flatten(0, 1)[here.to(logs.device)], slice(done, done + len(here)))
                done += len(here)
    return torch.cat(nats)
