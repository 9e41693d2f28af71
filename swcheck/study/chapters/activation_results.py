"""What the study of the super activation shows and claims, from its measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

from swcheck.base.formatting import format_number
from swcheck.base.records import Limit, Verdict
from swcheck.study.common.chapter import Rows, claim
from swcheck.study.common.plots import COLOURS
from swcheck.study.common.record import INTACT, OTHERS, ZEROED, Study

BOTH: Final = "super weights and other largest weights zeroed"


INPUT: Final = "largest down_proj input"


OUTPUT: Final = "largest down_proj output"


HIDDEN: Final = "largest hidden state"
"""Magnitude; ``x`` 0 without a layer is what the first layer gets, a layer's is what it gives."""


PLACE: Final = "super activation"


DROP: Final = "drop of the super activation"


BY_PROMPT: Final = "largest value by prompt"


BARE: Final = "largest value by prompt, without BOS"


BOS: Final = "prompts begin with BOS"


ATTENTION: Final = "attention to the sink"
"""Mean weight that later tokens give to the sink; ``x`` is the head."""


DEEP: Final = 12
"""Models of so many layers lose the activation in the last two of them, smaller ones in the last."""


SINK: Final = 0.3
"""A head has a sink where later tokens give this much to it (Gu et al., arXiv 2410.10781)."""


SAME: Final = Limit(None, 0.05, "the paper: exactly the same magnitude; its own Llama-7B moves by 3 %")


EVERYWHERE: Final = Limit(1.0, None, "the paper: the same position and channel for every prompt; others: in 100 %")


DROPS: Final = Limit(0.75, None, "the paper: zeroing lowers it by about 75 % (Llama-7B: 76 %)")


def carrying(study: Study, channel: int) -> tuple[int, ...]:
    """The layers in which an activation is expected: from its onset on, without the last ones, which take it away."""
    series = study.select(PLACE, INTACT, channel=channel)
    peak = max(abs(one.value) for one in series)
    first = next(place for place, one in enumerate(series) if abs(one.value) >= peak / 2)
    end = len(series) - (2 if len(series) >= DEEP else 1)
    return tuple(one.layer for one in series[first : max(end, first + 1)] if one.layer is not None)


def channels(study: Study) -> tuple[int, ...]:
    """The channels of the super activations, strongest first as the places were given."""
    return tuple(dict.fromkeys(one.channel for one in study.select(PLACE, INTACT) if one.channel is not None))


def deviation(study: Study, channel: int) -> float:
    """How far an activation strays from its median over the layers that carry it, as a share of it."""
    values = [study.value(PLACE, INTACT, channel=channel, layer=layer) for layer in carrying(study, channel)]
    middle = _median(values)
    return max(abs(value / middle - 1) for value in values) if middle and math.isfinite(middle) else math.nan


def drop(study: Study, condition: str, channel: int | None = None) -> float:
    """The share of an activation that is gone, median over its layers: at its place, or of the layers' largest values."""
    there = channels(study)[0] if channel is None else channel
    quantity, place = (HIDDEN, {}) if channel is None else (PLACE, {"channel": channel})
    left = [
        study.value(quantity, condition, layer=layer, **place) / study.value(quantity, INTACT, layer=layer, **place)
        for layer in carrying(study, there)
    ]
    return 1 - _median(left)


def _median(values: Sequence[float]) -> float:
    """The median; NaN where one of the values is none."""
    return statistics.median(values) if all(map(math.isfinite, values)) else math.nan


def _first_bad(value: float) -> float:
    """For the worst of several: what is no number comes before every other."""
    return math.inf if math.isnan(value) else value


def sinks(study: Study, condition: str) -> float:
    """The share of heads that have a sink."""
    heads = study.select(ATTENTION, condition)
    return sum(one.value > SINK for one in heads) / len(heads) if heads else math.nan


def table(study: Study) -> Rows:
    """One row per layer: figure 3, then figure 4 by condition, then the mean attention to the sink by condition."""
    conditions = study.conditions(HIDDEN)
    attended = study.conditions(ATTENTION)
    names = {INTACT: "residual", ZEROED: "zeroed", OTHERS: "others zeroed", BOTH: "both zeroed"}
    head = ["layer", "down_proj input", "down_proj output", *(names[one] for one in conditions)]
    lines = [[*head, *("to the sink" if one == INTACT else names[one] for one in attended)]]
    for one in study.select(INPUT, INTACT):
        output = study.select(OUTPUT, INTACT, layer=one.layer)[0]
        values = [study.value(HIDDEN, condition, layer=one.layer) for condition in conditions]
        heads = [[row.value for row in study.select(ATTENTION, name, layer=one.layer)] for name in attended]
        lines.append(
            [
                str(one.layer),
                f"{one.value:+.4g} @ {one.position}, {one.channel}",
                f"{output.value:+.4g} @ {output.position}, {output.channel}",
                *(format_number(value) for value in values),
                *(f"{statistics.fmean(row):.3f}" for row in heads),
            ]
        )
    return lines


