"""The super activation (figures 3 and 4): where it arises, how it is carried, what zeroing leaves of it.

Figure 3 is the largest input and output of every down projection, figure 4 the largest value of the residual stream.
Beside them: the activation at its own place, layer by layer and prompt by prompt, and the attention that later tokens
pay to its token. Whether sinks survive without the weights is disputed, so attention is reported, not judged.
T time, L layers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from swcheck.anatomy import device_of
from swcheck.errors import OptionError
from swcheck.location import PROMPT
from swcheck.measure import evaluating
from swcheck.observe import first_tensor, observe
from swcheck.prompts import encoded, shown
from swcheck.records import Limit, Prompt, SuperActivation, Verdict
from swcheck.report import number
from swcheck.stress import without_largest
from swcheck.study.chapter import Chapter, Rows, claim
from swcheck.study.plots import COLOURS
from swcheck.study.record import INTACT, OTHERS, ZEROED, Measurement, Study
from swcheck.study.setup import Setup
from swcheck.study.surgery import PAPERS_SHARE

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

PAPERS_PROMPT: Final = "Apple Inc. is a worldwide tech company."
PROMPTS: Final = (
    PAPERS_PROMPT,
    PROMPT,
    "Summer is hot. Winter is cold.",
    "def area(width, height):\n    return width * height\n",
    "El mercado abre a las ocho de la ma\u00f1ana.",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u3002",
    "1. First\n2. Second\n\n   indented",
)
WINDOWS: Final = 8
LENGTH: Final = 64
"""So many windows of the text, each so many tokens: prompts, and where attention is looked at (Gu et al. take 64)."""

DEEP: Final = 12
"""Models of so many layers lose the activation in the last two of them, smaller ones in the last."""

SINK: Final = 0.3
"""A head has a sink where later tokens give this much to it (Gu et al., arXiv 2410.10781)."""

SAME: Final = Limit(None, 0.05, "the paper: exactly the same magnitude; its own Llama-7B moves by 3 %")
EVERYWHERE: Final = Limit(1.0, None, "the paper: the same position and channel for every prompt; others: in 100 %")
DROPS: Final = Limit(0.75, None, "the paper: zeroing lowers it by about 75 % (Llama-7B: 76 %)")


@dataclass(frozen=True)
class Spot:
    """The largest magnitude of a tensor, with its sign and its place."""

    value: float
    position: int
    channel: int


def measure(setup: Setup) -> Iterator[Measurement]:
    """One prompt under four conditions, then other prompts, then attention."""
    places = tuple(sorted(setup.subject.places(setup.weights), key=lambda place: -abs(place.value)))
    taken = tuple(_by_layer(setup, places))
    yield from taken
    so_far = Study("activations", setup.subject.name, taken)
    for condition in so_far.conditions(HIDDEN)[1:]:
        yield Measurement(DROP, drop(so_far, condition), condition)
    yield Measurement(BOS, float(setup.subject.has_bos))
    yield from _by_prompt(setup, places)
    yield from _attention(setup, places)


def _by_layer(setup: Setup, places: tuple[SuperActivation, ...]) -> Iterator[Measurement]:
    """Figures 3 and 4 on the paper's prompt, and what stands at each activation's own place."""
    ids, there = _ids(setup, Prompt(PAPERS_PROMPT)), places
    for condition, entered in setup.steps(tuple(_conditions(setup).items()), "condition"):
        try:
            with entered():
                seen, start = _look(setup, ids)
        except OptionError as error:
            setup.note(f"{condition}: left out, {error.found}")
            continue
        if condition == INTACT:
            there = tuple(_here(place, seen.residual) for place in places)
            yield from _spots(INPUT, seen.inputs, condition)
            yield from _spots(OUTPUT, seen.outputs, condition)
        yield Measurement(HIDDEN, abs(start.value), condition, 0.0, position=start.position, channel=start.channel)
        yield from (replace(one, value=abs(one.value)) for one in _spots(HIDDEN, seen.residual, condition))
        yield from _at_places(there, seen.residual, condition)


def _conditions(setup: Setup) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    @contextmanager
    def both() -> Iterator[None]:
        with without_largest(setup.model, setup.weights, PAPERS_SHARE), setup.without():
            yield

    return {
        INTACT: nullcontext,
        ZEROED: setup.without,
        OTHERS: lambda: without_largest(setup.model, setup.weights, PAPERS_SHARE),
        BOTH: both,
    }


def _ids(setup: Setup, prompt: Prompt) -> torch.Tensor:
    """The ids of a prompt, int64 ``(1, T)``; of the first window where there is no tokenizer."""
    if setup.tokenizer is None:
        return setup.ids[:1, :LENGTH]
    return torch.tensor([encoded(setup.tokenizer, prompt)], dtype=torch.int64)


def _look(setup: Setup, ids: torch.Tensor) -> tuple[Any, Spot]:
    """One pass that ends at the last layer: what every layer shows, and the largest value that the first one gets."""
    body, start = setup.subject.body, []

    def see(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        start.append(first_tensor(args[0] if args else kwargs["hidden_states"]).detach())

    layers = range(len(body.layers))
    with evaluating(setup.model), ExitStack() as hooks:
        hooks.callback(body.layers[0].register_forward_pre_hook(see, with_kwargs=True).remove)
        sight = hooks.enter_context(observe(setup.model, residual=layers, inputs=layers, outputs=layers, stop=True))
        setup.model(ids.to(device_of(setup.model)), use_cache=False)
    return sight, _spot(start[0][0])


def _spot(values: torch.Tensor) -> Spot:
    """The largest magnitude of ``values`` ``(T, C)``."""
    position, channel = divmod(int(values.float().abs().argmax()), values.shape[1])
    return Spot(float(values[position, channel]), position, channel)


def _spots(quantity: str, by_layer: dict[int, torch.Tensor], condition: str) -> Iterator[Measurement]:
    for layer, values in sorted(by_layer.items()):
        spot = _spot(values[0])
        yield Measurement(quantity, spot.value, condition, layer=layer, position=spot.position, channel=spot.channel)


def _at_places(
    places: Sequence[SuperActivation], residual: dict[int, torch.Tensor], condition: str
) -> Iterator[Measurement]:
    """What stands in each activation's channel and token after every layer."""
    for place in places:
        for layer, values in sorted(residual.items()):
            value = float(values[0, place.position, place.channel])
            yield Measurement(PLACE, value, condition, layer=layer, position=place.position, channel=place.channel)


