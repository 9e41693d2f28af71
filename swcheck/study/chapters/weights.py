"""Round-to-nearest over block sizes and bits (figure 7): plain, against clipping first and keeping the super weights.

Every linear map of the layers is rounded, no embedding, norm or head. The paper's method is
``RESTORE(Q^-1(Q(CLIP(W))))``: magnitudes are cut at a threshold of their block, and the super weights get their own
values back. Its four rules of a threshold are its code's: z-score (mean |w| plus z times std |w|), a share of the
block, a share of the tensor, and the interquartile range.

How far to cut is chosen without labels, as the paper does it by the error of the reconstruction on text: of a few
thresholds, and no cut at all, each matrix takes the one whose output on the default prompt is nearest to its own in
squares. The paper takes one z for a whole model on 500 examples of text; here it is one per matrix on one prompt.

Paper and code disagree twice, and both readings are measured: the step of the grid (``quantize.Reading``), and what a
block of n x n is (a square tile by the words, a run of n * n elements by the code). The step is the code's, and a block
a run, where the name of a method says nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from swcheck.base.formatting import format_number
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.lens.linear_maps import LinearMap, inputs_of
from swcheck.quantizers.rounding import Block, Reading, clipped, clipped_iqr, clipped_share, keep, minmax
from swcheck.study.common.chapter import Chapter, Rows
from swcheck.study.common.plots import COLOURS, MARKERS, accuracy_axis, by_task, rise_axis
from swcheck.study.common.record import Measurement, Study
from swcheck.study.common.setup import ACCURACY, RATIO, Setup, edited
from swcheck.superweights.measurements.inputs import prompt_ids

SIDES: Final = (8, 64, 128, 256, 512, 1024)
"""Blocks hold the square of these elements; the paper's figure has the last four, its table 6 the first two."""

BITS: Final = (8, 6, 4, 3, 2)
AT: Final = 4
"""The bits at which block sizes are compared, as in the figure."""

WINDOWS: Final = 16
"""As many windows are enough to tell the methods apart: the differences are paired."""

KEPT: Final = "super weight, kept share"
NEIGHBOURS: Final = "error of its block, relative"
WHOLE: Final = "whole tensor"


@dataclass(frozen=True)
class Rule:
    """One way to set a threshold: how far it may lie, the mildest first, and how it cuts."""

    bounds: tuple[float, ...]
    cut: Callable[[torch.Tensor, float, Block], torch.Tensor]


@dataclass(frozen=True)
class Method:
    """One way to round: with a rule the weights are clipped first and the super weights kept."""

    name: str
    rule: Rule | None = None
    reading: Reading = Reading.CODE
    tiles: bool = False

    @property
    def at_four(self) -> str:
        """The condition of the measurements over block sizes; their x is the side n of n x n elements."""
        return f"{AT} bit, {self.name}"

    @property
    def whole(self) -> str:
        """The condition of the measurements over bits; their x is the bits."""
        return f"{WHOLE}, {self.name}"


Z_SCORE: Final = Rule((24.0, 16.0, 11.0, 8.0, 6.0, 4.0, 3.0), lambda w, z, block: clipped(w, z, block=block))
BLOCK_SHARE: Final = Rule((1e-5, 1e-4, 1e-3, 1e-2), lambda w, share, block: clipped_share(w, share, block=block))
TENSOR_SHARE: Final = Rule((1e-6, 1e-5, 1e-4, 1e-3), lambda w, share, _block: clipped_share(w, share))
QUARTILES: Final = Rule((20.0, 12.0, 8.0, 5.0, 3.0), lambda w, times, block: clipped_iqr(w, times, block=block))

