"""The assertions: measure, compare, return a verdict or raise it. Usable in any test runner, or in none.

Each takes ``candidate`` first, then ``reference`` where there is one, then keyword-only limits. Both are what ``load``
returns or bare modules (then ``tokenizer=`` or ``token_ids=`` is needed). ``super_weights=None`` means the published
ones of the reference, completed by what is located in it. A verdict that is red is raised as ``RobustnessError``;
every other one is returned. What looks like super-weight damage and is none (NaN, a sick reference, another tokenizer,
another base model) is ruled out first, in this order.
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
from swcheck.superweights.measurements.contributions import located
from swcheck.superweights.measurements.weights import check_coordinates, parameter_count
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    import torch


def assert_super_weights_located(
    candidate: Any, *, tokenizer: Any = None, token_ids: torch.Tensor | None = None
) -> Verdict:
    """The model has super weights, and says where; ``not_applicable``, in words, where it has none."""
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
    """The candidate's super weights write what the reference's do.

    Compared is the contribution, weight times input at the token where the input is largest in the reference, since
    some quantizers rescale one against the other; the bare weight is shown. ``low`` and ``high`` bound the signed
    ratio, 0.75 and 2.0 by default. A flipped sign is red with its own cause. Permuted channels and inner neurons are
    followed; for a rotated candidate the check does not apply.
    """
    __tracebackhide__ = True
    pair = _pair("super weights", candidate, reference, super_weights, tokenizer, token_ids)
    return conclude_pair(pair, compare_contributions(pair, _limit(pair.candidate, "contribution", low, high)))


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
    """The candidate's super activations stand where the reference's do, as large.

    Both are read on the same ``prompts`` (one by default), the candidate at the reference's own layer, channel and
    token. A ``Prompt`` says whether it comes with BOS, without, or in the chat template. A prompt counts only if the
    reference carries its activation there; 20 have to, or all of them where fewer are given. ``low`` and ``high`` bound
    the signed ratio, 0.75 and 2.0 by default, 0.5 for what is fine-tuned or pruned; the worst prompt is judged, and a
    failing one made small. For a rotated candidate the norm of the sink token's
    residual stream takes the activation's place.
    """
    __tracebackhide__ = True
    pair = _pair("super activations", candidate, reference, super_weights, tokenizer, token_ids)
    return conclude_pair(pair, compare_activations(pair, prompts, _scheme_limit(pair, "activation", low, high)))


def assert_perplexity_within(
    candidate: Any,
    reference: Any = None,
    *,
    ratio: float | None = None,
    at_most: float | None = None,
    tokenizer: Any = None,
    token_ids: torch.Tensor | None = None,
) -> Verdict:
    """The candidate's perplexity is at most ``ratio`` times the reference's, or ``at_most``.

    Both are scored on the same tokens and their differences are paired: a ratio within three standard errors of the
    limit is ``near``. ``ratio`` is by default what candidates of its scheme keep (``swcheck/base/limits.py``), 1.05 where the
    scheme is unknown. Without a reference the limit is ``at_most``, else the size of the vocabulary, above which a
    model is worse than guessing.
    """
    __tracebackhide__ = True
    if reference is None:
        subject = as_subject(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
        return conclude(single_model.perplexity_at_most(subject, at_most), subject)
    pair = _pair("perplexity", candidate, reference, None, tokenizer, token_ids)
    limit = _scheme_limit(pair, "perplexity", None, ratio)
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
    """The candidate predicts what the reference does: mean KL divergence at most ``kl`` nats, and the same likeliest
    token at ``top1`` of the positions at least.

    By default both are what candidates of its scheme keep; the second is scaled by the reference's own confidence.
    """
    __tracebackhide__ = True
    pair = _pair("predictions", candidate, reference, None, tokenizer, token_ids)
    limits = _scheme_limit(pair, "kl", None, kl), _scheme_limit(pair, "top1", top1, None)
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
    """The model hangs on its super weights: all zeroed together, its perplexity collapses.

    Without a reference it has to rise by ``factor``, 10 by default. With one, the collapse in nats, capped at
    ln(vocabulary) minus the intact loss, has to be ``share`` of the reference's, 0.5 by default; that is asked of
    critical sets only, for others the verdict is ``not_applicable``. A pass without the weights that is not finite
    counts as the cap.
    """
    __tracebackhide__ = True
    if reference is None:
        subject = as_subject(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
        weights = _chosen(subject, super_weights)
        return conclude(dependence.collapse(subject, weights, _limit(subject, "collapse", factor)), subject)
    pair = _pair("dependence", candidate, reference, super_weights, tokenizer, token_ids)
    return conclude_pair(pair, dependence.compare_dependence(pair, _limit(pair.candidate, "dependence", share)))


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
    """The null of the collapse: zeroing other weights instead leaves the model as it is.

    ``null="matched"`` zeroes as many weights of matched magnitude from the same matrices, ``draws`` times, and the
    worst draw may cost x1.01; ``null="largest"`` zeroes the largest 0.01 % of every matrix, super weights spared,
    which may cost x1.30 and no more than the square root of the collapse. A null that fails is ``inconclusive``: the
    coordinates are incomplete, and it is the reference that has to be looked at.
    """
    __tracebackhide__ = True
    if null not in {"matched", "largest"}:
        raise OptionError(f"null {null!r}", "known: matched, largest")
    subject = as_subject(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
    weights = _chosen(subject, super_weights)
    if null == "matched":
        verdict = nulls.matched_null(subject, weights, _limit(subject, "null", None, at_most), draws)
    else:
        verdict = nulls.largest_null(subject, weights, _limit(subject, "others", None, at_most))
    return conclude(verdict, subject)


def _chosen(subject: Subject, super_weights: Iterable[SuperWeight] | None) -> tuple[SuperWeight, ...]:
    """The caller's super weights, checked, or the subject's own; an empty set is refused, it would prove nothing."""
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
    other = as_subject(reference, tokenizer=tokenizer, token_ids=token_ids, role="reference")
    same = candidate is reference
    one = other if same else as_subject(candidate, tokenizer=tokenizer, token_ids=token_ids, role="candidate")
    return Pair(check, one, other, None if super_weights is None else _chosen(other, super_weights))


def _limit(subject: Subject, name: str, low: float | None = None, high: float | None = None) -> Limit:
    """The caller's limit, else the one that the run asks of this subject, else the default.

    What a caller has from the run itself keeps the words of the run for where it comes from.
    """
    own = subject.limits.get(name)
    if low is None and high is None and own is not None:
        return own
    chosen = chosen_limit(name, low, high)
    return own if own is not None and (own.low, own.high) == (chosen.low, chosen.high) else chosen


def _scheme_limit(pair: Pair, name: str, low: float | None, high: float | None) -> Limit:
    """The caller's limit or the run's, else the one for what was done to the candidate, and for its scheme."""
    if low is not None or high is not None or name in pair.candidate.limits:
        return _limit(pair.candidate, name, low, high)
    kind = pair.kind
    if kind.name != "quantized":
        return limits_for_kind(kind.name, sure=kind.sure)[name]
    scheme = pair.candidate.scheme
    return limits_for_scheme(scheme, parameter_count(pair.reference) if scheme else 0)[name]
