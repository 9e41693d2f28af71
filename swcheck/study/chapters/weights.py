"""Round-to-nearest over block sizes and bits (figure 7): plain, and with outliers clipped and super weights kept.

Every linear map of the layers is rounded; embeddings, norms and the head are not. The paper's method is
``RESTORE(Q^-1(Q(CLIP(W))))``: magnitudes are clipped at a threshold of their block, and the super weights get their own
values back. The four rules for a threshold are those of the paper's code: z-score (mean |w| plus z times std |w|), a
share of the block, a share of the tensor, and the interquartile range.

How far to clip is chosen without labels. Of a few thresholds and no clipping at all, each matrix takes the one with the
smallest squared error of its output on the default prompt, an expert's that of the weight itself. The paper minimizes a
reconstruction error on text as well, but takes one z for a whole model on 500 examples.

Paper and code disagree twice, and both readings are measured: the step of the grid (``rounding.Reading``), and a block
of n x n (a square tile in the text, a run of n * n elements in the code). Unless the name of a method says otherwise,
the step is that of the code, and a block is a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from swcheck.base.formatting import format_number
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.lens.linear_maps import Matrix, inputs_of
from swcheck.quantizers.rounding import Block, Reading, clip_iqr, clip_share, clip_z_score, minmax, with_kept
from swcheck.study.common.chapter import Chapter, Rows
from swcheck.study.common.plots import COLOURS, MARKERS, accuracy_axis, measured_tasks, percent_axis
from swcheck.study.common.record import Measurement, Study
from swcheck.study.common.setup import ACCURACY, RATIO, Setup, restored_after
from swcheck.superweights.measurements.inputs import prompt_ids

SIDES: Final = (8, 64, 128, 256, 512, 1024)
"""Blocks hold the square of this many elements; the paper's figure has the last four, its table 6 the first two."""

BITS: Final = (8, 6, 4, 3, 2)
FIGURE_BITS: Final = 4
"""The bits at which block sizes are compared, as in the figure."""

WINDOWS: Final = 16
"""This many windows are enough to tell the methods apart, because the differences are paired."""

KEPT: Final = "super weight, kept share"
NEIGHBOURS: Final = "error of its block, relative"
WHOLE: Final = "whole tensor"


@dataclass(frozen=True)
class ClipRule:
    """One rule for a threshold: its strengths to try, the mildest first, and the function that clips."""

    strengths: tuple[float, ...]
    cut: Callable[[torch.Tensor, float, Block], torch.Tensor]


@dataclass(frozen=True)
class Method:
    """One way to round. With a rule, the weights are clipped first and the super weights kept."""

    name: str
    rule: ClipRule | None = None
    reading: Reading = Reading.CODE
    tiles: bool = False

    @property
    def by_size_condition(self) -> str:
        """The condition of the measurements over block sizes; their ``x`` is the side n of n x n elements."""
        return f"{FIGURE_BITS} bit, {self.name}"

    @property
    def by_bits_condition(self) -> str:
        """The condition of the measurements over bits; their ``x`` is the bits."""
        return f"{WHOLE}, {self.name}"


Z_SCORE: Final = ClipRule((24.0, 16.0, 11.0, 8.0, 6.0, 4.0, 3.0), lambda w, z, block: clip_z_score(w, z, block=block))
BLOCK_SHARE: Final = ClipRule((1e-5, 1e-4, 1e-3, 1e-2), lambda w, share, block: clip_share(w, share, block=block))
TENSOR_SHARE: Final = ClipRule((1e-6, 1e-5, 1e-4, 1e-3), lambda w, share, _block: clip_share(w, share))
QUARTILES: Final = ClipRule((20.0, 12.0, 8.0, 5.0, 3.0), lambda w, times, block: clip_iqr(w, times, block=block))

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
LEAST_ACCURACY_SIDE: Final = 128
"""Zero-shot accuracy is measured from this side on, as in the figure: smaller blocks lose too little to show in it."""