def _here(place: SuperActivation, residual: dict[int, torch.Tensor]) -> SuperActivation:
    """The activation in another prompt: at the token where its channel is largest after the onset layer."""
    values = residual[place.layer][0, :, place.channel].float()
    position = int(values.abs().argmax())
    return replace(place, position=position, value=float(values[position]))


def _by_prompt(setup: Setup, places: Sequence[SuperActivation]) -> Iterator[Measurement]:
    """The largest value after the onset of the strongest activation, for prompts with BOS, without, and for windows."""
    onset = places[0].layer
    cases = [
        (f"window {number}", BY_PROMPT, setup.ids[[number], :LENGTH]) for number in range(len(setup.ids[:WINDOWS]))
    ]
    for text in PROMPTS if setup.tokenizer is not None else ():
        forms = (("plain", BY_PROMPT), ("bare", BARE)) if setup.subject.has_bos else (("plain", BY_PROMPT),)
        for form, quantity in forms:
            prompt = Prompt(text, form)
            cases.append((shown(setup.tokenizer, prompt), quantity, _ids(setup, prompt)))
    for name, quantity, ids in setup.steps(cases, "prompt"):
        with evaluating(setup.model), observe(setup.model, residual=[onset], stop=True) as sight:
            setup.model(ids.to(device_of(setup.model)), use_cache=False)
        spot = _spot(sight.residual[onset][0])
        yield Measurement(quantity, spot.value, layer=onset, position=spot.position, channel=spot.channel, prompt=name)


@contextmanager
def _weights_of_attention(model: Any) -> Iterator[None]:
    """Let the model compute its attention in the form that shows its weights; its own form comes back."""
    before = model.config._attn_implementation  # noqa: SLF001 - transformers has a public way to set, none to ask
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(setup: Setup, places: Sequence[SuperActivation]) -> Iterator[Measurement]:
    """What later tokens pay to the sink, by layer and head, intact and zeroed; a note where it cannot be had."""
    onset, ids = places[0].layer, setup.ids[:WINDOWS, :LENGTH].to(device_of(setup.model))
    with evaluating(setup.model), observe(setup.model, residual=[onset], stop=True) as sight:
        setup.model(ids, use_cache=False)
    sinks = sight.residual[onset][..., places[0].channel].float().abs()[:, :-1].argmax(1).tolist()
    for condition, entered in ((INTACT, nullcontext), (ZEROED, setup.without)):
        try:
            with evaluating(setup.model), _weights_of_attention(setup.model), entered():
                maps = setup.model(ids, use_cache=False, output_attentions=True).attentions
        except (AttributeError, ValueError, TypeError, RuntimeError) as error:
            setup.note(f"attention is left out: {type(error).__name__}, {error}")
            return
        if not maps or any(one is None for one in maps):
            setup.note("attention is left out: this model does not show its weights")
            return
        for layer, weights in enumerate(maps):
            paid = [weights[number, :, sink + 1 :, sink].float().mean(1) for number, sink in enumerate(sinks)]
            for head, value in enumerate(torch.stack(paid).mean(0).tolist()):
                yield Measurement(ATTENTION, value, condition, float(head), layer=layer)


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
                *(number(value) for value in values),
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
    span = f", {number(min(values))} to {number(max(values))}" if values else ""
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


CHAPTER: Final = Chapter("activations", "The super activation", "figures 3 and 4", measure, table, draw, judge)
