"""Eight-bit weights and activations (tables 3 and 4): naive, with the super activation restored, and by SmoothQuant.

As in the paper, every linear map of the layers except the attention output is quantized symmetrically: weights per
tensor, inputs per token. Nothing else is rounded; the paper also quantizes the products inside attention. A harsher
setting, inputs per tensor, is measured beside it: there the super activation makes the one step coarse for all tokens.

``RESTORE(Q^-1(Q(REPLACE(A))))`` is the paper's method: before quantization the super activation is replaced by the
median of its tensor, and afterwards it is put back, one scalar per window. The paper has no code for it and does not
say which tensor. Here it is applied to two inputs. Maps after the onset layer read the super activation in its channel,
as long as it lasts; the scalar is the largest one there. The down projection that writes the super activation reads a
spike in the column of the super weight; the scalar is that spike.

SmoothQuant (alpha 0.85) divides the input of a map by a factor per channel and multiplies the weight by it. It folds
the factors into the norm before the map, so only maps that read a norm with a weight are smoothed. Dividing directly in
front of the map, as here, is the same. The factors are computed on the default prompt.

The gap is the rise of the loss from float to naive, and a share of it is one of nats per token. For gaps as small as
the paper's that is the share of perplexity, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from swcheck.base.formatting import format_number
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.base.statistics import standard_error
from swcheck.lens.architecture.anatomy import MapKey
from swcheck.lens.architecture.storage import dequantized, first_tensor
from swcheck.lens.linear_maps import LinearMap, inputs_of
from swcheck.quantizers.rounding import absmax, row_block
from swcheck.study.common.chapter import Chapter, Rows
from swcheck.study.common.plots import COLOURS
from swcheck.study.common.record import INTACT, Measurement, Study
from swcheck.study.common.setup import PERPLEXITY, RATIO, Setup, restored_after
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.measurements.residual_stream import super_activations

BITS: Final = 8
ALPHA: Final = 0.85
LEAST_FACTOR: Final = 1e-5

WEIGHTS: Final = "W8, activations in float"
NAIVE: Final = "naive W8A8"
RESTORED: Final = "W8A8, super activation restored"
SMOOTH: Final = "SmoothQuant"
PER_TENSOR: Final = ", per tensor"
METHODS: Final = (NAIVE, RESTORED, SMOOTH)
GRANULARITIES: Final = {"per token": "", "per tensor": PER_TENSOR}

GAP: Final = "share of the gap recovered"
BY_ACTIVATIONS: Final = "nats by activations"
SHARE_OF_SMOOTH: Final = "share of SmoothQuant's improvement"

RECOVERED_LIMIT: Final = Limit(
    0.045,
    None,
    "the paper's recover 9 % (Llama-2-7B, table 7) to 84 % (OLMo-1B, table 4); half of the least is one still",
)
PUBLISHED_SHARES: Final = (0.09, 0.84)
NEGLIGIBLE_PART: Final = 0.1
"""If activations cost less than this part of the gap, restoring one of them has nothing to recover."""


@dataclass(frozen=True)
class QuantizationPlan:
    """How the maps are quantized.

    ``per_token`` is True for inputs per token, False for inputs per tensor, None for inputs in float. ``restored``
    gives the input channels whose largest scalar is put back, ``factors`` the factors of SmoothQuant.
    """

    per_token: bool | None
    restored: Mapping[LinearMap, tuple[int, ...]]
    factors: Mapping[LinearMap, torch.Tensor]


def measure(setup: Setup) -> Iterator[Measurement]:
    """Yield the likelihood in every condition, and the shares of the gap between float and naive that are recovered."""
    body = setup.subject.anatomy
    experts = {one.module for number in range(len(body.layers)) for one in body.down_maps(number) if one.is_routed}
    maps = tuple(
        linear
        for linear in setup.maps()
        if linear.path != body.family.attention_output and linear.module not in experts
    )
    if experts:
        setup.note("the matrices of experts are left as they are: no hook quantizes what a single one reads")
    if not maps:
        return
    channels = super_channels(setup, maps)
    factors = smoothing_factors(setup, maps)
    intact = setup.intact()
    yield from setup.likelihood(INTACT)
    weights_only = QuantizationPlan(None, {}, {})
    plans = {WEIGHTS: weights_only}
    for per_token, suffix in ((True, ""), (False, PER_TENSOR)):
        plans[NAIVE + suffix] = QuantizationPlan(per_token, {}, {})
        plans[RESTORED + suffix] = QuantizationPlan(per_token, channels, {})
        if factors:
            plans[SMOOTH + suffix] = QuantizationPlan(per_token, {}, factors)
    nats: dict[str, torch.Tensor] = {}
    with restored_after(linear.weight for linear in maps) as saved:
        for condition, plan in setup.steps(list(plans.items()), "quantizations"):
            with quantized(maps, saved, plan):
                nats[condition] = setup.nats()
            yield from setup.likelihood(condition, nats=nats[condition])
    for suffix in GRANULARITIES.values():
        yield from recovered_shares(nats, intact, suffix)


def super_channels(setup: Setup, maps: Sequence[LinearMap]) -> dict[LinearMap, tuple[int, ...]]:
    """Return the input channels in which each map reads a super activation, or the spike that makes it.

    Maps without such a channel are left out.
    """
    places, body = super_activations(setup.subject, setup.weights), setup.subject.anatomy
    channels_by_map: dict[LinearMap, tuple[int, ...]] = {}
    for linear in maps:
        down = {one.module: one.key for one in body.down_maps(linear.layer) if one.index is None}.get(linear.module)
        if down is not None:
            channels = [weight.column for weight in setup.weights if MapKey(weight.layer, weight.expert) == down]
        else:
            channels = [place.channel for place in places if place.layer < linear.layer <= place.last + 1]
        if channels:
            channels_by_map[linear] = tuple(dict.fromkeys(channels))
    return channels_by_map


def smoothing_factors(setup: Setup, maps: Sequence[LinearMap]) -> dict[LinearMap, torch.Tensor]:
    """Return SmoothQuant's factor of every input channel, float32 ``(in,)``, for maps that read a norm with a weight.

    Maps that read the same tensor share the factors ``max|x|**alpha / max|w|**(1 - alpha)``, with both maxima over the
    default prompt and all of these maps. Empty, with a note, if no map reads a norm with a weight.
    """
    norm_outputs: list[torch.Tensor] = []
    with ExitStack() as hooks:
        for norm in _norms_with_weight(setup.subject.anatomy.layers):
            hooks.callback(
                norm.register_forward_hook(
                    lambda _module, _args, output: norm_outputs.append(first_tensor(output))
                ).remove
            )
        inputs = inputs_of(setup.model, maps, prompt_ids(setup.subject))
    foldable = {tensor.data_ptr() for tensor in norm_outputs}
    groups: dict[int, list[LinearMap]] = {}
    for linear, x in inputs.items():
        if x.data_ptr() in foldable:
            groups.setdefault(x.data_ptr(), []).append(linear)
    if not groups:
        setup.note("SmoothQuant is left out: no linear map reads a norm with a weight to fold its factors into")
    factors: dict[LinearMap, torch.Tensor] = {}
    for group in groups.values():
        input_peak = inputs[group[0]].float().abs().flatten(0, -2).amax(0)
        weight_peak = torch.stack([linear.weight.float().abs().amax(0) for linear in group]).amax(0)
        factor = (input_peak**ALPHA / weight_peak.clamp(min=LEAST_FACTOR) ** (1 - ALPHA)).clamp(min=LEAST_FACTOR)
        factors |= dict.fromkeys(group, factor)
    return factors


def _norms_with_weight(layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules of the layers whose own weight has one dimension: a factor per channel."""
    for layer in layers:
        for module in layer.modules():
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            if weight is not None and weight.ndim == 1:
                yield module


