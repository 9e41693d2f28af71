"""The super activation (figures 3 and 4): where it arises, how it persists over layers, what zeroing leaves of it.

Figure 3 is the largest input and output of every down projection, figure 4 the largest value of the residual stream.
Measured beside them: the activation at its own place, layer by layer and prompt by prompt, and the attention that later
tokens pay to its token. The literature disagrees whether sinks survive without the weights, so attention is reported
and not judged. T tokens, L layers, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from swcheck.base.errors import OptionError
from swcheck.base.records import Prompt, SuperActivation
from swcheck.lens.architecture.storage import device_of, evaluating, first_tensor
from swcheck.lens.nulls import without_largest
from swcheck.lens.observe import observe
from swcheck.lens.prompts import encode_prompt, prompt_label
from swcheck.study.chapters.activation_results import (
    ATTENTION,
    BARE,
    BOS,
    BOTH,
    BY_PROMPT,
    DROP,
    HIDDEN,
    INPUT,
    OUTPUT,
    PLACE,
    draw,
    drop,
    judge,
    table,
)
from swcheck.study.common.chapter import Chapter
from swcheck.study.common.record import INTACT, OTHERS, ZEROED, Measurement, Study
from swcheck.study.common.setup import Setup
from swcheck.study.common.surgery import PAPERS_SHARE
from swcheck.superweights.locating.locate import PROMPT
from swcheck.superweights.measurements.inputs import has_bos
from swcheck.superweights.measurements.residual_stream import super_activations

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
"""Prompts and attention use ``WINDOWS`` windows of the text, ``LENGTH`` tokens each (Gu et al. take 64)."""


@dataclass(frozen=True)
class Peak:
    """The entry of largest magnitude of a tensor, signed, with its place."""

    value: float
    position: int
    channel: int


def measure(setup: Setup) -> Iterator[Measurement]:
    """Yield one prompt under four conditions, then other prompts, then attention."""
    places = tuple(sorted(super_activations(setup.subject, setup.weights), key=lambda place: -abs(place.value)))
    by_layer = tuple(_by_layer(setup, places))
    yield from by_layer
    partial_study = Study("activations", setup.subject.name, by_layer)
    for condition in partial_study.conditions(HIDDEN)[1:]:
        yield Measurement(DROP, drop(partial_study, condition), condition)
    yield Measurement(BOS, float(has_bos(setup.subject)))
    yield from _by_prompt(setup, places)
    yield from _attention(setup, places)


def _by_layer(setup: Setup, places: tuple[SuperActivation, ...]) -> Iterator[Measurement]:
    """Yield figures 3 and 4 on the paper's prompt, and the values at each activation's own place."""
    ids, prompt_places = _prompt_ids(setup, Prompt(PAPERS_PROMPT)), places
    for condition, context in setup.steps(tuple(_conditions(setup).items()), "condition"):
        try:
            with context():
                sight, initial = _observe_prompt(setup, ids)
        except OptionError as error:
            setup.note(f"{condition}: left out, {error.found}")
            continue
        if condition == INTACT:
            prompt_places = tuple(_place_in_prompt(place, sight.residual) for place in places)
            yield from _peaks(INPUT, sight.inputs, condition)
            yield from _peaks(OUTPUT, sight.outputs, condition)
        yield Measurement(
            HIDDEN, abs(initial.value), condition, 0.0, position=initial.position, channel=initial.channel
        )
        yield from (replace(point, value=abs(point.value)) for point in _peaks(HIDDEN, sight.residual, condition))
        yield from _place_measurements(prompt_places, sight.residual, condition)


def _conditions(setup: Setup) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    @contextmanager
    def both() -> Iterator[None]:
        with without_largest(setup.model, setup.weights, PAPERS_SHARE), setup.super_weights_zeroed():
            yield

    return {
        INTACT: nullcontext,
        ZEROED: setup.super_weights_zeroed,
        OTHERS: lambda: without_largest(setup.model, setup.weights, PAPERS_SHARE),
        BOTH: both,
    }


def _prompt_ids(setup: Setup, prompt: Prompt) -> torch.Tensor:
    """Return the ids of a prompt, int64 ``(1, T)``; those of the first window if there is no tokenizer."""
    if setup.tokenizer is None:
        return setup.ids[:1, :LENGTH]
    return torch.tensor([encode_prompt(setup.tokenizer, prompt)], dtype=torch.int64)


def _observe_prompt(setup: Setup, ids: torch.Tensor) -> tuple[Any, Peak]:
    """Run one pass up to the last layer; return what was observed, and the peak of the first layer's input."""
    body, first_inputs = setup.subject.anatomy, []

    def record_input(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first_inputs.append(first_tensor(args[0] if args else kwargs["hidden_states"]).detach())

    layers = range(len(body.layers))
    dense = [n for n in layers if any(one.key.expert is None for one in body.down_maps(n))]
    if len(dense) < len(layers):
        setup.note(
            f"{len(layers) - len(dense)} layers have no dense down projection: its input and output are left out"
        )
    with evaluating(setup.model), ExitStack() as hooks:
        hooks.callback(body.layers[0].register_forward_pre_hook(record_input, with_kwargs=True).remove)
        sight = hooks.enter_context(observe(setup.model, residual=layers, inputs=dense, outputs=dense, stop=True))
        setup.model(ids.to(device_of(setup.model)), use_cache=False)
    return sight, _peak(first_inputs[0][0])


def _peak(values: torch.Tensor) -> Peak:
    """Return the entry of largest magnitude of ``values`` ``(T, C)``."""
    position, channel = divmod(int(values.float().abs().argmax()), values.shape[1])
    return Peak(float(values[position, channel]), position, channel)


def _peaks(quantity: str, by_layer: dict[int, torch.Tensor], condition: str) -> Iterator[Measurement]:
    for layer, values in sorted(by_layer.items()):
        peak = _peak(values[0])
        yield Measurement(quantity, peak.value, condition, layer=layer, position=peak.position, channel=peak.channel)


def _place_measurements(
    places: Sequence[SuperActivation], residual: dict[int, torch.Tensor], condition: str
) -> Iterator[Measurement]:
    """Yield the value in each activation's channel and token after every layer."""
    for place in places:
        for layer, values in sorted(residual.items()):
            value = float(values[0, place.position, place.channel])
            yield Measurement(PLACE, value, condition, layer=layer, position=place.position, channel=place.channel)


def _place_in_prompt(place: SuperActivation, residual: dict[int, torch.Tensor]) -> SuperActivation:
    """Return the activation's place in another prompt: the token where its channel is largest after the onset layer."""
    values = residual[place.layer][0, :, place.channel].float()
    position = int(values.abs().argmax())
    return replace(place, position=position, value=float(values[position]))


def _by_prompt(setup: Setup, places: Sequence[SuperActivation]) -> Iterator[Measurement]:
    """Yield the largest value after the strongest activation's onset layer, for windows and for prompts."""
    onset = places[0].layer
    cases = [
        (f"window {number}", BY_PROMPT, setup.ids[[number], :LENGTH]) for number in range(len(setup.ids[:WINDOWS]))
    ]
    for text in PROMPTS if setup.tokenizer is not None else ():
        forms = (("plain", BY_PROMPT), ("bare", BARE)) if has_bos(setup.subject) else (("plain", BY_PROMPT),)
        for form, quantity in forms:
            prompt = Prompt(text, form)
            cases.append((prompt_label(setup.tokenizer, prompt), quantity, _prompt_ids(setup, prompt)))
    for name, quantity, ids in setup.steps(cases, "prompt"):
        with evaluating(setup.model), observe(setup.model, residual=[onset], stop=True) as sight:
            setup.model(ids.to(device_of(setup.model)), use_cache=False)
        peak = _peak(sight.residual[onset][0])
        yield Measurement(quantity, peak.value, layer=onset, position=peak.position, channel=peak.channel, prompt=name)


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """Use transformers' eager attention within the block, the implementation that returns its weights."""
    previous = model.config._attn_implementation  # noqa: SLF001 - transformers has a public setter, no getter
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(previous)


def _attention(setup: Setup, places: Sequence[SuperActivation]) -> Iterator[Measurement]:
    """Yield the attention that later tokens pay to the sink, by layer and head; or leave a note why not."""
    onset, ids = places[0].layer, setup.ids[:WINDOWS, :LENGTH].to(device_of(setup.model))
    with evaluating(setup.model), observe(setup.model, residual=[onset], stop=True) as sight:
        setup.model(ids, use_cache=False)
    sinks = sight.residual[onset][..., places[0].channel].float().abs()[:, :-1].argmax(1).tolist()
    for condition, context in ((INTACT, nullcontext), (ZEROED, setup.super_weights_zeroed)):
        try:
            with evaluating(setup.model), _eager_attention(setup.model), context():
                maps = setup.model(ids, use_cache=False, output_attentions=True).attentions
        except (AttributeError, ValueError, TypeError, RuntimeError) as error:
            setup.note(f"attention is left out: {type(error).__name__}, {error}")
            return
        if not maps or any(attention is None for attention in maps):
            setup.note("attention is left out: this model does not show its weights")
            return
        for layer, weights in enumerate(maps):
            to_sink = [weights[number, :, sink + 1 :, sink].float().mean(1) for number, sink in enumerate(sinks)]
            for head, value in enumerate(torch.stack(to_sink).mean(0).tolist()):
                yield Measurement(ATTENTION, value, condition, float(head), layer=layer)


CHAPTER: Final = Chapter("activations", "The super activation", "figures 3 and 4", measure, table, draw, judge)