PLAIN: Final = Method("plain")
PRINTED: Final = Method("plain, step as printed", reading=Reading.PAPER)
CLIPPED: Final = Method("clipped and kept", Z_SCORE)
METHODS: Final = (
    PLAIN,
    CLIPPED,
    Method("clipped by block share, kept", BLOCK_SHARE),
    Method("clipped by tensor share, kept", TENSOR_SHARE),
    Method("clipped by quartiles, kept", QUARTILES),
    PRINTED,
    Method("plain, square tiles", tiles=True),
    Method("clipped and kept, square tiles", Z_SCORE, tiles=True),
)
OVER_BITS: Final = (PLAIN, CLIPPED, PRINTED)
WITH_ACCURACY: Final = (PLAIN, CLIPPED)
ACCURATE: Final = 128
"""The least side that zero-shot accuracy is measured at, as in the figure: below, nothing is lost that it could see."""

LESS: Final = Limit(
    None, 1.0, "figure 7: at 512 x 512 Llama-7B keeps 57.9 points instead of 50.5, Mistral-7B 45.3 instead of 36.9"
)


@dataclass(frozen=True)
class Setting:
    """One model to measure: a method, its bits, and the side of its blocks; None is the whole tensor."""

    method: Method
    bits: int
    side: int | None

    @property
    def block(self) -> Block:
        """The block as ``quantize`` takes it."""
        if self.side is None:
            return None
        return (self.side, self.side) if self.method.tiles else self.side**2


def settings(largest: int) -> Iterator[Setting]:
    """Every model that is measured, where the largest matrix has so many elements."""
    sides = [side for side in SIDES if side**2 < largest]
    for method in METHODS:
        yield from (Setting(method, AT, side) for side in sides)
        if not method.tiles:
            yield Setting(method, AT, None)
    for method in OVER_BITS:
        yield from (Setting(method, bits, None) for bits in BITS if bits != AT)


def measure(setup: Setup) -> Iterator[Measurement]:
    """Likelihood in every setting, accuracy for plain and z-score; what is left of the super weights, and its price.

    The saved bits of the maps are held meanwhile, and one rounded matrix at a time beside them.
    """
    maps = setup.maps()
    if not maps:
        return
    setup = setup.on_fewer(WINDOWS)
    setup.note("no labels: each matrix takes the threshold whose output on the default prompt is nearest to its own")
    largest = max(one.weight.numel() for one in maps)
    read = {one: x.flatten(0, -2) for one, x in inputs_of(setup.model, maps, prompt_ids(setup.subject)).items()}
    with edited(one.weight for one in maps) as saved:
        for setting in setup.steps(list(settings(largest)), "roundings"):
            for one, old in zip(maps, saved, strict=True):
                one.weight.copy_(rounded(setting, old, setup.places(one), read.get(one)))
            method, x = setting.method, math.sqrt(largest) if setting.side is None else float(setting.side)
            if setting.bits != AT:
                yield from setup.likelihood(method.whole, x=setting.bits)
                continue
            taken = list(setup.likelihood(method.at_four, x=x))
            yield from taken
            if setting.side is None and method in OVER_BITS:
                yield from (replace(one, condition=method.whole, x=float(AT)) for one in taken)
            if method in WITH_ACCURACY and (setting.side or ACCURATE) >= ACCURATE:
                yield from setup.accuracies(method.at_four, x=x)
            for one, old in zip(maps, saved, strict=True):
                yield from survival(one, old, setup.places(one), setting, x)


def rounded(
    setting: Setting, weight: torch.Tensor, places: Sequence[tuple[int, int]], read: torch.Tensor | None
) -> torch.Tensor:
    """``weight`` rounded; with a rule, cut where the output for ``read`` ``(T, in)`` comes nearest, super weights kept.

    A map that nobody has seen reading is taken as if all inputs were alike.
    """
    method, block = setting.method, setting.block
    plain = minmax(weight, setting.bits, block=block, reading=method.reading)
    if method.rule is None:
        return plain
    best = keep(plain, weight, places)
    least = output_error(best - weight, read)
    for bound in method.rule.bounds:
        cut = method.rule.cut(weight, bound, block)
        if torch.equal(cut, weight):
            continue
        kept = keep(minmax(cut, setting.bits, block=block, reading=method.reading), weight, places)
        error = output_error(kept - weight, read)
        if error < least:
            best, least = kept, error
    return best


