"""The super activation (figures 3 and 4): where it arises, how it is carried, what zeroing leaves of it.

Figure 3 is the largest input and output of every down projection, figure 4 the largest value of the residual stream.
Beside them: the activation at its own place, layer by layer and prompt by prompt, and the attention that later tokens
pay to its token. Whether sinks survive without the weights is disputed, so attention is reported, not judged.
T time, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from swcheck.base.errors import OptionError
from swcheck.base.records import Prompt, SuperActivation
from swcheck.lens.anatomy import device_of
from swcheck.lens.likelihood import evaluating
from swcheck.lens.nulls import without_largest
from swcheck.lens.observe import first_tensor, observe
from swcheck.lens.prompts import displayed, encoded
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
"""So many windows of the text, each so many tokens: prompts, and where attention is looked at (Gu et al. take 64)."""


@dataclass(frozen=True)
class Spot:
    """The largest magnitude of a tensor, with its sign and its place."""

    value: float
    position: int
    channel: int


def measure(setup: Setup) -> Iterator[Measurement]:
    """One prompt under four conditions, then other prompts, then attention."""
    places = tuple(sorted(super_activations(setup.subject, setup.weights), key=lambda place: -abs(place.value)))
    taken = tuple(_by_layer(setup, places))
    yield from taken
    so_far = Study("activations", setup.subject.name, taken)
    for condition in so_far.conditions(HIDDEN)[1:]:
        yield Measurement(DROP, drop(so_far, condition), condition)
    yield Measurement(BOS, float(has_bos(setup.subject)))
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
    body, start = setup.subject.anatomy, []

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
        forms = (("plain", BY_PROMPT), ("bare", BARE)) if has_bos(setup.subject) else (("plain", BY_PROMPT),)
        for form, quantity in forms:
            prompt = Prompt(text, form)
            cases.append((displayed(setup.tokenizer, prompt), quantity, _ids(setup, prompt)))
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


CHAPTER: Final = Chapter("activations", "The super activation", "figures 3 and 4", measure, table, draw, judge)
