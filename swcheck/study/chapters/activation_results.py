"""The table, picture and verdicts of the study of the super activation, from its measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

from swcheck.base.formatting import format_number
from swcheck.base.records import Limit, Verdict
from swcheck.study.common.chapter import Rows, claim_verdict
from swcheck.study.common.plots import COLOURS
from swcheck.study.common.record import INTACT, OTHERS, ZEROED, Measurement, Study

BOTH: Final = "super weights and other largest weights zeroed"

INPUT: Final = "largest down_proj input"

OUTPUT: Final = "largest down_proj output"

HIDDEN: Final = "largest hidden state"
"""Magnitude: with a layer, of its output; without a layer and with ``x`` 0, of the first layer's input."""

PLACE: Final = "super activation"

DROP: Final = "drop of the super activation"

BY_PROMPT: Final = "largest value by prompt"

BARE: Final = "largest value by prompt, without BOS"

BOS: Final = "prompts begin with BOS"

ATTENTION: Final = "attention to the sink"
"""Mean attention weight that later tokens give to the sink; ``x`` is the head."""

DEEP: Final = 12
"""In models with at least this many layers the last two remove the activation, in smaller ones only the last."""

SINK: Final = 0.3
"""A head has a sink if later tokens give it more than this mean attention (Gu et al., arXiv 2410.10781)."""

SAME_LIMIT: Final = Limit(None, 0.05, "the paper: exactly the same magnitude; its own Llama-7B moves by 3 %")

SAME_PLACE_LIMIT: Final = Limit(
    1.0, None, "the paper: the same position and channel for every prompt; others: in 100 %"
)

DROP_LIMIT: Final = Limit(0.75, None, "the paper: zeroing lowers it by about 75 % (Llama-7B: 76 %)")


def carrying_layers(study: Study, channel: int) -> tuple[int, ...]:
    """Return the layers expected to carry an activation: from its onset on, except the last ones, which remove it."""
    points = study.select(PLACE, INTACT, channel=channel)
    peak = max(abs(point.value) for point in points)
    onset = next(place for place, point in enumerate(points) if abs(point.value) >= peak / 2)
    end = len(points) - (2 if len(points) >= DEEP else 1)
    return tuple(point.layer for point in points[onset : max(end, onset + 1)] if point.layer is not None)


def channels(study: Study) -> tuple[int, ...]:
    """Return the channels of the super activations, the strongest activation first."""
    return tuple(dict.fromkeys(point.channel for point in study.select(PLACE, INTACT) if point.channel is not None))


def deviation(study: Study, channel: int) -> float:
    """Return the largest relative deviation of an activation from its median over the layers that carry it."""
    values = [study.value(PLACE, INTACT, channel=channel, layer=layer) for layer in carrying_layers(study, channel)]
    median = _median(values)
    return max(abs(value / median - 1) for value in values) if median and math.isfinite(median) else math.nan


def drop(study: Study, condition: str, channel: int | None = None) -> float:
    """Return the share of an activation that is gone in ``condition``, as the median over the layers that carry it.

    Without a channel it is that of each layer's largest value, over the layers of the strongest activation.
    """
    carrying_channel = channels(study)[0] if channel is None else channel
    quantity, place = (HIDDEN, {}) if channel is None else (PLACE, {"channel": channel})
    remaining = [
        study.value(quantity, condition, layer=layer, **place) / study.value(quantity, INTACT, layer=layer, **place)
        for layer in carrying_layers(study, carrying_channel)
    ]
    return 1 - _median(remaining)


def _median(values: Sequence[float]) -> float:
    """Return the median; NaN if any value is not finite."""
    return statistics.median(values) if all(map(math.isfinite, values)) else math.nan


def _nan_as_infinity(value: float) -> float:
    """Return ``value``, or infinity for NaN, so that NaN counts as the worst of several."""
    return math.inf if math.isnan(value) else value


def sink_head_share(study: Study, condition: str) -> float:
    """Return the share of heads that have a sink; NaN if attention was not measured."""
    heads = study.select(ATTENTION, condition)
    return sum(head.value > SINK for head in heads) / len(heads) if heads else math.nan


def table(study: Study) -> Rows:
    """Return one row per layer: figure 3, figure 4 by condition, and the mean attention to the sink by condition."""
    conditions = study.conditions(HIDDEN)
    attention_conditions = study.conditions(ATTENTION)
    names = {INTACT: "residual", ZEROED: "zeroed", OTHERS: "others zeroed", BOTH: "both zeroed"}
    head = ["layer", "down_proj input", "down_proj output", *(names[condition] for condition in conditions)]
    lines = [[*head, *("to the sink" if name == INTACT else names[name] for name in attention_conditions)]]
    for residual in study.select(HIDDEN, INTACT):
        if residual.layer is None:
            continue
        values = [study.value(HIDDEN, condition, layer=residual.layer) for condition in conditions]
        heads = [
            [head.value for head in study.select(ATTENTION, name, layer=residual.layer)]
            for name in attention_conditions
        ]
        lines.append(
            [
                str(residual.layer),
                *(_peak_words(study.select(quantity, INTACT, layer=residual.layer)) for quantity in (INPUT, OUTPUT)),
                *(format_number(value) for value in values),
                *(f"{statistics.fmean(head):.3f}" if head else "" for head in heads),
            ]
        )
    return lines