def output_error(change: torch.Tensor, read: torch.Tensor | None) -> float:
    """How far a change of a weight moves its outputs for these inputs, in squares; of the weight itself without any."""
    moved = change.float() if read is None else read.float() @ change.float().T
    return float(moved.square().sum())


def survival(
    one: LinearMap, old: torch.Tensor, places: Sequence[tuple[int, int]], setting: Setting, x: float
) -> Iterator[Measurement]:
    """For each super weight of a map: the share of its value that is left, and the error of the others of its block.

    The error is the root mean square of what the others moved by, over that of their own size.
    """
    if not places:
        return
    change, size = (one.weight - old).double(), old.double()
    for place in places:
        change[place] = size[place] = 0
    for row, column in places:
        moved, own = (block_of(tensor, (row, column), setting.block) for tensor in (change, size))
        left = float(one.weight[row, column]) / float(old[row, column])
        yield Measurement(KEPT, left, setting.method.at_four, x, layer=one.layer, channel=row)
        error = float(moved.norm()) / float(own.norm()) if float(own.norm()) else math.nan
        yield Measurement(NEIGHBOURS, error, setting.method.at_four, x, layer=one.layer, channel=row)


def block_of(tensor: torch.Tensor, place: tuple[int, int], block: Block) -> torch.Tensor:
    """The block of a matrix that a place belongs to."""
    if block is None:
        return tensor
    if isinstance(block, int):
        first = (place[0] * tensor.shape[1] + place[1]) // block * block
        return tensor.flatten()[first : first + block]
    first_row, first_column = (at // side * side for at, side in zip(place, block, strict=True))
    return tensor[first_row : first_row + block[0], first_column : first_column + block[1]]


def table(study: Study) -> Rows:
    """Perplexity ratios by method and block size, then by bits; then what became of the super weights, and accuracy."""
    sizes = [one.x for one in study.select(RATIO, PLAIN.at_four)]
    rows = [["", "bits", *(size_words(x, sizes) for x in sizes)]]
    if not sizes:
        return rows
    for method in METHODS:
        cells = [cell(study, RATIO, method.at_four, x) for x in sizes]
        rows.append([f"perplexity: {method.name}", str(AT), *cells])
    for bits in (bits for bits in BITS if bits != AT):
        for method in OVER_BITS:
            cells = [""] * (len(sizes) - 1) + [cell(study, RATIO, method.whole, bits)]
            rows.append([f"perplexity: {method.name}", str(bits), *cells])
    for quantity, methods in ((KEPT, (PLAIN, PRINTED)), (NEIGHBOURS, METHODS)):
        for method in methods:
            cells = [cell(study, quantity, method.at_four, x) for x in sizes]
            rows.append([f"{quantity}: {method.name}", str(AT), *cells])
    for task in by_task(study):
        for method in WITH_ACCURACY:
            cells = [cell(study, ACCURACY, method.at_four, x, task=task) for x in sizes]
            rows.append([f"{task}: {method.name}", str(AT), *cells])
    return rows


def cell(study: Study, quantity: str, condition: str, x: float | None, *, task: str | None = None) -> str:
    """The number of one cell, of several super weights the one that lost most; empty where it was not measured."""
    values = [one.value for one in study.select(quantity, condition, x=x, task=task)]
    if not values:
        return ""
    value = min(values) if quantity == KEPT else max(values)
    return f"{value:.3f}" if quantity in {ACCURACY, NEIGHBOURS} else format_number(value, "x")


def size_words(x: float | None, sizes: Sequence[float | None]) -> str:
    """A block size as it is written, the largest as the whole tensor."""
    if x == sizes[-1] or x is None:
        return "tensor"
    return f"{x:g}x{x:g}"


def draw(study: Study, figure: Any) -> None:
    """Perplexity over block size at 4 bits and over bits for whole tensors; accuracy over block size where it is there."""
    tasks = by_task(study)
    panels = figure.subplots(1, 3 if tasks else 2)
    sizes = [one.x for one in study.select(RATIO, PLAIN.at_four)]
    rise_axis(panels[0], f"block of n x n elements ({AT} bits)")
    rise_axis(panels[1], "bits (whole tensor)")
    panels[1].set_ylabel("")
    for method in METHODS:
        curve(panels[0], as_rise(study.select(RATIO, method.at_four)), method)
    for method in OVER_BITS:
        points = sorted(study.select(RATIO, method.whole), key=lambda one: one.x or 0.0)
        curve(panels[1], as_rise(points), method)
    panels[1].set_xticks(sorted(BITS))
    panels[1].invert_xaxis()
    for panel in (panels[0], *panels[2:]):
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [size_words(x, sizes) for x in sizes], rotation=90, fontsize=8)
        panel.minorticks_off()
    for dash, task in zip(("-", "--", ":", "-."), tasks, strict=False):
        for method in WITH_ACCURACY:
            curve(
                panels[2],
                study.select(ACCURACY, method.at_four, task=task),
                method,
                line=dash,
                label=f"{task}, {method.name}",
            )
    if tasks:
        accuracy_axis(panels[2], f"block of n x n elements ({AT} bits)", study)
        panels[2].legend(fontsize=6, handlelength=4)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7, handlelength=4
    )


