"""Finds super weights without data: look, decide, remove, look again, until nothing is left to explain.

After the paper (arXiv 2411.07191, section 3.1), with what follow-ups found wrong repaired. What is looked for is not
the loudest spike but a value in the residual stream that persists over the later layers and stands at few tokens;
its *earliest* writer is followed back to the inner neurons that feed it, several in one layer or one row if need be;
signs are kept; the last layer's output is no evidence (echoes), a writer against the sign of what it writes into is a
canceller, and what vanishes with an earlier weight was only received. The bar is set in the first look and stays.

The decision is ``spikes`` and ``writers``, pure functions of what was seen. T time, H residual width, F inner width,
L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.anatomy import Anatomy, anatomy, device_of
from swcheck.errors import NotFiniteError, TextError, WrongModelError
from swcheck.intervene import zeroed
from swcheck.measure import check_token_ids, evaluating, token_nats, vocabulary_of
from swcheck.observe import Sight, contributions, effective_weight, observe
from swcheck.records import Likelihood, SuperActivation, SuperWeight

if TYPE_CHECKING:
    from torch import nn

PROMPT: Final = (
    "The quick brown fox jumps over the lazy dog. In the beginning there was nothing, and then, rather late on a "
    "Tuesday, somebody wrote the first line of a program that would outlive every one of its authors."
)


@dataclass(frozen=True)
class Rules:
    """What counts. Ratios, never absolute numbers: magnitudes span four orders between families.

    ``above_median`` and ``below_peak`` make the bar (a follow-up's fifth detector, the one with the fewest extras, has
    the same two); ``band`` is how much of its peak a value keeps to count as carried on, ``carried`` the share of the
    later layers that have to; ``tokens`` the share of the prompt that may hold it; ``written`` the least part of the
    peak that a writer adds, ``share`` the least part of a writer's output that one weight explains; ``drop`` the least
    part of the activation that goes when its weights do.
    """

    above_median: float = 50.0
    below_peak: float = 0.1
    band: float = 0.5
    carried: float = 0.5
    tokens: float = 0.25
    written: float = 0.2
    share: float = 0.2
    drop: float = 0.1
    inputs: int = 32
    rounds: int = 8


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
    rules: Rules = Rules(),
) -> Located:
    """Find the super weights of ``model`` in one forward pass and a few short looks at what is left.

    ``prompt`` is encoded as the tokenizer does it; ``token_ids``, int64 ``(1, T)``, take its place. ``seeds`` are
    published coordinates: they are taken first and completed by what is found beside them; ``WrongModelError`` where
    this model does not have them. ``verify``, int64 ``(B, T)``, is scored intact and zeroed. The model is left as it
    was. Raises ``NotFiniteError`` where the pass holds NaN or infinity.
    """
    body = anatomy(model)
    body.check(seeds)
    ids = _prompt_ids(model, tokenizer, prompt, token_ids)
    with evaluating(model):
        search = _Search(model, body, ids, rules)
        search.run(tuple(seeds))
    found = search.result()
    return found if verify is None else replace(found, effect=effect_of(model, found.super_weights, verify))


def effect_of(model: nn.Module, super_weights: Sequence[SuperWeight], token_ids: torch.Tensor) -> Effect:
    """Score ``token_ids`` intact, with all of ``super_weights`` zeroed, and with each of them zeroed alone."""

    def score(removed: Sequence[SuperWeight]) -> Likelihood:
        with zeroed(model, removed):
            nats = token_nats(model, token_ids)
        return Likelihood(float(nats.sum()), nats.numel())

    together = score(super_weights)
    alone = (together,) if len(super_weights) == 1 else tuple(score([weight]) for weight in super_weights)
    return Effect(score(()), together, alone)


def spikes(residual: torch.Tensor, local: torch.Tensor, bar: float, rules: Rules) -> tuple[SuperActivation, ...]:
    """The persistent, local spikes of the residual stream ``(L, T, H)``, strongest first, one per channel.

    ``local`` ``(H,)`` says which channels may carry one, ``bar`` the least magnitude. The last layer's output is left
    out; the layer after the onset has to carry the value too.
    """
    inner = residual[:-1]
    size = inner.abs()
    peaks = size.amax(0)
    strongest, positions = peaks.max(0)
    found = []
    for channel in torch.nonzero((strongest >= bar) & local).flatten().tolist():
        position = int(positions[channel])
        series = size[:, position, channel]
        holds = series >= rules.band * series.max()
        onset = int(holds.nonzero()[0])
        later = holds[onset + 1 :]
        if len(later) and bool(later[0]) and float(later.float().mean()) >= rules.carried:
            last = int(holds.nonzero()[-1])
            value = float(inner[onset, position, channel])
            found.append(SuperActivation(onset, channel, position, value, float(size[onset].median()), last))
    return tuple(sorted(found, key=lambda spike: -abs(spike.value)))


def local_channels(residual: torch.Tensor, rules: Rules) -> torch.Tensor:
    """Which channels ``(H,)`` of the residual stream ``(L, T, H)`` are large at few tokens only.

    A channel that is large everywhere is an outlier feature, not a super activation.
    """
    size = residual[:-1].abs()
    strongest = size.amax(1)
    layer = strongest.argmax(0)
    at_peak = size[layer, :, torch.arange(size.shape[2])]
    holders = (at_peak >= rules.band * at_peak.amax(1, keepdim=True)).sum(1)
    return holders <= max(1, int(rules.tokens * residual.shape[1]))


def earliest_writer(spike: SuperActivation, outputs: torch.Tensor, rules: Rules) -> int | None:
    """The first layer whose down projection adds a good part of the spike, with its sign; None if none does.

    ``outputs`` ``(L, T, H)`` are the down projections'. The earliest, not the largest: a later writer may only echo.
    """
    written = outputs[: spike.layer + 1, spike.position, spike.channel]
    same_sign = written * (1 if spike.value > 0 else -1)
    layers = (same_sign >= rules.written * abs(spike.value)).nonzero().flatten()
    return int(layers[0]) if len(layers) else None


class _Search:
    """The state of one search: what was seen first, what was taken, and the remarks of every round."""

    def __init__(self, model: nn.Module, body: Anatomy, ids: torch.Tensor, rules: Rules) -> None:
        self.model, self.body, self.ids, self.rules = model, body, ids, rules
        self.first = self._look(ids, 0, None)
        residual = _stack(self.first.residual)
        if not torch.isfinite(residual).all():
            layer = int((~torch.isfinite(residual)).flatten(1).any(1).nonzero()[0])
            raise NotFiniteError(
                "a forward pass to locate super weights in",
                f"NaN or infinity in the residual stream after layer {layer}",
                "load the model in bfloat16 or float32; if it stays, the checkpoint itself holds NaN",
            )
        self.local = local_channels(residual, rules)
        self.median = float(residual[:-1].abs().median())
        self.loudest = float(residual[:-1].abs().amax())
        self.bar = max(rules.above_median * self.median, rules.below_peak * self.loudest)
        self.activations = spikes(residual, self.local, self.bar, rules)
        self.taken: dict[SuperWeight, float] = {}
        self.rounds: list[Round] = []

    def run(self, seeds: tuple[SuperWeight, ...]) -> None:
        sight, left = self.first, self.activations
        for number in range(self.rules.rounds):
            found, remarks = self._decide(sight, left)
            if number == 0:
                found = {**self._read(seeds), **found}
                remarks += self._turned_down()
            self.rounds.append(Round(_peaks(sight), tuple(found), tuple(remarks)))
            if not found:
                return
            before = {spike.channel: abs(spike.value) for spike in left}
            sight, left = self._remove(found)
            self._keep(found, before, left)

    def result(self) -> Located:
        order = sorted(self.taken, key=lambda weight: -abs(self.taken[weight]))
        channels = {weight.row for weight in order}
        activations = tuple(spike for spike in self.activations if spike.channel in channels)
        written = tuple(self.taken[weight] for weight in order)
        return Located(tuple(order), written, activations, tuple(self.rounds), self._reason(order, activations))

    def _look(self, ids: torch.Tensor, start: int, kept: Sight | None) -> Sight:
        """One pass, the layers before ``start`` taken from ``kept``; it ends at the last layer, before the logits."""
        everything = range(len(self.body.layers) if kept is None else len(self.body.layers) - 1)
        with ExitStack() as stack:
            sight = stack.enter_context(
                observe(self.model, residual=everything, inputs=everything, outputs=everything, stop=True)
            )
            if kept is not None:
                stack.enter_context(_resumed(self.body, start, kept.residual, ids.shape[1]))
            self.model(ids.to(device_of(self.model)), use_cache=False)
        return sight

    def _decide(self, sight: Sight, left: Sequence[SuperActivation]) -> tuple[dict[SuperWeight, float], list[str]]:
        """The weights behind the earliest writer of the spikes that are left, with what each writes."""
        outputs = _stack(sight.outputs)
        origin = {spike: earliest_writer(spike, outputs, self.rules) for spike in left}
        remarks = [
            f"channel {spike.channel}: no down projection writes its {spike.value:+.4g}"
            for spike, layer in origin.items()
            if layer is None
        ]
        layers = [layer for layer in origin.values() if layer is not None]
        found: dict[SuperWeight, float] = {}
        for spike in left:
            if layers and origin[spike] == min(layers):
                found.update(self._feeding(sight, spike, min(layers)))
        return {weight: value for weight, value in found.items() if weight not in self.taken}, remarks

    def _feeding(self, sight: Sight, spike: SuperActivation, layer: int) -> dict[SuperWeight, float]:
        module = self.body.down_projections[layer]
        x = sight.inputs[layer][0, spike.position]
        columns = x.float().abs().topk(min(self.rules.inputs, len(x))).indices.tolist()
        written = contributions(module, x, spike.channel, columns)
        total = float(sight.outputs[layer][0, spike.position, spike.channel])
        return {
            SuperWeight(layer, spike.channel, column, effective_weight(module, spike.channel, column)): float(value)
            for column, value in zip(columns, written, strict=True)
            if float(value) / total >= self.rules.share
        }

    def _remove(self, found: dict[SuperWeight, float]) -> tuple[Sight, tuple[SuperActivation, ...]]:
        """Look again without them: from the first edited layer on, at the prefix up to the last spike."""
        gone = (*self.taken, *found)
        end = 1 + max((spike.position for spike in self.activations), default=self.ids.shape[1] - 1)
        start = min(weight.layer for weight in gone)
        with zeroed(self.model, gone):
            sight = self._look(self.ids[:, :end], start, self.first)
        for layer in range(start):
            sight.residual[layer] = self.first.residual[layer][:, :end]
            sight.inputs[layer] = self.first.inputs[layer][:, :end]
            sight.outputs[layer] = self.first.outputs[layer][:, :end]
        # The second look ends one layer early, and the last layer is no evidence: repeat its predecessor in its place.
        residual = _stack(sight.residual)
        return sight, spikes(torch.cat([residual, residual[-1:]]), self.local, self.bar, self.rules)

    def _keep(
        self,
        found: dict[SuperWeight, float],
        before: dict[int, float],
        left: Sequence[SuperActivation],
    ) -> None:
        """Keep what took a part of its activation along; turn down what changed nothing."""
        after = {spike.channel: abs(spike.value) for spike in left}
        turned_down = []
        for weight, value in found.items():
            old, new = before.get(weight.row), after.get(weight.row, 0.0)
            if old is not None and new > (1 - self.rules.drop) * old:
                turned_down.append(f"{weight}: zeroed, the activation stays at {new:.4g} of {old:.4g}")
            else:
                self.taken[weight] = value
        if turned_down:
            last = self.rounds[-1]
            kept = tuple(weight for weight in last.found if weight in self.taken)
            self.rounds[-1] = replace(last, found=kept, remarks=(*last.remarks, *turned_down))

    def _read(self, seeds: tuple[SuperWeight, ...]) -> dict[SuperWeight, float]:
        """What published coordinates write here; refuses a set of which none writes anything."""
        read: dict[SuperWeight, float] = {}
        for seed in seeds:
            inputs = self.first.inputs[seed.layer][0]
            position = int(inputs[:, seed.column].float().abs().argmax())
            module = self.body.down_projections[seed.layer]
            value = float(contributions(module, inputs[position], seed.row, [seed.column])[0])
            weight = replace(seed, value=effective_weight(module, seed.row, seed.column))
            if abs(value) >= self.rules.below_peak * self.bar and _same_value(seed.value, weight.value):
                read[weight] = value
        if seeds and not read:
            weight = seeds[0]
            here = effective_weight(self.body.down_projections[weight.layer], weight.row, weight.column)
            raise WrongModelError(
                f"the published super weights of this model, first {weight}",
                f"none of the {len(seeds)} writes a super activation here ({here:+.4g} at the first)",
                "check that the name and the checkpoint belong together; locate without the index: swcheck locate DIR",
            )
        return read

    def _turned_down(self) -> list[str]:
        """Words for the loudest channels that reach the bar and are no super activation."""
        residual = _stack(self.first.residual)
        loud = residual[:-1].abs().amax((0, 1))
        accepted = {spike.channel for spike in self.activations}
        remarks = []
        for channel in loud.topk(min(4, len(loud))).indices.tolist():
            if loud[channel] < self.bar or channel in accepted:
                continue
            why = "carried by too few layers" if self.local[channel] else "large at many tokens: an outlier feature"
            remarks.append(f"channel {channel} reaches {float(loud[channel]):.4g}: {why}")
        return remarks

    def _reason(self, order: Sequence[SuperWeight], activations: Sequence[SuperActivation]) -> str:
        if order:
            places = ", ".join(
                f"channel {spike.channel} at token {spike.position} ({spike.value:+.4g}, {spike.ratio:.0f} x the median)"
                for spike in activations
            )
            return f"{len(order)} super weight{'s' * (len(order) > 1)} found, writing {places or 'as published'}"
        remarks = "; ".join(self.rounds[0].remarks)
        return (
            f"none found: the largest value in the residual stream is {self.loudest:.4g}, "
            f"{self.loudest / self.median:.1f} x the median; a super activation has {self.rules.above_median:g} x, "
            f"persists, and is local to few tokens" + (f" ({remarks})" if remarks else "")
        )


@contextmanager
def _resumed(body: Anatomy, start: int, residual: dict[int, torch.Tensor], length: int) -> Iterator[None]:
    """Let the model's own pass skip the layers before ``start``: they hand on what they gave before.

    The model still makes its masks and positions itself, so nothing about a layer's signature is assumed.
    """

    def handing_on(layer: int) -> Callable[..., Any]:
        def forward(hidden: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
            return residual[layer][:, :length] if layer == start - 1 else hidden

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


def _stack(by_layer: dict[int, torch.Tensor]) -> torch.Tensor:
    """The first sequence of every layer, float32 ``(L, T, C)`` on the CPU."""
    return torch.stack([by_layer[layer][0].float().cpu() for layer in sorted(by_layer)])


def _peaks(sight: Sight) -> tuple[LayerPeaks, ...]:
    return tuple(
        LayerPeaks(layer, _peak(sight.inputs[layer]), _peak(sight.outputs[layer]), _peak(sight.residual[layer]))
        for layer in sorted(sight.residual)
    )


def _peak(tensor: torch.Tensor) -> Peak:
    values = tensor[0].float()
    position, channel = divmod(int(values.abs().argmax()), values.shape[1])
    return Peak(float(values[position, channel]), position, channel)


def _same_value(published: float | None, here: float | None) -> bool:
    return published is None or here is None or 0.5 <= here / published <= 2.0


def _prompt_ids(model: nn.Module, tokenizer: Any, prompt: str, token_ids: torch.Tensor | None) -> torch.Tensor:
    if token_ids is None:
        if tokenizer is None:
            raise TextError("a prompt to locate with", "neither tokenizer nor token_ids", "pass one of the two")
        token_ids = torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.int64)
    check_token_ids(
        torch.cat([token_ids, token_ids], 1) if token_ids.shape[-1] == 1 else token_ids, vocabulary_of(model)
    )
    return token_ids[:1]
