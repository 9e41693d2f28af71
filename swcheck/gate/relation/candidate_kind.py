"""Finds out whether a candidate was quantized, fine-tuned, merged, pruned or distilled, because the limits differ.

A scheme decides, where a config or an engine gives one. For plain floats a sample of both models' matrices decides.
Rounding leaves few distinct values in a run of weights, or at least keeps the order of the values. Pruning adds zeros.
Fine-tuning adds something to every weight, which changes the order of values that are close to each other; a merge of
several fine-tunes is told by the file that mergekit leaves beside it. Only clear
evidence takes a candidate out of the limits of quantization; otherwise it keeps those of an unknown scheme. All values
are compared in float16, so that a baseline gives the same result as its reference.
R runs (parts of matrix rows), N values in each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from swcheck.base.limits import KIND_WORDS
from swcheck.base.reading.bounded import read_bytes
from swcheck.base.records import Scheme
from swcheck.lens.linear_maps import plain_matrices
from swcheck.superweights.measurements.model_sample import model_sample
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost
from swcheck.superweights.subject.subject import Subject

if TYPE_CHECKING:
    from swcheck.lens.architecture.anatomy import Anatomy

LAYERS: Final = 7
"""At most this many layers are sampled."""
MATRICES: Final = 56
"""At most this many matrices are sampled."""
RUNS: Final = 4
"""At most this many rows of a matrix are sampled."""
RUN_LENGTH: Final = 128
"""The first values of a sampled row, at most this many, are one run."""

BLOCK: Final = 32
"""The order of values is compared within blocks of this size. Quantizers with smaller blocks declare their scheme."""

FEW_LEVELS: Final = 0.5
"""A run is on a grid if its distinct values are at most this share of its values; 4 bits in blocks of 32 give 0.4."""

NEW_ZEROS: Final = 0.2
"""A matrix with this share of new zeros was pruned; rounding to 3 bits or more adds fewer."""

PATTERNS: Final = {"2:4": (2, 4), "4:8": (4, 8)}
"""Sparsity that hardware uses: of so many neighbours in a row at most so many are not zero."""

IN_PATTERN: Final = 0.99
"""A matrix has a pattern if this share of its groups has it; rounding may add zeros, and never takes one away."""

MERGE_FILE: Final = "mergekit_config.yml"
LARGEST_MERGE_FILE: Final = 2**20

LEAST_DISORDER: Final = 0.02
"""A matrix was fine-tuned if at least this share of neighbours in size changed their order; rounding changes none."""

LAYER_SHARE: Final = 0.8
"""The evidence has to be seen in this share of the sampled layers: an edit of one matrix is not training."""

LEAST_CORRELATION: Final = 0.9
"""A fine-tuned matrix correlates at least this much with the reference's, because training changes it only a little."""


@dataclass(frozen=True)
class WeightSample:
    """A sample of a model's plain matrices.

    ``layers`` is the number of layers of the model. ``names`` (``layer.path``), ``shapes`` and ``runs``, float16
    ``(R, N)`` on the CPU, have one entry for each matrix.
    """

    layers: int
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    runs: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Kind:
    """What was done to a candidate.

    ``name`` is ``quantized``, ``finetuned``, ``merged``, ``pruned`` or ``distilled``; ``why`` says in words how that is known. ``sure`` is False
    where it was concluded from the weights, and nobody declared it. ``scheme`` is the quantization that the weights
    show where no config gives it, so that a stored copy is held to the limits of the same quantization made here. ``pattern`` is one of ``PATTERNS`` in which it was pruned.
    """

    name: str
    why: str
    sure: bool = True
    scheme: Scheme | None = None
    pattern: str = ""


def kind_of(candidate: Subject, reference: Subject) -> Kind:
    """Return what was done to the candidate: as the user declared, else as its scheme or its weights show.

    The weights are compared only where the declared kind is ``auto`` and there is no scheme.
    """
    asked, scheme = candidate.kind, candidate.scheme
    if asked in KIND_WORDS:
        return Kind(asked, "--swcheck-kind says so")
    if scheme is not None:
        return kind_from_scheme(scheme)
    if candidate.is_runtime:
        return Kind("quantized", "its runtime does not say how: held to the limits of an unknown scheme")
    if asked == "auto":
        return _kind_of_files_or_weights(candidate, reference)
    return Kind("quantized", "nothing says how: held to the limits of an unknown scheme")


def _kind_of_files_or_weights(candidate: Subject, reference: Subject) -> Kind:
    unused = _unused_layers(candidate)
    if unused:
        words = f"its files hold layer {', '.join(map(str, unused))}, which its configuration leaves out"
        return Kind("quantized", f"{words}; held to the limits of an unknown scheme", sure=False)
    merged = merge_words(candidate.source)
    if merged:
        return Kind("merged", merged, sure=False)
    return kind_from_weights(weight_sample(candidate), weight_sample(reference))


