"""Eight-bit weights and activations (tables 3 and 4): naive, with the super activation restored, and by SmoothQuant.

As in the paper every linear map of the layers but the one out of attention is quantized, symmetrically and without
rounding the rest of the model: the weights per tensor, what they read per token. (The paper's setting quantizes the
products inside attention as well; here they are left alone.) Quantized per tensor, what a map reads has one step for
all tokens; that harsher setting is measured beside it, because there the super activation costs every token.

``RESTORE(Q^-1(Q(REPLACE(A))))`` is the paper's method: the super activation gives way to its tensor's median before
quantization and is put back afterwards, one scalar per window. The paper has no code of it and names no tensor. The
reading here: what the maps after the onset read in the super activation's channel, at the token where it is largest,
as long as it lasts; and what its own down projection reads in the super weight's column, the spike that makes it.

SmoothQuant (alpha 0.85) divides what a map reads by a factor per channel and multiplies its weight by it; the factors
are folded into the norm before it, so that only maps that read a norm with a weight are smoothed. Dividing in front of
the map is the same. Its factors come from the default prompt.

A share is of nats per token, from float to naive; for gaps as small as the paper's that is the share of perplexity.
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
from swcheck.lens.linear_maps import LinearMap, inputs_of
from swcheck.lens.observe import as_floats, first_tensor
from swcheck.quantizers.rounding import absmax, per_row
from swcheck.study.common.chapter import Chapter, Rows
from swcheck.study.common.plots import COLOURS
from swcheck.study.common.record import INTACT, Measurement, Study
from swcheck.study.common.setup import PERPLEXITY, RATIO, Setup, edited
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
GRAINS: Final = {"per token": "", "per tensor": PER_TENSOR}

GAP: Final = "share of the gap recovered"
BY_ACTIVATIONS: Final = "nats by activations"
OF_SMOOTH: Final = "share of SmoothQuant's improvement"

RECOVERS: Final = Limit(
    0.045,
    None,
    "the paper's recover 9 % (Llama-2-7B, table 7) to 84 % (OLMo-1B, table 4); half of the least is one still",
)
PUBLISHED: Final = (0.09, 0.84)
PART: Final = 0.1
"""Where activations cost less than this part of the gap, there is nothing to recover by restoring one."""


@dataclass(frozen=True)
class Plan:
    """How the maps are quantized: per token or per tensor (None: activations stay), which channels are restored."""

    per_token: bool | None
    restored: Mapping[LinearMap, tuple[int, ...]]
    factors: Mapping[LinearMap, torch.Tensor]


def measure(setup: Setup) -> Iterator[Measurement]:
    """Likelihood of every condition, and what is recovered of the gap between float and naive."""
    body = setup.subject.anatomy
    maps = tuple(one for one in setup.maps() if one.path != body.family.attention_output)
    if not maps:
        return
    channels = super_channels(setup, maps)
    factors = smoothing(setup, maps)
    intact = setup.intact()
    yield from setup.likelihood(INTACT)
    plain = Plan(None, {}, {})
    plans = {WEIGHTS: plain}
    for per_token, grain in ((True, ""), (False, PER_TENSOR)):
        plans[NAIVE + grain] = Plan(per_token, {}, {})
        plans[RESTORED + grain] = Plan(per_token, channels, {})
        if factors:
            plans[SMOOTH + grain] = Plan(per_token, {}, factors)
    nats: dict[str, torch.Tensor] = {}
    with edited(one.weight for one in maps) as saved:
        for condition, plan in setup.steps(list(plans.items()), "quantizations"):
            with quantized(maps, saved, plan):
                nats[condition] = setup.nats()
            yield from setup.likelihood(condition, nats=nats[condition])
    for grain in GRAINS.values():
        yield from shares(nats, intact, grain)


def super_channels(setup: Setup, maps: Sequence[LinearMap]) -> dict[LinearMap, tuple[int, ...]]:
    """In which input channels each map reads a super activation, or the spike that makes it; maps without are left out."""
    places, body = super_activations(setup.subject, setup.weights), setup.subject.anatomy
    found: dict[LinearMap, tuple[int, ...]] = {}
    for one in maps:
        if one.module is body.down_projections[one.layer]:
            channels = [weight.column for weight in setup.weights if weight.layer == one.layer]
        else:
            channels = [place.channel for place in places if place.layer < one.layer <= place.last + 1]
        if channels:
            found[one] = tuple(dict.fromkeys(channels))
    return found


def smoothing(setup: Setup, maps: Sequence[LinearMap]) -> dict[LinearMap, torch.Tensor]:
    """SmoothQuant's factor of every input channel, float32 ``(in,)``, for the maps that read a norm with a weight.

    Maps that read the same tensor share them: ``max|x|**alpha / max|w|**(1 - alpha)``, both over the default prompt and
    all of these maps. Empty, with a note, where no norm has a weight to fold them into.
    """
    normed: list[torch.Tensor] = []
    with ExitStack() as hooks:
        for norm in _norms(setup.subject.anatomy.layers):
            hooks.callback(norm.register_forward_hook(lambda _m, _a, out: normed.append(first_tensor(out))).remove)
        read = inputs_of(setup.model, maps, prompt_ids(setup.subject))
    foldable = {tensor.data_ptr() for tensor in normed}
    groups: dict[int, list[LinearMap]] = {}
    for one, x in read.items():
        if x.data_ptr() in foldable:
            groups.setdefault(x.data_ptr(), []).append(one)
    if not groups:
        setup.note("SmoothQuant is left out: no linear map reads a norm with a weight to fold its factors into")
    factors: dict[LinearMap, torch.Tensor] = {}
    for group in groups.values():
        loud = read[group[0]].float().abs().flatten(0, -2).amax(0)
        wide = torch.stack([one.weight.float().abs().amax(0) for one in group]).amax(0)
        factor = (loud**ALPHA / wide.clamp(min=LEAST_FACTOR) ** (1 - ALPHA)).clamp(min=LEAST_FACTOR)
        factors |= dict.fromkeys(group, factor)
    return factors


def _norms(layers: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """The modules of the layers whose own weight has one dimension: a factor per channel."""
    for layer in layers:
        for module in layer.modules():
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            if weight is not None and weight.ndim == 1:
                yield module


@contextmanager
def quantized(maps: Sequence[LinearMap], saved: Sequence[torch.Tensor], plan: Plan) -> Iterator[None]:
    """The model with its maps quantized as planned, from their ``saved`` weights; these have to be put back outside."""
    with ExitStack() as hooks:
        for one, weight in zip(maps, saved, strict=True):
            factor = plan.factors.get(one)
            scaled = weight if factor is None else (weight.float() * factor).to(weight.dtype)
            one.weight.copy_(absmax(scaled, BITS))
            if plan.per_token is not None:
                hook = _reading(plan.per_token, plan.restored.get(one, ()), factor)
                hooks.callback(one.module.register_forward_pre_hook(hook).remove)
        yield


def _reading(per_token: bool, channels: tuple[int, ...], factor: torch.Tensor | None) -> Callable[..., Any]:
    """A hook that hands a map what it would read quantized."""

    def read(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = as_floats(args[0])
        if factor is not None:
            x = (x.float() / factor.to(x.device)).to(x.dtype)
        return (rounded(x, channels, per_token=per_token), *args[1:])

    return read


def rounded(x: torch.Tensor, channels: Sequence[int], *, per_token: bool) -> torch.Tensor:
    """What a map reads, ``(B, T, in)``, in eight bits; in these channels each window's largest scalar is held out.

    It gives way to the median of the tensor before and comes back after: the paper's REPLACE and RESTORE.
    """
    quiet = x.clone()
    windows = torch.arange(len(x), device=x.device)
    held = []
    for channel in channels:
        tokens = x[..., channel].abs().argmax(1)
        held.append((tokens, channel, x[windows, tokens, channel]))
        quiet[windows, tokens, channel] = x.median()
    codes = absmax(quiet, BITS, block=per_row(x) if per_token else None)
    for tokens, channel, values in held:
        codes[windows, tokens, channel] = values
    return codes


def shares(nats: Mapping[str, torch.Tensor], intact: torch.Tensor, grain: str) -> Iterator[Measurement]:
    """What activations add to the loss, and which share of naive's rise each method takes back, with their errors."""
    naive = nats[NAIVE + grain]
    by_activations = naive - nats[WEIGHTS]
    yield _mean(BY_ACTIVATIONS, by_activations, NAIVE + grain)
    for method in (RESTORED, SMOOTH):
        if method + grain in nats:
            yield _share(GAP, naive - nats[method + grain], naive - intact, method + grain)
    if SMOOTH + grain in nats:
        recovered, smooth = naive - nats[RESTORED + grain], naive - nats[SMOOTH + grain]
        if float(smooth.mean()) > 3 * standard_error(smooth):
            yield _share(OF_SMOOTH, recovered, smooth, RESTORED + grain)


