"""Where the scalars stand that a model hangs on (section 3.1): always in a down projection, always in an early layer?

Every linear map of every layer is asked, not the down projections alone. Its candidates are the scalars that write most
on the default prompt (|weight| times the largest |input| of its column) and the largest by |weight|. Each is zeroed
alone, and the strongest few together: where several super weights stand in one map each alone may be harmless. What
the next tokens then cost more, in nats, is the damage, at most what guessing costs.

Early is the first third of the layers. The paper's own table 2 is not quite of its opinion: layer 24 of OLMo-7B's 32
(which alone costs x1.2, and hands on what layer 1 wrote) is not early, and layer 10 of Llama-30B's 60 only by this third.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

from swcheck.base.limits import CONTRIBUTING
from swcheck.base.records import Limit, Outcome, Verdict
from swcheck.base.statistics import capped_collapse, standard_error
from swcheck.lens.intervene import scalars_zeroed, zeroed
from swcheck.lens.linear_maps import LinearMap, inputs_of
from swcheck.study.common.chapter import Chapter, Rows
from swcheck.study.common.record import ZEROED, Measurement, Study
from swcheck.study.common.setup import RATIO, Setup, exponential
from swcheck.superweights.measurements.inputs import prompt_ids, vocabulary_size

WINDOWS, LENGTH = 4, 128
STRONGEST: Final = 3
LARGEST: Final = 2
TOGETHER: Final = 4

DAMAGE: Final = "damage, nats"
"""By the map's name as the condition; x is how many scalars are zeroed, the place is written out as the prompt."""

DOWN: Final = "is the down projection"
LAYER: Final = "layer of a super weight"
VALUE: Final = "value of a super weight"
ALONE: Final = "this super weight zeroed alone"

EARLY: Final = Limit(
    None, 1 / 3, "20 of the 21 coordinates of the paper's table 2 stand in the first third of the layers"
)
FAINT: Final = 1e-3
"""Less damage than this is one colour: it is noise of the text."""

Place = tuple[int, int]


def measure(setup: Setup) -> Iterator[Measurement]:
    """The damage of every candidate and every set, map by map; then the located super weights, alone and together."""
    maps, ids = setup.maps(), prompt_ids(setup.subject)
    few = setup.on_fewer(WINDOWS, LENGTH)
    down = setup.subject.anatomy.family.down
    for path in dict.fromkeys(one.path for one in maps):
        yield Measurement(DOWN, float(path == down), path)
    read = {one: x.flatten(0, -2).abs().amax(0) for one, x in inputs_of(setup.model, maps, ids).items()}
    for one in setup.steps(maps, "linear maps"):
        for places in candidates(one.weight, read.get(one)):
            yield damage(few, one, places)
    yield from located(few)


def candidates(weight: torch.Tensor, size: torch.Tensor | None) -> Iterator[tuple[Place, ...]]:
    """The strongest and the largest scalars of a weight ``(out, in)``, each alone, then the strongest together.

    ``size`` is the largest magnitude of each input ``(in,)``; a map that nobody has seen reading is taken as if all
    were alike.
    """
    magnitude = weight.detach().float().abs()
    written = magnitude if size is None else magnitude * size.float()
    strongest = largest_places(written, TOGETHER)
    for place in dict.fromkeys([*strongest[:STRONGEST], *largest_places(magnitude, LARGEST)]):
        yield (place,)
    yield tuple(strongest)


def largest_places(matrix: torch.Tensor, count: int) -> list[Place]:
    """Row and column of the largest entries, largest first."""
    order = matrix.flatten().topk(min(count, matrix.numel())).indices.tolist()
    return [divmod(flat, matrix.shape[1]) for flat in order]


def damage(setup: Setup, one: LinearMap, places: Sequence[Place]) -> Measurement:
    """What zeroing these scalars of a map together costs."""
    with scalars_zeroed(one.weight, places):
        nats = setup.nats()
    return _damage(setup, nats, one.path, places, layer=one.layer)


def _damage(
    setup: Setup, nats: torch.Tensor, condition: str, places: Sequence[Place], *, layer: int | None = None
) -> Measurement:
    error = standard_error(nats - setup.intact())
    return Measurement(
        DAMAGE, capped_collapse(setup.intact(), nats, vocabulary_size(setup.subject)), condition, float(len(places)),
        error if math.isfinite(error) else None, layer, prompt=" ".join(f"[{row}, {column}]" for row, column in places),
    )  # fmt: skip