def _unused_layers(candidate: Subject) -> tuple[int, ...]:
    """Return the numbers of the decoder layers whose tensors lie in the candidate's files and are not used."""
    if not candidate.unused_tensors:
        return ()
    start, count = f"{candidate.anatomy.path}.", model_sample(candidate).layers
    numbers = (
        name.removeprefix(start).partition(".")[0] for name in candidate.unused_tensors if name.startswith(start)
    )
    return tuple(sorted({int(number) for number in numbers if number.isdecimal() and int(number) >= count}))


@measurement("sketch", Cost.WEIGHTS, of_weights=True)
def weight_sample(subject: Subject) -> WeightSample:
    """Return the sample of a subject's matrices."""
    return sample_weights(subject.anatomy)


def sample_weights(body: Anatomy) -> WeightSample:
    """Sample the plain matrices of evenly spaced layers; packed ones are left out."""
    matrices = list(_sampled_matrices(body))[:MATRICES]
    runs = tuple(_runs(weight) for _, weight in matrices)
    shapes = tuple(tuple(weight.shape) for _, weight in matrices)
    return WeightSample(len(body.layers), tuple(name for name, _ in matrices), shapes, runs)


def _sampled_matrices(body: Anatomy) -> Iterator[tuple[str, torch.Tensor]]:
    count = len(body.layers)
    chosen = sorted({round(i * (count - 1) / max(1, LAYERS - 1)) for i in range(LAYERS)})
    for matrix in plain_matrices(body, chosen):
        yield f"{matrix.layer}.{matrix.path}", matrix.weight


def _runs(weight: torch.Tensor) -> torch.Tensor:
    """Return the beginnings of evenly spaced rows of a matrix, float16 ``(R, N)``."""
    rows, width = weight.shape[0], min(RUN_LENGTH, weight.shape[1])
    chosen = sorted({round(i * (rows - 1) / max(1, RUNS - 1)) for i in range(RUNS)})
    return weight[chosen, :width].to("cpu", torch.float16)


def kind_from_scheme(scheme: Scheme) -> Kind:
    """Return the kind that follows from the scheme of a candidate, which its config or its engine gives."""
    if scheme.method in {"pruned", "finetuned"}:
        return Kind(scheme.method, "its engine says so")
    if scheme.weight_bits >= 16 and scheme.method != "float":
        return Kind("finetuned", f"an adapter ({scheme.method})")
    return Kind("quantized", f"its config or engine says so ({scheme.method}, {scheme.weight_bits:g} bits)")