@contextmanager
def quantized(maps: Sequence[LinearMap], saved: Sequence[torch.Tensor], plan: QuantizationPlan) -> Iterator[None]:
    """Quantize the maps as planned, from their ``saved`` weights. The caller has to restore the weights afterwards."""
    with ExitStack() as hooks:
        for linear, weight in zip(maps, saved, strict=True):
            factor = plan.factors.get(linear)
            scaled = weight if factor is None else (weight.float() * factor).to(weight.dtype)
            linear.weight.copy_(absmax(scaled, BITS))
            if plan.per_token is not None:
                hook = _input_quantizer(plan.per_token, plan.restored.get(linear, ()), factor)
                hooks.callback(linear.module.register_forward_pre_hook(hook).remove)
        yield


def _input_quantizer(per_token: bool, channels: tuple[int, ...], factor: torch.Tensor | None) -> Callable[..., Any]:
    """Return a forward pre-hook that quantizes the input of a map."""

    def quantize_input(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = dequantized(args[0])
        if factor is not None:
            x = (x.float() / factor.to(x.device)).to(x.dtype)
        return (quantized_inputs(x, channels, per_token=per_token), *args[1:])

    return quantize_input


def quantized_inputs(x: torch.Tensor, channels: Sequence[int], *, per_token: bool) -> torch.Tensor:
    """Return the input of a map, ``(B, T, in)``, rounded to eight bits, except one scalar per window and channel.

    In each of ``channels``, each window's largest magnitude is replaced by the median of the tensor before rounding and
    put back after it: the paper's REPLACE and RESTORE.
    """
    replaced = x.clone()
    windows = torch.arange(len(x), device=x.device)
    held_out = []
    for channel in channels:
        tokens = x[..., channel].abs().argmax(1)
        held_out.append((tokens, channel, x[windows, tokens, channel]))
        replaced[windows, tokens, channel] = x.median()
    quantized_input = absmax(replaced, BITS, block=row_block(x) if per_token else None)
    for tokens, channel, values in held_out:
        quantized_input[windows, tokens, channel] = values
    return quantized_input


def recovered_shares(nats: Mapping[str, torch.Tensor], intact: torch.Tensor, suffix: str) -> Iterator[Measurement]:
    """Yield what activations add to the loss, and the share of naive's rise that each method recovers, with errors."""
    naive = nats[NAIVE + suffix]
    by_activations = naive - nats[WEIGHTS]
    yield _mean_measurement(BY_ACTIVATIONS, by_activations, NAIVE + suffix)
    for method in (RESTORED, SMOOTH):
        if method + suffix in nats:
            yield _share_measurement(GAP, naive - nats[method + suffix], naive - intact, method + suffix)
    if SMOOTH + suffix in nats:
        recovered, smooth = naive - nats[RESTORED + suffix], naive - nats[SMOOTH + suffix]
        if float(smooth.mean()) > 3 * standard_error(smooth):
            yield _share_measurement(SHARE_OF_SMOOTH, recovered, smooth, RESTORED + suffix)


def _mean_measurement(quantity: str, values: torch.Tensor, condition: str) -> Measurement:
    return Measurement(quantity, float(values.mean()), condition, error=_finite_or_none(standard_error(values)))


def _share_measurement(
    quantity: str, numerator: torch.Tensor, denominator: torch.Tensor, condition: str
) -> Measurement:
    """Return the ratio of two means of paired differences, with the standard error of a ratio estimate."""
    mean = float(denominator.mean())
    share = float(numerator.mean()) / mean if mean else math.nan
    error = standard_error(numerator - share * denominator) / abs(mean) if mean else math.nan
    return Measurement(quantity, share, condition, error=_finite_or_none(error))


def _finite_or_none(error: float) -> float | None:
    return error if math.isfinite(error) else None


def _first_or_none(study: Study, quantity: str, condition: str) -> Measurement | None:
    return next(iter(study.select(quantity, condition)), None)


def table(study: Study) -> Rows:
    """Return one row per condition: perplexity, its ratio, and the shares."""
    rows = [["", "perplexity", "ratio", "of the gap", "of SmoothQuant's"]]
    for ratio in study.select(RATIO):
        spread = "" if ratio.condition == INTACT else f" +- {ratio.error or 0.0:.4f}"
        cells = [_percent(_first_or_none(study, quantity, ratio.condition)) for quantity in (GAP, SHARE_OF_SMOOTH)]
        perplexity = f"{study.value(PERPLEXITY, ratio.condition):.4f}"
        rows.append([ratio.condition, perplexity, format_number(ratio.value, "x") + spread, *cells])
    return rows


def _percent(point: Measurement | None) -> str:
    if point is None:
        return ""
    return f"{100 * point.value:.0f} %" + ("" if point.error is None else f" +- {100 * point.error:.0f}")


def draw(study: Study, figure: Any) -> None:
    """Draw bars of the perplexity that each condition adds, and of the share of the gap that it recovers."""
    left, right = figure.subplots(1, 2)
    bars = [(WEIGHTS, "W8 alone"), (NAIVE, "naive"), (RESTORED, "super activation\nrestored"), (SMOOTH, "SmoothQuant")]
    width = 0.38
    for number, (granularity, suffix) in enumerate(GRANULARITIES.items()):
        shift = (number - 0.5) * width
        for axes, quantity in ((left, RATIO), (right, GAP)):
            labelled = bars if quantity == RATIO else bars[2:]
            found = [
                _first_or_none(study, quantity, name if name == WEIGHTS else name + suffix) for name, _ in labelled
            ]
            base = 1.0 if quantity == RATIO else 0.0
            points = [(place + shift, point) for place, point in enumerate(found) if point is not None]
            axes.bar(
                [place for place, _ in points], [100 * (point.value - base) for _, point in points], width,
                yerr=[100 * (point.error or 0.0) for _, point in points], capsize=3, color=COLOURS[number],
                hatch="" if number == 0 else "//", edgecolor="w", label=f"activations {granularity}",
            )  # fmt: skip
            axes.set_xticks(range(len(labelled)), [words for _, words in labelled], fontsize=8)
            axes.grid(visible=False, axis="x")
    left.set_ylabel("perplexity above float, %")
    right.set_ylabel("share of the gap recovered, %")
    right.axhspan(
        100 * PUBLISHED_SHARES[0], 100 * PUBLISHED_SHARES[1], color="0.85", zorder=0, label="the paper's, per token"
    )
    for axes in (left, right):
        axes.axhline(0.0, color="0.4", linewidth=0.8, marker="")
    right.legend(fontsize=8)


def judge(study: Study) -> tuple[Verdict, ...]:
    """Judge per granularity: where activations cost something, restoring the super activation recovers a share."""
    if not study.has(GAP):
        summary = "no linear map keeps a plain weight: nothing can be quantized"
        return (Verdict("paper: w8a8", study.model, Outcome.NOT_APPLICABLE, summary),)
    return tuple(_granularity_verdict(study, granularity, suffix) for granularity, suffix in GRANULARITIES.items())


def _granularity_verdict(study: Study, granularity: str, suffix: str) -> Verdict:
    check = f"paper: w8a8{suffix}"
    naive, cost = study.select(RATIO, NAIVE + suffix)[0], study.select(BY_ACTIVATIONS, NAIVE + suffix)[0]
    share = study.select(GAP, RESTORED + suffix)[0]
    summary = (
        f"activations {granularity}: naive {format_number(naive.value, 'x')}, of which activations {_nats(cost)}; restoring the super "
        f"activation recovers {_percent(share)} of the gap"
    )
    smoothquant = _first_or_none(study, GAP, SMOOTH + suffix)
    summary += "" if smoothquant is None else f", SmoothQuant {_percent(smoothquant)}"
    gap = math.log(naive.value) if naive.value > 0 else math.nan
    if cost.value <= max(3 * (cost.error or 0.0), NEGLIGIBLE_PART * gap):
        summary += ": the gap is the weights' own, activations cost nothing to speak of that could be recovered"
        return Verdict(check, study.model, Outcome.NOT_APPLICABLE, summary, limit=RECOVERED_LIMIT)
    noise = 3 * (share.error or 0.0)
    if not RECOVERED_LIMIT.holds(share.value):
        outcome, cause = Outcome.FAILED, f"restoring the super activation recovers {_percent(share)} of what W8A8 costs"
    elif share.value <= noise:
        outcome, cause = Outcome.INCONCLUSIVE, f"{_percent(share)} recovered cannot be told from nothing on this text"
    else:
        outcome, cause = Outcome.PASSED if RECOVERED_LIMIT.holds(share.value - noise) else Outcome.NEAR, ""
    return Verdict(check, study.model, outcome, summary, measured=share.value, limit=RECOVERED_LIMIT, cause=cause)


def _nats(point: Measurement) -> str:
    return f"{point.value:+.4f}" + ("" if point.error is None else f" +- {point.error:.4f}") + " nats"


CHAPTER: Final = Chapter("w8a8", "Eight-bit weights and activations", "tables 3 and 4", measure, table, draw, judge)
