"""Finds super weights without data: look, decide, remove, look again, until nothing is left to explain.

After the paper (arXiv 2411.07191, section 3.1), with what follow-ups found wrong repaired. What is looked for is not
the loudest spike but a value in the residual stream that persists over the later layers and stands at few tokens;
its *earliest* writer is followed back to the inner neurons that feed it, several in one layer or one row if need be;
signs are kept; the last layer's output is no evidence (echoes), a writer against the sign of what it writes into is a
canceller, and what vanishes with an earlier weight was only received. The bar is set in the first look and stays.

What counts is decided in ``spike``; here is the search. T time, H residual width, F inner width, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.anatomy import Anatomy, anatomy, device_of
from swcheck.errors import NotFiniteError, TextError, WrongModelError
from swcheck.intervene import zeroed
from swcheck.measure import check_token_ids, evaluating, perplexity, token_nats, vocabulary_of
from swcheck.observe import Sight, contributions, effective_weight, observe, plain_weight
from swcheck.records import Likelihood, SuperActivation, SuperWeight
from swcheck.spike import USUAL, Rules, earliest_writer, local_layers, median_of, spikes

if TYPE_CHECKING:
    from torch import nn

PROMPT: Final = (
    "The quick brown fox jumps over the lazy dog. In the beginning there was nothing, and then, rather late on a "
    "Tuesday, somebody wrote the first line of a program that would outlive every one of its authors."
)


@dataclass(frozen=True)
class Peak:
    """The largest magnitude of one tensor ``(T, C)``, with its sign."""

    value: float
    position: int
    channel: int


@dataclass(frozen=True)
class LayerPeaks:
    """What one layer showed: its down projection's input and output, and the residual stream after it."""

    layer: int
    input: Peak
    output: Peak
    residual: Peak


