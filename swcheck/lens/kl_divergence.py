"""Estimates the KL divergence between the predictions of two models that are not in memory together.

Of the reference the likeliest tokens with their log-probabilities are kept, at a fixed sample of positions. The KL
divergence, in nats, is computed over these tokens and one tail bucket, which holds the probability of all other tokens.
It is a lower bound of the full divergence, because merging outcomes never raises it; the probability that the kept
tokens cover says how tight it is. The same estimator is used with a baseline file and without one.
B batch, T tokens, N sampled positions, K tokens kept, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from swcheck.lens.architecture.layer_by_layer import logits_of_windows
from swcheck.lens.architecture.storage import evaluating
from swcheck.lens.likelihood import log_probabilities, nats_of, windows_at_once
from swcheck.lens.tokens import check_token_ids, vocabulary_size
from swcheck.loading.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

TOKENS_KEPT: Final = 32
"""The number of tokens, the likeliest ones, that are kept at each position."""
POSITIONS: Final = 1024
"""At most this many positions are sampled."""


@dataclass(frozen=True)
class Predictions:
    """The likeliest tokens of a reference at sampled positions.

    ``positions`` int64 ``(N,)`` are indices into the flattened ``(B, T - 1)`` predictions. ``tokens`` int64 ``(N, K)``
    are the likeliest first, and ``logs`` float32 ``(N, K)`` are their log-probabilities in nats.
    """

    positions: torch.Tensor
    tokens: torch.Tensor
    logs: torch.Tensor

    @property
    def covered(self) -> float:
        """The probability that the kept tokens cover together, mean over the positions."""
        return float(self.logs.exp().sum(1).mean())

    @property
    def confidence(self) -> float:
        """The probability of the likeliest token, mean over the positions."""
        return float(self.logs[:, 0].exp().mean())


@dataclass(frozen=True)
class Drift:
    """How far a candidate's predictions are from a reference's at each sampled position.

    ``kl`` float64 ``(N,)`` is the KL divergence in nats, of the candidate from the reference; ``reverse`` is that of the
    reference from the candidate. ``agree`` bool ``(N,)`` says whether both models find the same token likeliest.
    """

    kl: torch.Tensor
    agree: torch.Tensor
    reverse: torch.Tensor

    @property
    def mean(self) -> float:
        """The mean KL divergence in nats per token."""
        return float(self.kl.mean())

    @property
    def error(self) -> float:
        """The standard error of ``mean``, with positions treated as independent."""
        return float(self.kl.double().std() / math.sqrt(len(self.kl))) if len(self.kl) > 1 else 0.0

    @property
    def top1(self) -> float:
        """The share of positions with the same likeliest token."""
        return float(self.agree.double().mean())

    @property
    def top1_error(self) -> float:
        """The standard error of ``top1``."""
        return math.sqrt(self.top1 * (1 - self.top1) / len(self.agree))


def predict(model: nn.Module | Runtime, token_ids: torch.Tensor) -> tuple[torch.Tensor, Predictions]:
    """Score ``token_ids``, int64 ``(B, T)``, with the reference.

    Returns the nats of every predicted token, float64 ``(B, T - 1)``, and the predictions to compare a candidate with,
    both from the same passes. Raises ``TextError`` for ids that are not valid.
    """
    positions = sampled_positions(token_ids.shape[0] * (token_ids.shape[1] - 1))
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep_likeliest(logs: torch.Tensor, _numbers: slice) -> None:
        top = logs.topk(min(TOKENS_KEPT, logs.shape[1]))
        batches.append((top.indices.cpu(), top.values.cpu()))

    nats = _score(model, token_ids, positions, keep_likeliest)
    return nats, Predictions(positions, torch.cat([t for t, _ in batches]), torch.cat([v for _, v in batches]))


def compare_predictions(
    model: nn.Module | Runtime, token_ids: torch.Tensor, reference: Predictions
) -> tuple[torch.Tensor, Drift]:
    """Score the same ``token_ids``, int64 ``(B, T)``, with the candidate.

    Returns its nats of every predicted token, float64 ``(B, T - 1)``, and its drift from the predictions ``reference``.
    """
    kls: list[tuple[torch.Tensor, torch.Tensor]] = []
    agrees: list[torch.Tensor] = []

    def compare_batch(logs: torch.Tensor, numbers: slice) -> None:
        tokens, expected = reference.tokens[numbers], reference.logs[numbers].double()
        shared = tokens < logs.shape[1]  # a vocabulary that was cut down lacks the ids of padding rows
        expected, likeliest = _without(expected, ~shared), tokens.gather(1, shared.int().argmax(1, keepdim=True))
        found = logs.cpu().double().gather(1, tokens.where(shared, 0))
        if isinstance(model, Runtime):  # it may tell the likeliest tokens alone; the others are in the tail
            shared &= found > -math.inf
        both = expected.where(shared, -math.inf), found.where(shared, -math.inf)
        kls.append((_divergence(*both), _divergence(*reversed(both))))
        agrees.append(logs.argmax(1).cpu() == likeliest[:, 0])

    nats = _score(model, token_ids, reference.positions, compare_batch)
    forward, reverse = (torch.cat(parts) for parts in zip(*kls, strict=True))
    return nats, Drift(forward, torch.cat(agrees), reverse)


def _without(expected: torch.Tensor, gone: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities ``(N, K)`` given that none of the ids that are ``gone``, bool ``(N, K)``, is meant."""
    lost = torch.where(gone, expected.exp(), 0.0).sum(1, keepdim=True)
    return expected - torch.log1p(-lost.clamp_max(1 - 1e-9))