def _mean(quantity: str, values: torch.Tensor, condition: str) -> Measurement:
    return Measurement(quantity, float(values.mean()), condition, error=_finite(standard_error(values)))


def _share(quantity: str, part: torch.Tensor, whole: torch.Tensor, condition: str) -> Measurement:
    """The ratio of two means of paired differences, with the error of a ratio estimate."""
    mean = float(whole.mean())
    share = float(part.mean()) / mean if mean else math.nan
    error = standard_error(part - share * whole) / abs(mean) if mean else math.nan
    return Measurement(quantity, share, condition, error=_finite(error))


def _finite(error: float) -> float | None:
    return error if math.isfinite(error) else None


def _one(study: Study, quantity: str, condition: str) -> Measurement | None:
    return next(iter(study.select(quantity, condition)), None)


def table(study: Study) -> Rows:
    """One row per condition: perplexity, its ratio, and the shares."""
    rows = [["", "perplexity", "ratio", "of the gap", "of SmoothQuant's"]]
    for ratio in study.select(RATIO):
        spread = "" if ratio.condition == INTACT else f" +- {ratio.error or 0.0:.4f}"
        cells = [_percent(_one(study, quantity, ratio.condition)) for quantity in (GAP, OF_SMOOTH)]
        perplexity = f"{study.value(PERPLEXITY, ratio.condition):.4f}"
        rows.append([ratio.condition, perplexity, format_number(ratio.value, "x") + spread, *cells])
    return rows