LINES: Final = (INTACT, ZEROED, OTHERS)
"""The curves of figure 4; the fourth condition is in the data and not plotted, as in the paper's."""


def draw(study: Study, figure: Any) -> None:
    """Figure 3 above, signed, input and output; figure 4 below on a logarithmic axis, attention by head beside it."""
    figure.set_size_inches(9.0, 7.0)
    (above, beside), (below, attention) = figure.subplots(2, 2)
    for axes, quantity in ((above, INPUT), (beside, OUTPUT)):
        points = study.select(quantity, INTACT)
        axes.plot([one.layer for one in points], [one.value for one in points])
        top = max(points, key=lambda one: abs(one.value))
        axes.annotate(
            f"token {top.position}, channel {top.channel}", (top.layer, top.value), xytext=(6, 0),
            textcoords="offset points", fontsize=8, va="center",
        )  # fmt: skip
        axes.axhline(0.0, color="0.6", linewidth=0.8, marker="")
        axes.set_ylabel(f"{quantity} (signed)")
    for condition in LINES:
        points = tuple(one for one in study.select(HIDDEN, condition) if one.layer is not None)
        if points:
            below.plot([one.layer for one in points], [one.value for one in points], label=condition)
    below.set_yscale("log")
    below.set_ylabel("largest magnitude in the residual stream")
    below.legend(fontsize=8)
    for place, condition in enumerate((INTACT, ZEROED)):
        heads = study.select(ATTENTION, condition)
        attention.plot(
            [(one.layer or 0) + 0.3 * place - 0.15 for one in heads], [one.value for one in heads],
            linestyle="", marker="o^"[place], color=COLOURS[place], alpha=0.7, label=condition,
        )  # fmt: skip
    if study.has(ATTENTION):
        attention.axhline(SINK, color="0.6", linewidth=0.8, linestyle="--", marker="")
        attention.legend(fontsize=8)
    attention.set_ylim(0.0, 1.0)
    attention.set_ylabel("attention to the sink, each head")
    for axes in figure.axes:
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)


def judge(study: Study) -> tuple[Verdict, ...]:
    """The activation is carried on unchanged, stands in the same place for every prompt, and goes with its weights."""
    return (_persists(study), _same_place(study), _drops_with(study))


def _persists(study: Study) -> Verdict:
    worst = max(channels(study), key=lambda channel: _first_bad(deviation(study, channel)))
    layers, measured = carrying(study, worst), deviation(study, worst)
    words = f"channel {worst} strays by {100 * measured:.1f} % from its median over layers {layers[0]} to {layers[-1]}"
    return claim(study, "paper: activation persists", measured, SAME, words, cause=f"not the same magnitude: {words}")


def _same_place(study: Study) -> Verdict:
    rows, prompts = set(channels(study)), study.select(BY_PROMPT)
    position = study.select(PLACE, INTACT)[0].position
    with_bos = study.value(BOS) == 1
    here = [one for one in prompts if one.channel in rows and (one.position == position or not with_bos)]
    away = [one for one in prompts if one not in here]
    values = [abs(one.value) for one in here]
    span = f", {format_number(min(values))} to {format_number(max(values))}" if values else ""
    reason = " (n = 1 by causality: token 0 sees only itself)" if with_bos and position == 0 else ""
    words = f"the largest value stands in its channel{' and token' if with_bos else ''} in {len(here)} of {len(prompts)} prompts{span}{reason}"
    bare = study.select(BARE)
    if bare:
        words += f"; without BOS in its channel in {sum(one.channel in rows for one in bare)} of {len(bare)}"
    cause = f"elsewhere for {away[0].prompt}: channel {away[0].channel} at token {away[0].position}" if away else ""
    share = len(here) / len(prompts) if prompts else math.nan
    return claim(study, "paper: activation's place", share, EVERYWHERE, words, cause=cause)


def _drops_with(study: Study) -> Verdict:
    least = max(channels(study), key=lambda channel: _first_bad(1 - drop(study, ZEROED, channel)))
    measured = drop(study, ZEROED, least)
    words = f"zeroing takes {100 * measured:.0f} % of channel {least}; the largest value of a layer falls by {100 * drop(study, ZEROED):.0f} %"
    if OTHERS in study.conditions(HIDDEN):
        words += f", by {100 * drop(study, OTHERS):.0f} % without the other largest weights (the paper: 76 and 28 %)"
    if study.has(ATTENTION):
        words += (
            f"; heads with a sink: {100 * sinks(study, INTACT):.0f} % intact, {100 * sinks(study, ZEROED):.0f} % zeroed"
        )
    return claim(study, "paper: activation drops", measured, DROPS, words, cause=f"most of it stays: {words}")
