"""What was done to a candidate: quantized, fine-tuned or pruned. Each is held to other limits.

A scheme, which a config or an engine gives, decides. Plain floats are told by a sample of both models' matrices: a
rounded run of weights knows few levels and keeps its order, a pruned one has zeros that were not there, a tuned one is
the old one with something added, and loses the order of what was close. Only clear evidence takes a candidate out of the
limits of quantization: where nothing is clear it stays under those of an unknown scheme. All is compared in float16, so
that a baseline says the same as its reference. R runs, N values in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from swcheck.base.records import Scheme
from swcheck.lens.linear_maps import plain_weight
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from swcheck.lens.anatomy import Anatomy

LAYERS: Final = 7
MATRICES: Final = 56
RUNS: Final = 4
LONGEST: Final = 128
"""So many layers are sampled, so many matrices at most, so many runs of so many neighbouring values in each."""

BLOCK: Final = 32
"""Order is looked at in blocks of this size: quantizers that scale smaller ones are known by their scheme."""

FEW_LEVELS: Final = 0.5
"""A run is on a grid if it has half as many different values as values; 4 bits in blocks of 32 leave 0.4."""

NEW_ZEROS: Final = 0.2
"""A share of new zeros that rounding to 3 bits and more does not make, and pruning does."""

DISORDER: Final = 0.02
"""The least share of neighbours in size that change their order for weights to be tuned; rounding changes none."""

MOST: Final = 0.8
"""The share of sampled layers in which that has to be seen: an edit of one matrix is no training."""

SAME: Final = 0.9
"""The least correlation with the reference's values: what was tuned is still like what it was."""


@dataclass(frozen=True)
class WeightSample:
    """A sample of a model's plain matrices: their names (layer.path) and shapes, and float16 runs ``(R, N)`` of each."""

    layers: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    runs: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Kind:
    """What was done: quantized, finetuned or pruned, and how that is known; ``sure`` where somebody said so."""

    name: str
    why: str
    sure: bool = True


def kind_of(candidate: Subject, reference: Subject) -> Kind:
    """Return what was done to the candidate: what the user said, else what its scheme or its weights show."""
    asked, scheme = candidate.kind, candidate.scheme
    if asked in {"finetuned", "pruned"}:
        return Kind(asked, "--swcheck-kind says so")
    if scheme is not None:
        return shown_by_scheme(scheme)
    if asked == "auto":
        return shown_by_weights(weight_sample(candidate), weight_sample(reference))
    return Kind("quantized", "nothing says how: held to the limits of an unknown scheme")


@measurement("sketch", Cost.WEIGHTS, of_weights=True)
def weight_sample(subject: Subject) -> WeightSample:
    """Return the sample of a subject's matrices."""
    return sampled(subject.anatomy)


def sampled(body: Anatomy) -> WeightSample:
    """Sample the plain matrices of evenly spaced layers; packed ones are left out."""
    found = list(_sampled_matrices(body))[:MATRICES]
    runs = tuple(_runs(weight) for _, weight in found)
    shapes = tuple(tuple(weight.shape) for _, weight in found)
    return WeightSample(len(body.layers), tuple(name for name, _ in found), shapes, runs)


def _sampled_matrices(body: Anatomy) -> Iterator[tuple[str, torch.Tensor]]:
    count = len(body.layers)
    for number in sorted({round(i * (count - 1) / max(1, LAYERS - 1)) for i in range(LAYERS)}):
        for path, module in body.layers[number].named_modules():
            weight = plain_weight(module)
            if weight is not None:
                yield f"{number}.{path}", weight


def _runs(weight: torch.Tensor) -> torch.Tensor:
    rows, width = weight.shape[0], min(LONGEST, weight.shape[1])
    chosen = sorted({round(i * (rows - 1) / max(1, RUNS - 1)) for i in range(RUNS)})
    return weight[chosen, :width].to("cpu", torch.float16)


def shown_by_scheme(scheme: Scheme) -> Kind:
    """The kind that a config or an engine gives away."""
    if scheme.method in {"pruned", "finetuned"}:
        return Kind(scheme.method, "its engine says so")
    if scheme.weight_bits >= 16 and scheme.method != "float":
        return Kind("finetuned", f"an adapter ({scheme.method})")
    return Kind("quantized", f"its config or engine says so ({scheme.method}, {scheme.weight_bits:g} bits)")