def kind_from_weights(candidate: WeightSample, reference: WeightSample) -> Kind:
    """Return the kind that follows from a comparison of plain weights with the reference's."""
    if candidate.layers != reference.layers:
        name = "pruned" if candidate.layers < reference.layers else "finetuned"
        count = f"{candidate.layers} layer{'s' * (candidate.layers != 1)}"
        return Kind(name, f"{count} where the reference has {reference.layers}", sure=False)
    numbers = {name: number for number, name in enumerate(candidate.names)}
    common = [(name, numbers[name], number) for number, name in enumerate(reference.names) if name in numbers]
    reshaped = [name for name, ours, theirs in common if candidate.shapes[ours] != reference.shapes[theirs]]
    if reshaped:
        words = f"{len(reshaped)} of its matrices have another shape, first layers.{reshaped[0]}"
        return Kind("pruned", words, sure=False)
    pairs = {name: (candidate.runs[ours].half(), reference.runs[theirs].half()) for name, ours, theirs in common}
    return _kind_of_changes({name: pair for name, pair in pairs.items() if not torch.equal(*pair)}, pairs)


Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""By the name of a matrix, its runs in the candidate and in the reference."""


def _kind_of_changes(changed: Pairs, pairs: Pairs) -> Kind:
    """Return the kind that follows from the matrices that were ``changed``; ``pairs`` are all that were sampled."""
    unknown = "held to the limits of an unknown scheme"
    if not changed:
        words = f"nothing says how it was made, and all that was sampled of {len(pairs)} matrices is the reference's"
        return Kind("quantized", f"{words}; {unknown}", sure=False)
    ours, theirs = ([pair[side] for pair in changed.values()] for side in (0, 1))
    if sum(map(is_on_grid, ours)) > len(changed) / 2 and not sum(map(is_on_grid, theirs)) > len(changed) / 2:
        return _kind_of_grid(changed, pairs)
    needed, sampled = LAYER_SHARE * len(_layers(pairs)), f"of {len(_layers(pairs))} sampled layers"
    sparse = {n: pair for n, pair in changed.items() if NEW_ZEROS <= _zero_share(pair[0]) - _zero_share(pair[1]) < 1}
    if len(_layers(sparse)) >= needed:
        share = sum(_zero_share(ours) for ours, _ in sparse.values()) / len(sparse)
        pattern = next((name for name in PATTERNS if all(has_pattern(ours, name) for ours, _ in sparse.values())), "")
        words = f"{share:.0%} of its weights are zero in {len(_layers(sparse))} {sampled}"
        return Kind("pruned", f"{words}{f', {pattern} sparsity' * bool(pattern)}", sure=False, pattern=pattern)
    tuned = {
        n: pair for n, pair in changed.items() if reversed_share(*pair) >= LEAST_DISORDER and _is_correlated(*pair)
    }
    if len(_layers(tuned)) >= needed:
        words = f"its weights were changed, and not rounded, in {len(_layers(tuned))} {sampled}"
        return Kind("finetuned", words, sure=False)
    words = f"{len(changed)} of {len(pairs)} sampled matrices differ, and not as training does"
    return Kind("quantized", f"{words}; {unknown}", sure=False)


def _kind_of_grid(changed: Pairs, pairs: Pairs) -> Kind:
    """Return the kind of a candidate whose changed matrices are on a grid.

    Its bits are told only if most of all matrices are, in nearly every layer: a few of them are a fault, no scheme.
    """
    on_grid = {name: pair[0] for name, pair in changed.items() if is_on_grid(pair[0])}
    words = "plain floats that know few levels: rounded to a grid"
    layers = {name.partition(".")[0] for name in on_grid}
    if 2 * len(on_grid) <= len(pairs) or len(layers) < LAYER_SHARE * len(_layers(pairs)):
        return Kind("quantized", words, sure=False)
    bits = _bits_of_grid(list(on_grid.values()))
    return Kind("quantized", f"{words} of {bits} bits", sure=False, scheme=Scheme("grid", bits))


def _layers(pairs: Pairs) -> set[str]:
    """Return the numbers of the layers that the matrices are in, as strings."""
    return {name.partition(".")[0] for name in pairs}


def is_on_grid(runs: torch.Tensor) -> bool:
    """Return whether most runs have few distinct values for their number of values, zeros left out."""
    few_levels = []
    for run in runs:
        values = run[run != 0]
        few_levels.append(len(values) > 1 and len(values.unique()) <= FEW_LEVELS * len(values))
    return sum(few_levels) > len(few_levels) / 2


def has_pattern(runs: torch.Tensor, name: str) -> bool:
    """Return whether of each group of neighbours in ``runs`` ``(R, N)`` no more are left than the pattern says."""
    most, width = PATTERNS[name]
    groups = runs[:, : runs.shape[1] // width * width].reshape(-1, width)
    return len(groups) > 0 and float(((groups != 0).sum(1) <= most).float().mean()) >= IN_PATTERN


def merge_words(source: str) -> str:
    """Return in words that a checkpoint is a merge, and by which method, as the file of mergekit says; empty if it is none."""
    file = Path(source or ".") / MERGE_FILE
    if not source or not file.is_file():
        return ""
    text = read_bytes(file, LARGEST_MERGE_FILE, f"merge {file}").decode("utf-8", "replace")
    method = re.search(r"^merge_method:\s*[\"']?([\w-]{1,40})", text, re.MULTILINE)
    return f"mergekit merged it{f' ({method[1]})' if method else ''}, as its {MERGE_FILE} says"


def _bits_of_grid(matrices: Sequence[torch.Tensor]) -> int:
    """Return the bits of a grid from the most distinct values that a block of ``BLOCK`` values has in any run."""
    blocks = (block for runs in matrices for run in runs for block in run.split(BLOCK))
    return max(1, math.ceil(math.log2(max(len(block.unique()) for block in blocks))))


def _zero_share(runs: torch.Tensor) -> float:
    return float((runs == 0).float().mean())


def reversed_share(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the share of neighbours in size whose order is reversed in ``ours``.

    ``ours`` and ``theirs`` are runs ``(R, N)`` of one matrix in the candidate and the reference. Neighbours in size are
    values that follow each other when a block of ``theirs`` is sorted; equal ones do not count.
    """
    swapped = total = 0
    for first in range(0, theirs.shape[1], BLOCK):
        ascending, order = theirs[:, first : first + BLOCK].float().sort(dim=1)
        reordered = ours[:, first : first + BLOCK].float().gather(1, order)
        distinct = ascending.diff(dim=1) > 0
        swapped += int(((reordered.diff(dim=1) < 0) & distinct).sum())
        total += int(distinct.sum())
    return swapped / max(1, total)


def _is_correlated(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    a, b = ours.flatten().double(), theirs.flatten().double()
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-30)) >= LEAST_CORRELATION