def _percent(one: Measurement | None) -> str:
    if one is None:
        return ""
    return f"{100 * one.value:.0f} %" + ("" if one.error is None else f" +- {100 * one.error:.0f}")


def draw(study: Study, figure: Any) -> None:
    """Bars: what each condition adds to the perplexity, and what it takes back of the gap, with the paper's span."""
    left, right = figure.subplots(1, 2)
    bars = [(WEIGHTS, "W8 alone"), (NAIVE, "naive"), (RESTORED, "super activation\nrestored"), (SMOOTH, "SmoothQuant")]
    width = 0.38
    for number_, (grain, suffix) in enumerate(GRAINS.items()):
        shift = (number_ - 0.5) * width
        for axes, quantity in ((left, RATIO), (right, GAP)):
            shown = bars if quantity == RATIO else bars[2:]
            found = [_one(study, quantity, name if name == WEIGHTS else name + suffix) for name, _ in shown]
            base = 1.0 if quantity == RATIO else 0.0
            points = [(place + shift, one) for place, one in enumerate(found) if one is not None]
            axes.bar(
                [place for place, _ in points], [100 * (one.value - base) for _, one in points], width,
                yerr=[100 * (one.error or 0.0) for _, one in points], capsize=3, color=COLOURS[number_],
                hatch="" if number_ == 0 else "//", edgecolor="w", label=f"activations {grain}",
            )  # fmt: skip
            axes.set_xticks(range(len(shown)), [words for _, words in shown], fontsize=8)
            axes.grid(visible=False, axis="x")
    left.set_ylabel("perplexity above float, %")
    right.set_ylabel("share of the gap recovered, %")
    right.axhspan(100 * PUBLISHED[0], 100 * PUBLISHED[1], color="0.85", zorder=0, label="the paper's, per token")
    for axes in (left, right):
        axes.axhline(0.0, color="0.4", linewidth=0.8, marker="")
    right.legend(fontsize=8)


def judge(study: Study) -> tuple[Verdict, ...]:
    """Where quantized activations cost something, restoring the super activation takes a share of the gap back."""
    if not study.has(GAP):
        words = "no linear map keeps a plain weight: nothing can be quantized"
        return (Verdict("paper: w8a8", study.model, Outcome.NOT_APPLICABLE, words),)
    return tuple(_judged(study, grain, suffix) for grain, suffix in GRAINS.items())


def _judged(study: Study, grain: str, suffix: str) -> Verdict:
    check = f"paper: w8a8{suffix}"
    naive, cost = study.select(RATIO, NAIVE + suffix)[0], study.select(BY_ACTIVATIONS, NAIVE + suffix)[0]
    share = study.select(GAP, RESTORED + suffix)[0]
    words = (
        f"activations {grain}: naive {format_number(naive.value, 'x')}, of which activations {_nats(cost)}; restoring the super "
        f"activation recovers {_percent(share)} of the gap"
    )
    smooth = _one(study, GAP, SMOOTH + suffix)
    words += "" if smooth is None else f", SmoothQuant {_percent(smooth)}"
    gap = math.log(naive.value) if naive.value > 0 else math.nan
    if cost.value <= max(3 * (cost.error or 0.0), PART * gap):
        words += ": the gap is the weights' own, activations cost nothing to speak of that could be recovered"
        return Verdict(check, study.model, Outcome.NOT_APPLICABLE, words, limit=RECOVERS)
    noise = 3 * (share.error or 0.0)
    if not RECOVERS.holds(share.value):
        outcome, cause = Outcome.FAILED, f"restoring the super activation recovers {_percent(share)} of what W8A8 costs"
    elif share.value <= noise:
        outcome, cause = Outcome.INCONCLUSIVE, f"{_percent(share)} recovered cannot be told from nothing on this text"
    else:
        outcome, cause = Outcome.PASSED if RECOVERS.holds(share.value - noise) else Outcome.NEAR, ""
    return Verdict(check, study.model, outcome, words, measured=share.value, limit=RECOVERS, cause=cause)


def _nats(one: Measurement) -> str:
    return f"{one.value:+.4f}" + ("" if one.error is None else f" +- {one.error:.4f}") + " nats"


CHAPTER: Final = Chapter("w8a8", "Eight-bit weights and activations", "tables 3 and 4", measure, table, draw, judge)