def shown_by_weights(candidate: WeightSample, reference: WeightSample) -> Kind:
    """The kind that plain weights show, beside those of the reference."""
    if candidate.layers != reference.layers:
        name = "pruned" if candidate.layers < reference.layers else "finetuned"
        return Kind(name, f"{candidate.layers} layers where the reference has {reference.layers}", sure=False)
    there = {name: number for number, name in enumerate(candidate.names)}
    common = [(name, there[name], number) for number, name in enumerate(reference.names) if name in there]
    other = [name for name, one, two in common if candidate.shapes[one] != reference.shapes[two]]
    if other:
        return Kind("pruned", f"{len(other)} of its matrices have another shape, first layers.{other[0]}", sure=False)
    pairs = {name: (candidate.runs[one].half(), reference.runs[two].half()) for name, one, two in common}
    return _judged({name: pair for name, pair in pairs.items() if not torch.equal(*pair)}, pairs)


Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def _judged(changed: Pairs, pairs: Pairs) -> Kind:
    """What the changed matrices show; ``pairs`` are all, candidate's runs first."""
    unknown = "held to the limits of an unknown scheme"
    if not changed:
        words = f"nothing says how it was made, and all that was sampled of {len(pairs)} matrices is the reference's"
        return Kind("quantized", f"{words}; {unknown}", sure=False)
    ours, theirs = ([pair[side] for pair in changed.values()] for side in (0, 1))
    if sum(map(_on_a_grid, ours)) > len(changed) / 2 and not sum(map(_on_a_grid, theirs)) > len(changed) / 2:
        return Kind("quantized", "plain floats that know few levels: rounded to a grid", sure=False)
    needed, sampled = MOST * len(_layers(pairs)), f"of {len(_layers(pairs))} sampled layers"
    thinned = {name: pair for name, pair in changed.items() if NEW_ZEROS <= _zeros(pair[0]) - _zeros(pair[1]) < 1}
    if len(_layers(thinned)) >= needed:
        share = sum(_zeros(ours) for ours, _ in thinned.values()) / len(thinned)
        return Kind("pruned", f"{share:.0%} of its weights are zero in {len(_layers(thinned))} {sampled}", sure=False)
    tuned = {name: pair for name, pair in changed.items() if disorder(*pair) >= DISORDER and _alike(*pair)}
    if len(_layers(tuned)) >= needed:
        words = f"its weights were changed, and not rounded, in {len(_layers(tuned))} {sampled}"
        return Kind("finetuned", words, sure=False)
    words = f"{len(changed)} of {len(pairs)} sampled matrices differ, and not as training does"
    return Kind("quantized", f"{words}; {unknown}", sure=False)


def _layers(pairs: Pairs) -> set[str]:
    return {name.partition(".")[0] for name in pairs}


def _on_a_grid(runs: torch.Tensor) -> bool:
    """Whether most runs have few levels for their number of values, zeros left out."""
    found = []
    for run in runs:
        values = run[run != 0]
        found.append(len(values) > 1 and len(values.unique()) <= FEW_LEVELS * len(values))
    return sum(found) > len(found) / 2


def _zeros(runs: torch.Tensor) -> float:
    return float((runs == 0).float().mean())


def disorder(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The share of neighbours in size, in blocks of the reference's runs, that stand the other way round in ours."""
    swapped = total = 0
    for first in range(0, theirs.shape[1], BLOCK):
        before, order = theirs[:, first : first + BLOCK].float().sort(dim=1)
        after = ours[:, first : first + BLOCK].float().gather(1, order)
        counts = before.diff(dim=1) > 0
        swapped += int(((after.diff(dim=1) < 0) & counts).sum())
        total += int(counts.sum())
    return swapped / max(1, total)


def _alike(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    one, other = ours.flatten().double(), theirs.flatten().double()
    return float((one @ other) / (one.norm() * other.norm()).clamp_min(1e-30)) >= SAME