LOSS_LIMIT: Final = Limit(
    None, 1.0, "figure 7: at 512 x 512 Llama-7B keeps 57.9 points instead of 50.5, Mistral-7B 45.3 instead of 36.9"
)


@dataclass(frozen=True)
class Setting:
    """One model to measure: a method, its bits, and the side of its blocks (None is the whole tensor)."""

    method: Method
    bits: int
    side: int | None

    @property
    def block(self) -> Block:
        """The ``block`` argument of the functions in ``rounding``."""
        if self.side is None:
            return None
        return (self.side, self.side) if self.method.tiles else self.side**2


def settings(largest: int) -> Iterator[Setting]:
    """Yield every setting that is measured if the largest matrix has ``largest`` elements."""
    sides = [side for side in SIDES if side**2 < largest]
    for method in METHODS:
        yield from (Setting(method, FIGURE_BITS, side) for side in sides)
        if not method.tiles:
            yield Setting(method, FIGURE_BITS, None)
    for method in OVER_BITS:
        yield from (Setting(method, bits, None) for bits in BITS if bits != FIGURE_BITS)


def measure(setup: Setup) -> Iterator[Measurement]:
    """Yield likelihood in every setting, accuracy for plain and z-score, and how super weights and blocks fare."""
    maps = setup.matrices()
    if not maps:
        return
    setup = setup.on_fewer_windows(WINDOWS)
    setup.note("no labels: each matrix takes the threshold whose output on the default prompt is nearest to its own")
    largest = max(linear.weight.numel() for linear in maps)
    read = inputs_of(setup.model, setup.maps(), prompt_ids(setup.subject))
    inputs = {(linear.layer, linear.path): x.flatten(0, -2) for linear, x in read.items()}
    with restored_after(linear.weight for linear in maps) as saved:
        for setting in setup.steps(list(settings(largest)), "roundings"):
            for linear, original in zip(maps, saved, strict=True):
                places = setup.super_weight_places(linear)
                linear.weight.copy_(rounded(setting, original, places, inputs.get((linear.layer, linear.path))))
            method, x = setting.method, math.sqrt(largest) if setting.side is None else float(setting.side)
            if setting.bits != FIGURE_BITS:
                yield from setup.likelihood(method.by_bits_condition, x=setting.bits)
                continue
            scores = list(setup.likelihood(method.by_size_condition, x=x))
            yield from scores
            if setting.side is None and method in OVER_BITS:
                yield from (
                    replace(score, condition=method.by_bits_condition, x=float(FIGURE_BITS)) for score in scores
                )
            if method in WITH_ACCURACY and (setting.side or LEAST_ACCURACY_SIDE) >= LEAST_ACCURACY_SIDE:
                yield from setup.accuracies(method.by_size_condition, x=x)
            for linear, original in zip(maps, saved, strict=True):
                yield from super_weight_survival(linear, original, setup.super_weight_places(linear), setting, x)


def rounded(
    setting: Setting, weight: torch.Tensor, places: Sequence[tuple[int, int]], inputs: torch.Tensor | None
) -> torch.Tensor:
    """Return ``weight`` rounded; with a rule, clipped for the least output error and with the super weights kept.

    ``inputs`` is ``(T, in)``, or None for a map that the pass did not reach.
    """
    method, block = setting.method, setting.block
    plain = minmax(weight, setting.bits, block=block, reading=method.reading)
    if method.rule is None:
        return plain
    best = with_kept(plain, weight, places)
    least_error = output_error(best - weight, inputs)
    for strength in method.rule.strengths:
        clipped_weight = method.rule.cut(weight, strength, block)
        if torch.equal(clipped_weight, weight):
            continue
        candidate = with_kept(minmax(clipped_weight, setting.bits, block=block, reading=method.reading), weight, places)
        error = output_error(candidate - weight, inputs)
        if error < least_error:
            best, least_error = candidate, error
    return best


def output_error(change: torch.Tensor, inputs: torch.Tensor | None) -> float:
    """Return the squared change of the outputs for these inputs, or of the weight itself without any."""
    output_change = change.float() if inputs is None else inputs.float() @ change.float().T
    return float(output_change.square().sum())