def as_rise(points: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Perplexity ratios as what is added, in percent."""
    return tuple(replace(one, value=100 * (one.value - 1), error=100 * (one.error or 0.0)) for one in points)


def curve(axes: Any, points: Sequence[Measurement], method: Method, *, line: str = "-", label: str = "") -> None:
    """One method as a line of its own marker, the same in every panel; square tiles dashed, in the colour of the runs."""
    place = METHODS.index(method)
    twin = METHODS.index(next(one for one in METHODS if (one.rule, one.reading) == (method.rule, method.reading)))
    axes.errorbar(
        [one.x for one in points], [one.value for one in points], yerr=[one.error or 0.0 for one in points],
        color=COLOURS[twin], marker=MARKERS[place], linestyle="--" if method.tiles else line, capsize=2,
        label=label or method.name,
    )  # fmt: skip


def judge(study: Study) -> tuple[Verdict, ...]:
    """At the largest block clipping and keeping leaves less of plain rounding's loss, in nats, than all of it."""
    sizes = [one.x for one in study.select(RATIO, PLAIN.at_four) if one.x is not None]
    if not sizes:
        words = "no linear map keeps a plain weight: nothing can be rounded"
        return (Verdict("paper: weights", study.model, Outcome.NOT_APPLICABLE, words),)
    (plain,), (kept,) = (study.select(RATIO, method.at_four, x=max(sizes)) for method in (PLAIN, CLIPPED))
    lost, left = (math.log(one.value) if one.value > 0 else math.nan for one in (plain, kept))
    noise = 3 * (plain.error or 0.0) / plain.value
    words = (
        f"{AT} bits, whole tensor: plain {format_number(plain.value, 'x')}, clipped by z-score with the super weights kept "
        f"{format_number(kept.value, 'x')}"
    )
    if lost <= noise:
        words += ": plain rounding loses nothing that could be saved"
        return (Verdict("paper: weights", study.model, Outcome.NOT_APPLICABLE, words),)
    share = left / lost
    passed = share < 1.0
    near = passed and (lost - left) <= 3 * (kept.error or 0.0) / kept.value
    outcome = Outcome.FAILED if not passed else Outcome.NEAR if near else Outcome.PASSED
    cause = "" if passed else f"clipping and keeping loses {share:.2f} times what plain rounding does"
    return (Verdict("paper: weights", study.model, outcome, words, measured=share, limit=LESS, unit="x", cause=cause),)


CHAPTER: Final = Chapter("weights", "Round-to-nearest over block sizes", "figure 7", measure, table, draw, judge)