def _divergence(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return KL(expected || found), nats ``(N,)``, of log-probabilities ``(N, K)`` and one tail bucket."""
    floor = 1e-12
    expected_tail, found_tail = ((1 - logs.exp().sum(1)).clamp_min(floor) for logs in (expected, found))
    head = torch.where(expected > -math.inf, expected.exp() * (expected - found), 0.0).sum(1)  # inf - inf is left out
    return (head + expected_tail * (expected_tail.log() - found_tail.log())).clamp_min(0)


def sampled_positions(count: int) -> torch.Tensor:
    """Return at most ``POSITIONS`` of the positions 0 to ``count - 1``, evenly spaced, int64 ``(N,)``."""
    return torch.linspace(0, count - 1, min(POSITIONS, count), dtype=torch.float64).long()


def _score(
    model: nn.Module | Runtime,
    token_ids: torch.Tensor,
    positions: torch.Tensor,
    visit: Callable[[torch.Tensor, slice], None],
) -> torch.Tensor:
    """Return the nats of every predicted token, float64 ``(B, T - 1)``.

    ``visit`` is called, batch by batch, with the log-probabilities ``(n, V)`` at the next n of ``positions``, and with
    the slice of ``positions`` that they belong to.
    """
    check_token_ids(token_ids, vocabulary_size(model))
    if isinstance(model, Runtime):
        return _score_in_runtime(model, token_ids, positions, visit)
    width = token_ids.shape[1] - 1
    at_once = windows_at_once(model, token_ids)
    nats, done = [], 0
    with evaluating(model):
        batches = logits_of_windows(model, token_ids, at_once)
        for first, logits in zip(range(0, len(token_ids), at_once), batches, strict=True):
            ids = token_ids[first : first + at_once].to(logits.device)
            logs = logits[:, :-1].float().log_softmax(-1)
            nats.append(-logs.gather(2, ids[:, 1:, None])[..., 0].double().cpu())
            inside = positions[(positions >= first * width) & (positions < (first + len(ids)) * width)] - first * width
            if len(inside):
                visit(logs.flatten(0, 1)[inside.to(logs.device)], slice(done, done + len(inside)))
                done += len(inside)
    return torch.cat(nats)


def _score_in_runtime(
    runtime: Runtime, token_ids: torch.Tensor, positions: torch.Tensor, visit: Callable[[torch.Tensor, slice], None]
) -> torch.Tensor:
    """Do what ``_score`` does, window by window, with a candidate that runs in another program."""
    nats, done, width = [], 0, token_ids.shape[1] - 1
    for number, ids in enumerate(token_ids):
        logs = log_probabilities(runtime, ids)
        nats.append(nats_of(logs, ids))
        inside = positions[(positions >= number * width) & (positions < (number + 1) * width)] - number * width
        if len(inside):
            visit(logs[inside], slice(done, done + len(inside)))
            done += len(inside)
    return torch.stack(nats)