@dataclass(frozen=True)
class Round:
    """One look: the peaks, what was taken for a super weight, what was turned down and why, in words."""

    layers: tuple[LayerPeaks, ...]
    found: tuple[SuperWeight, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """What removing the located weights does on a text: intact, all zeroed together, each zeroed alone."""

    intact: Likelihood
    together: Likelihood
    alone: tuple[Likelihood, ...]


@dataclass(frozen=True)
class Located:
    """What ``locate`` found. ``super_weights`` come strongest first; ``written`` is what each adds at its token.

    ``reason`` says in words what was found, or why nothing was.
    """

    super_weights: tuple[SuperWeight, ...]
    written: tuple[float, ...]
    activations: tuple[SuperActivation, ...]
    rounds: tuple[Round, ...]
    reason: str
    effect: Effect | None = None


def locate(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    prompt: str = PROMPT,
    token_ids: torch.Tensor | None = None,
    seeds: Sequence[SuperWeight] = (),
    verify: torch.Tensor | None = None,
    rules: Rules = USUAL,
) -> Located:
    """Find the super weights of ``model`` in one forward pass and a few short looks at what is left.

    ``prompt`` is encoded as the tokenizer does it; ``token_ids``, int64 ``(1, T)``, take its place. ``seeds`` are
    published coordinates: they are taken first and completed by what is found beside them; ``WrongModelError`` where
    this model does not have them. ``verify``, int64 ``(B, T)``, is scored intact and zeroed. The model is left as it
    was. Raises ``CoordinateError`` for a seed outside the model, ``TextError`` for a prompt or ids that cannot be looked
    at, ``NotFiniteError`` where the pass holds NaN or infinity.
    """
    body = anatomy(model)
    body.check(seeds)
    ids = _prompt_ids(model, tokenizer, prompt, token_ids)
    if verify is not None:
        check_token_ids(verify, vocabulary_of(model))
    with evaluating(model):
        search = _Search(model, body, ids, rules)
        search.run(tuple(seeds))
    found = search.result()
    return found if verify is None else replace(found, effect=effect_of(model, found.super_weights, verify))


def effect_of(model: nn.Module, super_weights: Sequence[SuperWeight], token_ids: torch.Tensor) -> Effect:
    """Score ``token_ids`` intact, with all of ``super_weights`` zeroed, and with each of them zeroed alone.

    What is not finite without the weights is passed on; raises ``NotFiniteError`` where it is not finite with them.
    """

    def score(removed: Sequence[SuperWeight]) -> Likelihood:
        with zeroed(model, removed):
            nats = token_nats(model, token_ids)
        return Likelihood(float(nats.sum()), nats.numel())

    intact = perplexity(model, token_ids)
    together = score(super_weights)
    alone = (together,) if len(super_weights) == 1 else tuple(score([weight]) for weight in super_weights)
    return Effect(intact, together, alone)


@dataclass(frozen=True)
class _Look:
    """What one pass showed, and its residual stream in one piece, float32 ``(L, T, H)`` on the CPU."""

    sight: Sight
    residual: torch.Tensor


class _Search:
    """The state of one search: what was seen first, what was taken, and the remarks of every round."""

    def __init__(self, model: nn.Module, body: Anatomy, ids: torch.Tensor, rules: Rules) -> None:
        self.model, self.body, self.ids, self.rules = model, body, ids, rules
        self.in_tuple = False
        self.first = self._look(ids, 0, None)
        residual = self.first.residual
        inner = residual[:-1].abs() if len(residual) > 1 else residual.abs()
        self.peaks = inner.amax(1)  # of each layer and channel
        self.loudest = float(self.peaks.amax())
        if not math.isfinite(self.loudest + float(residual[-1].abs().amax())):  # NaN wins over every number
            layer = int((~torch.isfinite(residual)).flatten(1).any(1).nonzero()[0])
            raise NotFiniteError(
                "not finite: no super weight can be located",
                f"NaN or infinity in the residual stream after layer {layer}",
                "load the model in bfloat16 or float32; if it stays, the checkpoint itself holds NaN",
            )
        self.median = median_of(inner)
        self.bar = max(rules.above_median * self.median, rules.below_peak * self.loudest)
        self.activations = spikes(residual, self.bar, rules)
        self.taken: dict[SuperWeight, float] = {}
        self.turned_down: set[SuperWeight] = set()
        self.rounds: list[Round] = []

    def run(self, seeds: tuple[SuperWeight, ...]) -> None:
        look, left = self.first, self.activations
        for number in range(self.rules.rounds):
            found, remarks = self._decide(look.sight, left)
            if number == 0:
                read, doubts = self._read(seeds)
                found = {**read, **found}
                remarks += doubts + self._passed_over()
            self.rounds.append(Round(_peaks(look.sight), tuple(found), tuple(remarks)))
            if not found:
                return
            before = _sizes(look.residual, left)
            look, still_left = self._remove(found)
            self._keep(found, before, _sizes(look.residual, left))
            left = still_left

    def result(self) -> Located:
        order = sorted(self.taken, key=lambda weight: -abs(self.taken[weight]))
        channels = {weight.row for weight in order}
        activations = tuple(spike for spike in self.activations if spike.channel in channels)
        written = tuple(self.taken[weight] for weight in order)
        return Located(tuple(order), written, activations, tuple(self.rounds), self._reason(order, activations))

    def _look(self, ids: torch.Tensor, start: int, kept: Sight | None) -> _Look:
        """One pass, the layers before ``start`` taken from ``kept``; it ends at the last layer, before the logits."""
        # What the last layer gives is no evidence, so that a second look ends before it.
        everything = range(len(self.body.layers) if kept is None else max(1, len(self.body.layers) - 1))
        with ExitStack() as stack:
            sight = stack.enter_context(
                observe(self.model, residual=everything, inputs=everything, outputs=everything, stop=True)
            )
            if kept is None:
                stack.callback(self.body.layers[0].register_forward_hook(self._note_form).remove)
            else:
                stack.enter_context(_resumed(self.body, start, kept.residual, ids.shape[1], in_tuple=self.in_tuple))
            self.model(ids.to(device_of(self.model)), use_cache=False)
        return _Look(sight, torch.stack([sight.residual[layer][0] for layer in everything]).float().cpu())

    def _note_form(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        self.in_tuple = isinstance(output, tuple)

    def _decide(self, sight: Sight, left: Sequence[SuperActivation]) -> tuple[dict[SuperWeight, float], list[str]]:
        """The weights of the earliest layer that writes one of the spikes that are left, with what each writes."""
        if not left:
            return {}, []
        sources = [self._source(sight, spike) for spike in left]
        layers = [weight.layer for found, _ in sources for weight in found]
        remarks = [remark for _, remark in sources if remark]
        return {w: value for found, _ in sources for w, value in found.items() if w.layer == min(layers)}, remarks

    def _source(self, sight: Sight, spike: SuperActivation) -> tuple[dict[SuperWeight, float], str]:
        """The weights behind the earliest writer of one spike that has any; words where there are none."""
        layers = range(min(spike.layer + 1, len(sight.outputs)))
        written = [float(sight.outputs[layer][0, spike.position, spike.channel]) for layer in layers]
        layer = first = earliest_writer(spike, written, self.rules)
        while layer is not None:
            found = self._feeding(sight, spike, layer)
            if found:
                return found, ""
            layer = earliest_writer(spike, written, self.rules, after=layer)
        writer = "down projection" if first is None else f"single weight left in layer {first}"
        return {}, f"channel {spike.channel}: no {writer} writes its {spike.value:+.4g}"

    def _feeding(self, sight: Sight, spike: SuperActivation, layer: int) -> dict[SuperWeight, float]:
        """The single weights that each write a good part of what one down projection adds to the spike.

        With each comes what it writes in the model as it is: a weight that writes only once others are gone is none.
        """
        module, row = self.body.down_projections[layer], spike.channel
        x, before = (look.inputs[layer][0, spike.position] for look in (sight, self.first.sight))
        weight = plain_weight(module)
        strength = (x.float() if weight is None else x.float() * weight[row].float()).abs()
        columns = strength.topk(min(self.rules.inputs, len(x))).indices.tolist()
        total = float(sight.outputs[layer][0, spike.position, row])
        shares = _written(module, x, row, columns) / total
        intact = shares if sight is self.first.sight else _written(module, before, row, columns) / total
        known = self.turned_down.union(self.taken)
        return {
            SuperWeight(layer, row, column, effective_weight(module, row, column)): here * total
            for column, share, here in zip(columns, shares.tolist(), intact.tolist(), strict=True)
            if share >= self.rules.share and here >= self.rules.drop and SuperWeight(layer, row, column) not in known
        }

    def _remove(self, found: dict[SuperWeight, float]) -> tuple[_Look, tuple[SuperActivation, ...]]:
        """Look again without them: from the first edited layer on, at the prefix up to the last spike."""
        gone = (*self.taken, *found)
        end = 1 + max((spike.position for spike in self.activations), default=self.ids.shape[1] - 1)
        start = min(weight.layer for weight in gone)
        first = self.first.sight
        with zeroed(self.model, gone):
            look = self._look(self.ids[:, :end], start, first)
        for layer in range(start):
            look.sight.inputs[layer] = first.inputs[layer][:, :end]
            look.sight.outputs[layer] = first.outputs[layer][:, :end]
        # The last layer was not run, and what it gives would be left out: its predecessor stands in its place.
        residual = torch.cat([look.residual, look.residual[-1:]])
        return look, spikes(residual, self.bar, self.rules, first=self.first.residual)

    def _keep(self, found: dict[SuperWeight, float], before: dict[int, float], after: dict[int, float]) -> None:
        """Keep what took a part of its activation along; turn down what changed nothing."""
        remarks = []
        for weight, value in found.items():
            old, new = before.get(weight.row), after.get(weight.row)
            if old is not None and new is not None and new > (1 - self.rules.drop) * old:
                self.turned_down.add(weight)
                remarks.append(f"{weight}: zeroed, the activation stays at {new:.4g} of {old:.4g}")
            else:
                self.taken[weight] = value
        if remarks:
            last = self.rounds[-1]
            kept = tuple(weight for weight in last.found if weight in self.taken)
            self.rounds[-1] = replace(last, found=kept, remarks=(*last.remarks, *remarks))

    def _read(self, seeds: tuple[SuperWeight, ...]) -> tuple[dict[SuperWeight, float], list[str]]:
        """What published coordinates write here, and words for those that do not; refuses a set of which none does."""
        read: dict[SuperWeight, float] = {}
        remarks = []
        for seed in seeds:
            inputs = self.first.sight.inputs[seed.layer][0]
            position = int(inputs[:, seed.column].float().abs().argmax())
            module = self.body.down_projections[seed.layer]
            value = float(contributions(module, inputs[position], seed.row, [seed.column])[0])
            here = effective_weight(module, seed.row, seed.column)
            if abs(value) >= self.rules.below_peak * self.bar and _same_value(seed.value, here):
                read[replace(seed, value=here)] = value
            else:
                remarks.append(f"{seed} is published, but here it is {here:+.4g} and writes {value:+.4g}")
        if seeds and not read:
            raise WrongModelError(
                f"the published super weights of this model, first {seeds[0]}",
                f"none of the {len(seeds)} writes a super activation here; {remarks[0]}",
                "check that the name and the checkpoint belong together; locate without the index: swcheck locate DIR",
            )
        return read, remarks

    def _passed_over(self) -> list[str]:
        """Words for the loudest channels that reach the bar and are no super activation."""
        loud = self.peaks.amax(0)
        loud[[spike.channel for spike in self.activations]] = 0
        remarks = []
        for channel in loud.topk(min(4, len(loud))).indices.tolist():
            if loud[channel] < self.bar or loud[channel] == 0:
                break
            layer = int(self.peaks[:, channel].argmax())
            local = local_layers(self.first.residual[layer : layer + 1, :, channel], self.rules)
            why = "carried by too few layers" if local else "large at many tokens: an outlier feature"
            remarks.append(f"channel {channel} reaches {float(loud[channel]):.4g}: {why}")
        return remarks

    def _reason(self, order: Sequence[SuperWeight], activations: Sequence[SuperActivation]) -> str:
        if order:
            places = ", ".join(
                f"channel {spike.channel} at token {spike.position} ({spike.value:+.4g}, {spike.ratio:.0f} x the median)"
                for spike in activations
            )
            return f"{len(order)} super weight{'s' * (len(order) > 1)} found, writing {places or 'as published'}"
        if len(self.body.layers) < 3:
            count = len(self.body.layers)
            return f"none found: a super activation persists over later layers, and this model has {count} in all"
        remarks = "; ".join(self.rounds[0].remarks[:4])
        times = f"{self.loudest / self.median:.1f} x the median" if self.median else "the median 0"
        return (
            f"none found: the largest value in the residual stream is {self.loudest:.4g}, {times}; a super activation "
            f"has {self.rules.above_median:g} x, persists, and is local to few tokens"
            + (f" ({remarks})" if remarks else "")
        )


@contextmanager
def _resumed(
    body: Anatomy, start: int, residual: dict[int, torch.Tensor], length: int, *, in_tuple: bool
) -> Iterator[None]:
    """Let the model's own pass skip the layers before ``start``: they hand on what they gave before.

    The model still makes its masks and positions itself, so nothing about a layer's signature is assumed. ``in_tuple``
    says whether its layers give the residual stream alone or first in a tuple.
    """

    def handing_on(layer: int) -> Callable[..., Any]:
        def forward(*_args: Any, **_kwargs: Any) -> Any:
            hidden = residual[layer][:, :length]
            return (hidden,) if in_tuple else hidden

        return forward

    with ExitStack() as undo:
        for index in range(start):
            layer = body.layers[index]
            own = vars(layer).get("forward")
            undo.callback(_give_back, layer, own)
            object.__setattr__(layer, "forward", handing_on(index))
        yield


def _give_back(layer: nn.Module, own: Any) -> None:
    if own is None:
        object.__delattr__(layer, "forward")
    else:
        object.__setattr__(layer, "forward", own)


def _written(module: nn.Module, x: torch.Tensor, row: int, columns: Sequence[int]) -> torch.Tensor:
    """As ``contributions``, and without asking a module whose weight is plain to see."""
    weight = plain_weight(module)
    if weight is None:
        return contributions(module, x, row, columns)
    return x[columns].float() * weight[row, columns].float()


def _sizes(residual: torch.Tensor, spikes: Sequence[SuperActivation]) -> dict[int, float]:
    """How large the residual stream gets, with the sign of each spike, at its channel and token while it lasts."""
    series = {spike: residual[spike.layer : spike.last + 1, spike.position, spike.channel] for spike in spikes}
    return {spike.channel: float((values * math.copysign(1, spike.value)).max()) for spike, values in series.items()}


def _peaks(sight: Sight) -> tuple[LayerPeaks, ...]:
    three = (sight.inputs, sight.outputs, sight.residual)
    return tuple(LayerPeaks(layer, *(_peak(seen[layer][0]) for seen in three)) for layer in sorted(sight.residual))


def _peak(tensor: torch.Tensor) -> Peak:
    """The value of largest magnitude of ``(T, C)``; numpy's search takes a tenth of torch's time on a CPU."""
    values: Any = tensor.float().cpu().flatten().numpy()
    place = max(int(values.argmax()), int(values.argmin()), key=lambda place: abs(values[place]))
    return Peak(float(values[place]), *divmod(place, tensor.shape[1]))


def _same_value(published: float | None, here: float) -> bool:
    if published is None:
        return True
    return here * published >= 0 and 0.5 * abs(published) <= abs(here) <= 2.0 * abs(published)


def _prompt_ids(model: nn.Module, tokenizer: Any, prompt: str, token_ids: torch.Tensor | None) -> torch.Tensor:
    if token_ids is None:
        if tokenizer is None:
            raise TextError("a prompt to locate with", "neither tokenizer nor token_ids", "pass one of the two")
        token_ids = torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.int64)
    check_token_ids(token_ids, vocabulary_of(model), shortest=1)
    if len(token_ids) > 1:
        raise TextError("one prompt to locate with, int64 (1, T)", f"{len(token_ids)} rows", "pass token_ids[:1]")
    return token_ids