def super_weight_survival(
    linear: Matrix, original: torch.Tensor, places: Sequence[tuple[int, int]], setting: Setting, x: float
) -> Iterator[Measurement]:
    """Yield, for each super weight of a map, the share of its value that is left and the error of its block.

    The error is the norm of the other weights' change over the norm of their values.
    """
    if not places:
        return
    change, size = (linear.weight - original).double(), original.double()
    for place in places:
        change[place] = size[place] = 0
    for row, column in places:
        change_in_block, size_in_block = (block_of(tensor, (row, column), setting.block) for tensor in (change, size))
        kept_share = float(linear.weight[row, column]) / float(original[row, column])
        yield Measurement(KEPT, kept_share, setting.method.by_size_condition, x, layer=linear.layer, channel=row)
        error = float(change_in_block.norm()) / float(size_in_block.norm()) if float(size_in_block.norm()) else math.nan
        yield Measurement(NEIGHBOURS, error, setting.method.by_size_condition, x, layer=linear.layer, channel=row)


def block_of(tensor: torch.Tensor, place: tuple[int, int], block: Block) -> torch.Tensor:
    """Return the block of a matrix that contains ``place``."""
    if block is None:
        return tensor
    if isinstance(block, int):
        first = (place[0] * tensor.shape[1] + place[1]) // block * block
        return tensor.flatten()[first : first + block]
    first_row, first_column = (at // side * side for at, side in zip(place, block, strict=True))
    return tensor[first_row : first_row + block[0], first_column : first_column + block[1]]


def table(study: Study) -> Rows:
    """Return perplexity ratios by method and block size, then by bits; then the super weights' fate, and accuracy."""
    sizes = [point.x for point in study.select(RATIO, PLAIN.by_size_condition)]
    rows = [["", "bits", *(size_label(x, sizes) for x in sizes)]]
    if not sizes:
        return rows
    for method in METHODS:
        cells = [cell_text(study, RATIO, method.by_size_condition, x) for x in sizes]
        rows.append([f"perplexity: {method.name}", str(FIGURE_BITS), *cells])
    for bits in (bits for bits in BITS if bits != FIGURE_BITS):
        for method in OVER_BITS:
            cells = [""] * (len(sizes) - 1) + [cell_text(study, RATIO, method.by_bits_condition, bits)]
            rows.append([f"perplexity: {method.name}", str(bits), *cells])
    for quantity, methods in ((KEPT, (PLAIN, PRINTED)), (NEIGHBOURS, METHODS)):
        for method in methods:
            cells = [cell_text(study, quantity, method.by_size_condition, x) for x in sizes]
            rows.append([f"{quantity}: {method.name}", str(FIGURE_BITS), *cells])
    for task in measured_tasks(study):
        for method in WITH_ACCURACY:
            cells = [cell_text(study, ACCURACY, method.by_size_condition, x, task=task) for x in sizes]
            rows.append([f"{task}: {method.name}", str(FIGURE_BITS), *cells])
    return rows


def cell_text(study: Study, quantity: str, condition: str, x: float | None, *, task: str | None = None) -> str:
    """Return the worst number of one table cell over all super weights; empty if it was not measured."""
    values = [point.value for point in study.select(quantity, condition, x=x, task=task)]
    if not values:
        return ""
    value = min(values) if quantity == KEPT else max(values)
    return f"{value:.3f}" if quantity in {ACCURACY, NEIGHBOURS} else format_number(value, "x")


def size_label(x: float | None, sizes: Sequence[float | None]) -> str:
    """Return a block size in words; the largest is the whole tensor."""
    if x == sizes[-1] or x is None:
        return "tensor"
    return f"{x:g}x{x:g}"


def draw(study: Study, figure: Any) -> None:
    """Draw perplexity over block size at 4 bits and over bits for whole tensors; accuracy if it was measured."""
    tasks = measured_tasks(study)
    panels = figure.subplots(1, 3 if tasks else 2)
    sizes = [point.x for point in study.select(RATIO, PLAIN.by_size_condition)]
    percent_axis(panels[0], f"block of n x n elements ({FIGURE_BITS} bits)")
    percent_axis(panels[1], "bits (whole tensor)")
    panels[1].set_ylabel("")
    for method in METHODS:
        draw_curve(panels[0], in_percent(study.select(RATIO, method.by_size_condition)), method)
    for method in OVER_BITS:
        points = sorted(study.select(RATIO, method.by_bits_condition), key=lambda point: point.x or 0.0)
        draw_curve(panels[1], in_percent(points), method)
    panels[1].set_xticks(sorted(BITS))
    panels[1].invert_xaxis()
    for panel in (panels[0], *panels[2:]):
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [size_label(x, sizes) for x in sizes], rotation=90, fontsize=8)
        panel.minorticks_off()
    for dash, task in zip(("-", "--", ":", "-."), tasks, strict=False):
        for method in WITH_ACCURACY:
            draw_curve(
                panels[2],
                study.select(ACCURACY, method.by_size_condition, task=task),
                method,
                line=dash,
                label=f"{task}, {method.name}",
            )
    if tasks:
        accuracy_axis(panels[2], f"block of n x n elements ({FIGURE_BITS} bits)", study)
        panels[2].legend(fontsize=6, handlelength=4)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7, handlelength=4
    )


