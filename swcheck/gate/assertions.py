"""The assertions: measure, compare, and return a verdict or raise it. They work in any test runner, or without one.

Each takes ``candidate`` first, then ``reference`` where there is one, then keyword-only limits. Both models are what
``load`` returns, or bare modules, which need ``tokenizer=`` or ``token_ids=`` (int64 ``(B, T)``).
``super_weights=None`` means the published ones of the reference, completed by those that are located in it. A red
verdict is raised as ``RobustnessError``; every other verdict is returned. Problems that look like damaged super weights
but are none are ruled out first, in this order: NaN, a reference that is not finite, another tokenizer, another base
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from swcheck.base.errors import OptionError
from swcheck.base.limits import NULL_DRAWS, chosen_limit, limits_for_kind, limits_for_scheme
from swcheck.base.records import Limit, Prompt, SuperWeight, Verdict
from swcheck.gate.checks import dependence, nulls, predictions, single_model
from swcheck.gate.checks.activations import compare_activations
from swcheck.gate.checks.contributions import compare_contributions
from swcheck.gate.checks.pair import Pair
from swcheck.gate.conclusion import conclude, conclude_pair
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.weights import check_coordinates, parameter_count
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    import torch


def assert_super_weights_located(
    candidate: Any, *, tokenizer: Any = None, token_ids: torch.Tensor | None = None
) -> Verdict:
    """Check that the model has super weights, and return where. Without any the verdict is ``not_applicable``."""
    __tracebackhide__ = True
    subject = as_subject(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
    return conclude(single_model.super_weights_found(subject), subject)


def assert_super_weights_preserved(
    candidate: Any,
    reference: Any,
    *,
    super_weights: Iterable[SuperWeight] | None = None,
    low: float | None = None,
    high: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """Check that each super weight writes as much in the candidate as in the reference.

    The compared number is the contribution: weight times input, at the token where the input is largest in the
    reference. The bare weight is only shown, since some quantizers rescale a weight against its input. ``low`` and
    ``high`` bound the signed ratio, candidate over reference, 0.75 and 2.0 by default. A flipped sign is red with its
    own cause. Permuted channels and inner neurons are followed. For a rotated candidate the verdict is
    ``not_applicable``.
    """
    __tracebackhide__ = True
    pair = _pair("super weights", candidate, reference, super_weights, tokenizer, token_ids)
    return conclude_pair(pair, compare_contributions(pair, _limit_for(pair.candidate, "contribution", low, high)))


def assert_super_activations_preserved(
    candidate: Any,
    reference: Any,
    *,
    super_weights: Iterable[SuperWeight] | None = None,
    prompts: Sequence[str | Prompt] | None = None,
    low: float | None = None,
    high: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """Check that the candidate has the super activations of the reference, at the same place and as large.

    Both are read on the same ``prompts`` (one default prompt for None), the candidate at the reference's layer, channel
    and token. The form of a ``Prompt`` says whether it has BOS, no BOS, or the chat template. A prompt counts only if
    the reference has its activation there; 20 prompts have to count, or all if fewer are given, else the verdict is
    ``inconclusive``. ``low`` and ``high`` bound the signed ratio, candidate over reference: 0.75 and 2.0 by default,
    0.5 and 2.0 for a fine-tuned, merged or pruned candidate. The worst prompt is judged; a failing one is shortened. For a
    rotated candidate the norm of the sink token's residual stream is compared instead.
    """
    __tracebackhide__ = True
    pair = _pair("super activations", candidate, reference, super_weights, tokenizer, token_ids)
    return conclude_pair(pair, compare_activations(pair, prompts, _limit_for_pair(pair, "activation", low, high)))


def assert_perplexity_within(
    candidate: Any,
    reference: Any = None,
    *,
    ratio: float | None = None,
    at_most: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """Check that the candidate's perplexity is at most ``ratio`` times the reference's, or at most ``at_most``.

    Both are scored on the same tokens and the differences are paired. A ratio below the limit by less than three
    standard errors is ``near``. The default ``ratio`` depends on the candidate's quantization scheme
    (``swcheck/base/limits.py``); it is 1.05 if the scheme is unknown. Without a reference the limit is ``at_most``, by
    default the size of the vocabulary: above that a model is worse than guessing.
    """
    __tracebackhide__ = True
    if reference is None:
        subject = as_subject(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
        return conclude(single_model.perplexity_at_most(subject, at_most), subject)
    pair = _pair("perplexity", candidate, reference, None, tokenizer, token_ids)
    limit = _limit_for_pair(pair, "perplexity", None, ratio)
    return conclude_pair(pair, predictions.compare_perplexity(pair, limit, at_most))


def assert_predictions_preserved(
    candidate: Any,
    reference: Any,
    *,
    kl: float | None = None,
    top1: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """Check that the candidate predicts what the reference predicts.

    The mean KL divergence may be at most ``kl`` nats, and the likeliest token has to be the same at a share of at least
    ``top1`` of the positions. Both defaults depend on the candidate's quantization scheme (``swcheck/base/limits.py``). The default of ``top1`` is
    lower for a reference whose own predictions are less confident.
    """
    __tracebackhide__ = True
    pair = _pair("predictions", candidate, reference, None, tokenizer, token_ids)
    limits = _limit_for_pair(pair, "kl", None, kl), _limit_for_pair(pair, "top1", top1, None)
    return conclude_pair(pair, predictions.compare_predictions(pair, *limits))


def assert_collapses_when_zeroed(
    candidate: Any,
    reference: Any = None,
    *,
    super_weights: Iterable[SuperWeight] | None = None,
    factor: float | None = None,
    share: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """Check that the model depends on its super weights: its perplexity collapses when all are zeroed together.

    Without a reference the perplexity has to rise by ``factor``, 10 by default. With a reference the rise of the loss
    in nats, capped at ln(vocabulary) minus the intact loss, has to be at least ``share`` of the reference's, 0.5 by
    default. That is judged only if the reference's super weights are critical (its own perplexity rises by 10 or more);
    else the verdict is ``not_applicable``. A loss that is not finite without the weights counts as the cap.
    """
    __tracebackhide__ = True
    if reference is None:
        subject = as_subject(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
        weights = _checked_super_weights(subject, super_weights)
        return conclude(dependence.collapse(subject, weights, _limit_for(subject, "collapse", factor)), subject)
    pair = _pair("dependence", candidate, reference, super_weights, tokenizer, token_ids)
    return conclude_pair(pair, dependence.compare_dependence(pair, _limit_for(pair.candidate, "dependence", share)))


def assert_survives_pruning(
    candidate: Any,
    *,
    super_weights: Iterable[SuperWeight] | None = None,
    null: str = "matched",
    at_most: float | None = None,
    draws: int = NULL_DRAWS,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """Check the null of the collapse: zeroing other weights leaves the perplexity nearly unchanged.

    ``null="matched"`` zeroes as many weights of similar magnitude in the same matrices, ``draws`` times; the worst draw
    may multiply the perplexity by 1.01. ``null="largest"`` zeroes the largest 0.01 % of every matrix except the super
    weights; that may multiply it by 1.30, and by no more than the square root of the collapse. ``at_most`` replaces
    these limits. A null outside its limit is ``inconclusive``: the super weights are incomplete, and the reference has
    to be examined. Raises ``OptionError`` for another ``null``.
    """
    __tracebackhide__ = True
    if null not in {"matched", "largest"}:
        raise OptionError(f"null {null!r}", "known: matched, largest")
    subject = as_subject(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
    weights = _checked_super_weights(subject, super_weights)
    if null == "matched":
        verdict = nulls.matched_null(subject, weights, _limit_for(subject, "null", None, at_most), draws)
    else:
        verdict = nulls.largest_null(subject, weights, _limit_for(subject, "others", None, at_most))
    return conclude(verdict, subject)


def _checked_super_weights(subject: Subject, super_weights: Iterable[SuperWeight] | None) -> tuple[SuperWeight, ...]:
    """Return the caller's super weights, or the subject's own for None.

    Raises ``OptionError`` for an empty set, which would prove nothing, and for coordinates outside the model.
    """
    if super_weights is None:
        return located(subject).super_weights
    chosen = tuple(super_weights)
    if not chosen:
        raise OptionError("super_weights", "an empty set: nothing would be checked", "leave it out to locate them")
    check_coordinates(subject, chosen)
    return chosen


def _pair(
    check: str,
    candidate: Any,
    reference: Any,
    super_weights: Iterable[SuperWeight] | None,
    tokenizer: Any,
    token_ids: torch.Tensor | None,
) -> Pair:
    theirs = as_subject(reference, tokenizer=tokenizer, token_ids=token_ids, role="reference")
    same = candidate is reference
    ours = theirs if same else as_subject(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
    return Pair(check, ours, theirs, None if super_weights is None else _checked_super_weights(theirs, super_weights))


def _limit_for(subject: Subject, name: str, low: float | None = None, high: float | None = None) -> Limit:
    """Return the caller's limit, else the one that the user gave for this subject, else the default.

    Where the caller passes on the user's limit, its source stays that of the user's.
    """
    given = subject.limits.get(name)
    if low is None and high is None and given is not None:
        return given
    chosen = chosen_limit(name, low, high)
    return given if given is not None and (given.low, given.high) == (chosen.low, chosen.high) else chosen


def _limit_for_pair(pair: Pair, name: str, low: float | None, high: float | None) -> Limit:
    """Return the caller's limit or the user's, else that of the candidate's kind, and of its scheme if quantized."""
    if low is not None or high is not None or name in pair.candidate.limits:
        return _limit_for(pair.candidate, name, low, high)
    kind = pair.kind
    if kind.name != "quantized":
        return limits_for_kind(kind.name, sure=kind.sure, pattern=kind.pattern)[name]
    scheme = pair.candidate.scheme or kind.scheme
    return limits_for_scheme(scheme, parameter_count(pair.reference) if scheme else 0)[name]