def _peak_words(found: Sequence[Measurement]) -> str:
    """Return a value with its token and channel; nothing for a layer of experts, which has no dense down projection."""
    return f"{found[0].value:+.4g} @ {found[0].position}, {found[0].channel}" if found else ""


PLOTTED_CONDITIONS: Final = (INTACT, ZEROED, OTHERS)
"""The curves of figure 4. The fourth condition is measured but not plotted, as in the paper."""


def draw(study: Study, figure: Any) -> None:
    """Draw figure 3 above (signed input and output); below it figure 4 (logarithmic) and attention by head."""
    figure.set_size_inches(9.0, 7.0)
    (input_axes, output_axes), (residual_axes, attention_axes) = figure.subplots(2, 2)
    for axes, quantity in ((input_axes, INPUT), (output_axes, OUTPUT)):
        points = study.select(quantity, INTACT)
        axes.set_ylabel(f"{quantity} (signed)")
        if not points:
            axes.set_title("no layer has a dense down projection", fontsize=8)
            continue
        axes.plot([point.layer for point in points], [point.value for point in points])
        peak = max(points, key=lambda point: abs(point.value))
        axes.annotate(
            f"token {peak.position}, channel {peak.channel}", (peak.layer, peak.value), xytext=(6, 0),
            textcoords="offset points", fontsize=8, va="center",
        )  # fmt: skip
        axes.axhline(0.0, color="0.6", linewidth=0.8, marker="")
    for condition in PLOTTED_CONDITIONS:
        points = tuple(point for point in study.select(HIDDEN, condition) if point.layer is not None)
        if points:
            residual_axes.plot([point.layer for point in points], [point.value for point in points], label=condition)
    residual_axes.set_yscale("log")
    residual_axes.set_ylabel("largest magnitude in the residual stream")
    residual_axes.legend(fontsize=8)
    for place, condition in enumerate((INTACT, ZEROED)):
        heads = study.select(ATTENTION, condition)
        attention_axes.plot(
            [(point.layer or 0) + 0.3 * place - 0.15 for point in heads], [point.value for point in heads],
            linestyle="", marker="o^"[place], color=COLOURS[place], alpha=0.7, label=condition,
        )  # fmt: skip
    if study.has(ATTENTION):
        attention_axes.axhline(
            SINK, color="0.6", linewidth=0.8, linestyle="--", marker="", label=f"a sink takes more than {SINK:g}"
        )
        attention_axes.legend(fontsize=8)
    attention_axes.set_ylim(0.0, 1.0)
    attention_axes.set_ylabel("attention to the sink, each head")
    for axes in figure.axes:
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)


def judge(study: Study) -> tuple[Verdict, ...]:
    """Judge three claims: the activation persists, has one place for all prompts, and drops with its weights."""
    return (_persists_verdict(study), _same_place_verdict(study), _drop_verdict(study))


def _persists_verdict(study: Study) -> Verdict:
    worst = max(channels(study), key=lambda channel: _nan_as_infinity(deviation(study, channel)))
    layers, measured = carrying_layers(study, worst), deviation(study, worst)
    words = f"channel {worst} strays by {100 * measured:.1f} % from its median over layers {layers[0]} to {layers[-1]}"
    return claim_verdict(
        study, "paper: activation persists", measured, SAME_LIMIT, words, cause=f"not the same magnitude: {words}"
    )


def _same_place_verdict(study: Study) -> Verdict:
    expected, prompts = set(channels(study)), study.select(BY_PROMPT)
    position = study.select(PLACE, INTACT)[0].position
    with_bos = study.value(BOS) == 1
    in_place = [case for case in prompts if case.channel in expected and (case.position == position or not with_bos)]
    away = [case for case in prompts if case not in in_place]
    values = [abs(case.value) for case in in_place]
    value_range = f", {format_number(min(values))} to {format_number(max(values))}" if values else ""
    reason = " (n = 1 by causality: token 0 sees only itself)" if with_bos and position == 0 else ""
    words = f"the largest value stands in its channel{' and token' if with_bos else ''} in {len(in_place)} of {len(prompts)} prompts{value_range}{reason}"
    without_bos = study.select(BARE)
    if without_bos:
        words += f"; without BOS in its channel in {sum(case.channel in expected for case in without_bos)} of {len(without_bos)}"
    cause = f"elsewhere for {away[0].prompt}: channel {away[0].channel} at token {away[0].position}" if away else ""
    share = len(in_place) / len(prompts) if prompts else math.nan
    return claim_verdict(study, "paper: activation's place", share, SAME_PLACE_LIMIT, words, cause=cause)


def _drop_verdict(study: Study) -> Verdict:
    least = max(channels(study), key=lambda channel: _nan_as_infinity(1 - drop(study, ZEROED, channel)))
    measured = drop(study, ZEROED, least)
    words = f"zeroing takes {100 * measured:.0f} % of channel {least}; the largest value of a layer falls by {100 * drop(study, ZEROED):.0f} %"
    if OTHERS in study.conditions(HIDDEN):
        words += f", by {100 * drop(study, OTHERS):.0f} % without the other largest weights (the paper: 76 and 28 %)"
    if study.has(ATTENTION):
        words += f"; heads with a sink: {100 * sink_head_share(study, INTACT):.0f} % intact, {100 * sink_head_share(study, ZEROED):.0f} % zeroed"
    return claim_verdict(
        study, "paper: activation drops", measured, DROP_LIMIT, words, cause=f"most of it stays: {words}"
    )