def in_percent(points: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """Convert perplexity ratios to the percentage added."""
    return tuple(replace(point, value=100 * (point.value - 1), error=100 * (point.error or 0.0)) for point in points)


def draw_curve(axes: Any, points: Sequence[Measurement], method: Method, *, line: str = "-", label: str = "") -> None:
    """Draw one method as a line with its own marker; square tiles are dashed, in the colour of the runs."""
    place = METHODS.index(method)
    colour = METHODS.index(
        next(other for other in METHODS if (other.rule, other.reading) == (method.rule, method.reading))
    )
    axes.errorbar(
        [point.x for point in points], [point.value for point in points], yerr=[point.error or 0.0 for point in points],
        color=COLOURS[colour], marker=MARKERS[place], linestyle="--" if method.tiles else line, capsize=2,
        label=label or method.name,
    )  # fmt: skip


def judge(study: Study) -> tuple[Verdict, ...]:
    """Judge whether, at the largest block, clipping and keeping loses less than plain rounding, in nats."""
    sizes = [ratio.x for ratio in study.select(RATIO, PLAIN.by_size_condition) if ratio.x is not None]
    if not sizes:
        summary = "no linear map keeps a plain weight: nothing can be rounded"
        return (Verdict("paper: weights", study.model, Outcome.NOT_APPLICABLE, summary),)
    (plain,), (kept,) = (study.select(RATIO, method.by_size_condition, x=max(sizes)) for method in (PLAIN, CLIPPED))
    plain_loss, kept_loss = (math.log(ratio.value) if ratio.value > 0 else math.nan for ratio in (plain, kept))
    noise = 3 * (plain.error or 0.0) / plain.value
    summary = (
        f"{FIGURE_BITS} bits, whole tensor: plain {format_number(plain.value, 'x')}, clipped by z-score with the super weights kept "
        f"{format_number(kept.value, 'x')}"
    )
    if plain_loss <= noise:
        summary += ": plain rounding loses nothing that could be saved"
        return (Verdict("paper: weights", study.model, Outcome.NOT_APPLICABLE, summary),)
    share = kept_loss / plain_loss
    passed = share < 1.0
    near = passed and (plain_loss - kept_loss) <= 3 * (kept.error or 0.0) / kept.value
    outcome = Outcome.FAILED if not passed else Outcome.NEAR if near else Outcome.PASSED
    cause = "" if passed else f"clipping and keeping loses {share:.2f} times what plain rounding does"
    return (
        Verdict(
            "paper: weights", study.model, outcome, summary, measured=share, limit=LOSS_LIMIT, unit="x", cause=cause
        ),
    )


CHAPTER: Final = Chapter("weights", "Round-to-nearest over block sizes", "figure 7", measure, table, draw, judge)