def located(setup: Setup) -> Iterator[Measurement]:
    """The super weights that were located: where, what value, what each costs alone, and what all cost together."""
    for weight in setup.weights:
        where = f"[{weight.row}, {weight.column}]"
        yield Measurement(LAYER, float(weight.layer), prompt=where)
        if weight.value is not None:
            yield Measurement(VALUE, weight.value, layer=weight.layer, prompt=where)
        with zeroed(setup.model, [weight]):
            difference = setup.nats() - setup.intact()
        ratio = exponential(float(difference.mean()))
        error = standard_error(difference) * ratio
        yield Measurement(
            RATIO, ratio, ALONE, error=error if math.isfinite(error) else None, layer=weight.layer, prompt=where
        )
    with setup.without():
        nats = setup.nats()
    yield _damage(setup, nats, ZEROED, [(weight.row, weight.column) for weight in setup.weights])


def asked(study: Study) -> tuple[Measurement, ...]:
    """The damages of all candidates, worst first; what is no number comes first of all."""
    found = [one for one in study.select(DAMAGE) if one.layer is not None]
    return tuple(sorted(found, key=lambda one: one.value if math.isfinite(one.value) else math.inf, reverse=True))


def paths(study: Study) -> tuple[str, ...]:
    """The names of the linear maps of a layer."""
    return study.conditions(DOWN)


def layers(study: Study) -> range:
    """The layers that were asked."""
    return range(1 + max((one.layer for one in asked(study) if one.layer is not None), default=-1))


def worst(study: Study, layer: int, path: str) -> Measurement | None:
    """The worst damage in one map, None where it was not asked."""
    return next((one for one in asked(study) if (one.layer, one.condition) == (layer, path)), None)


def table(study: Study) -> Rows:
    """The map: one row a layer, one column a linear map, the worst damage in nats and how many scalars did it."""
    rows = [["nats", *paths(study)]]
    for layer in layers(study):
        found = [worst(study, layer, path) for path in paths(study)]
        rows.append([f"layer {layer}", *("" if one is None else f"{one.value:+.4f} ({one.x:.0f})" for one in found)])
    return rows


def draw(study: Study, figure: Any) -> None:
    """The map as colours on a logarithmic scale, each cell with its number; the maps of located super weights framed."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    names, found = paths(study), [[worst(study, layer, path) for layer in layers(study)] for path in paths(study)]
    values = [[math.nan if one is None else max(one.value, FAINT) for one in row] for row in found]
    axes = figure.subplots()
    axes.grid(visible=False)
    if not found:
        axes.set_title("no linear map keeps a plain weight", fontsize=8)
        return
    top = max((one.value for one in asked(study)), default=1.0)
    image = axes.imshow(values, norm=LogNorm(FAINT, max(top, 10 * FAINT)), cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("layer")
    axes.set_xticks(layers(study), [str(layer) for layer in layers(study)])
    size = 9 if len(layers(study)) <= 10 else 5
    for line, row in enumerate(found):
        for layer, one in enumerate(row):
            if one is not None:
                dark = one.value < math.sqrt(FAINT * top)
                words = f"{one.value:.2g}" if one.value >= FAINT else f"<{FAINT:g}"
                axes.text(layer, line, words, ha="center", va="center", fontsize=size, color="w" if dark else "k")
    down = [name for name in names if study.value(DOWN, name)]
    for layer in {int(one.value) for one in study.select(LAYER)} if down else ():
        corner = layer - 0.5, names.index(down[0]) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5))
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("worst damage, nats per token")
    axes.set_title("by one scalar or a few; framed where the located super weights stand", fontsize=8)


def judge(study: Study) -> tuple[Verdict, ...]:
    """The most damaging scalar or set of any linear map stands in a down projection of an early layer."""
    ranked = asked(study)
    if not ranked:
        words = "no linear map keeps a plain weight: no scalar of one can be zeroed"
        return (Verdict("paper: where", study.model, Outcome.NOT_APPLICABLE, words),)
    first = ranked[0]
    words = f"of {len(ranked)} candidates the worst: {_said(first)}"
    others = [one for one in ranked if (one.layer, one.condition) != (first.layer, first.condition)]
    words += f"; of all other maps: {_said(others[0])}" if others else ""
    if first.value < math.log(CONTRIBUTING):
        words += f": nothing reaches x{CONTRIBUTING:g}, the model hangs on no few scalars of one map"
        return (Verdict("paper: where", study.model, Outcome.NOT_APPLICABLE, words),)
    depth = (first.layer or 0) / len(layers(study)) if math.isfinite(first.value) else math.nan
    down = study.value(DOWN, first.condition) == 1.0
    passed = down and EARLY.holds(depth)
    cause = "" if passed else f"a counter-example: the worst is {_said(first)}"
    if not passed:
        cause += ", no down projection" if not down else ", no early layer"
    outcome = Outcome.PASSED if passed else Outcome.FAILED
    return (Verdict("paper: where", study.model, outcome, words, measured=depth, limit=EARLY, cause=cause),)


def _said(one: Measurement) -> str:
    return f"layer {one.layer} {one.condition} {one.prompt} ({one.value:+.4g} nats)"


CHAPTER: Final = Chapter("where", "Where the damage is", "section 3.1", measure, table, draw, judge)
