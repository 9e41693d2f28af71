"""Where the scalars stand that a model depends on (section 3.1): always in a down projection of an early layer?

Every linear map of every layer is tested, not only down projections. The candidates of a map are the scalars that write
most on the default prompt (|weight| times the largest |input| of its column) and those of largest |weight|. Each is
zeroed alone, then the strongest few together, because several super weights of one map may each be harmless alone. The
damage is the rise of the next-token loss in nats, at most up to the loss of guessing.

Early means the first third of the layers. The paper's own table 2 does not quite agree: layer 24 of OLMo-7B's 32 (which
alone costs x1.2, and passes on what layer 1 wrote) is not early, and layer 10 of Llama-30B's 60 is early only by this
definition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch

from swcheck.base.limits import CONTRIBUTING
from swcheck.base.records import Limit, Outcome, SuperWeight, Verdict
from swcheck.base.statistics import capped_collapse, standard_error
from swcheck.lens.experts import largest_expert_inputs
from swcheck.lens.intervene import scalars_zeroed, zeroed
from swcheck.lens.linear_maps import Matrix, inputs_of
from swcheck.study.common.chapter import Chapter, Rows
from swcheck.study.common.record import ZEROED, Measurement, Study
from swcheck.study.common.setup import RATIO, Setup, exp_or_inf
from swcheck.superweights.measurements.inputs import prompt_ids, vocabulary_size

WINDOWS, LENGTH = 4, 128
STRONGEST: Final = 3
"""How many scalars with the largest contribution are zeroed alone in each map."""
LARGEST: Final = 2
"""How many scalars with the largest magnitude are zeroed alone in each map."""
TOGETHER: Final = 4
"""How many scalars with the largest contribution are zeroed together in each map."""

DAMAGE: Final = "damage, nats"
"""``condition`` is the path of the map, ``x`` how many scalars are zeroed, ``prompt`` their places in words."""

DOWN: Final = "is the down projection"
LAYER: Final = "layer of a super weight"
VALUE: Final = "value of a super weight"
ALONE: Final = "this super weight zeroed alone"

EARLY_LIMIT: Final = Limit(
    None, 1 / 3, "20 of the 21 coordinates of the paper's table 2 stand in the first third of the layers"
)
SMALLEST_SHOWN: Final = 1e-3
"""Smaller damage has one colour: it is noise of the text."""

Place = tuple[int, int]


def measure(setup: Setup) -> Iterator[Measurement]:
    """Yield the damage of every candidate and set, map by map; then of the located super weights."""
    maps, fewer = tested_maps(setup), setup.on_fewer_windows(WINDOWS, LENGTH)
    down_paths = {matrix.kind for one in maps for matrix in one.matrices if matrix.down is not None}
    for path in dict.fromkeys(one.path for one in maps):
        yield Measurement(DOWN, float(path in down_paths), path)
    for one in setup.steps(maps, "linear maps"):
        for places in candidates(one.stacked(), one.largest_inputs):
            yield damage(fewer, one, places)
    yield from located_super_weights(fewer)


@dataclass(frozen=True)
class TestedMap:
    """The matrices that are tested as one linear map: one, or those of the same kind of all experts of a layer.

    ``largest_inputs`` is the largest magnitude of each input, ``(in,)``, of experts ``(experts * out, in)``; None where
    it is not known.
    """

    layer: int
    path: str
    matrices: tuple[Matrix, ...]
    largest_inputs: torch.Tensor | None

    def stacked(self) -> torch.Tensor:
        """Return the matrices below each other, ``(experts * out, in)``; a single one itself."""
        weights = [matrix.weight for matrix in self.matrices]
        return weights[0] if len(weights) == 1 else torch.cat(weights)

    def place(self, row: int) -> tuple[int, int]:
        """Return the number of the matrix that holds a row of ``stacked``, and the row in it."""
        return divmod(row, self.matrices[0].weight.shape[0])

    def words(self, place: Place) -> str:
        """Return a place in words, with the expert where there are several."""
        number, row = self.place(place[0])
        return f"expert {number} [{row}, {place[1]}]" if len(self.matrices) > 1 else f"[{row}, {place[1]}]"


def tested_maps(setup: Setup) -> list[TestedMap]:
    """Return the linear maps of all layers, with what they read on the default prompt."""
    body, ids = setup.subject.anatomy, prompt_ids(setup.subject)
    linear_inputs = {
        (linear.layer, linear.path): x.flatten(0, -2).float().abs().amax(0)
        for linear, x in inputs_of(setup.model, setup.maps(), ids).items()
    }
    expert_inputs = largest_expert_inputs(setup.model, body, ids)

    def read_by(matrix: Matrix) -> torch.Tensor | None:
        if matrix.down is not None and matrix.down in expert_inputs:
            return expert_inputs[matrix.down]
        return linear_inputs.get((matrix.layer, matrix.path))

    groups: dict[tuple[int, str, torch.Size], list[Matrix]] = {}
    for matrix in setup.matrices():
        groups.setdefault((matrix.layer, matrix.kind, matrix.weight.shape), []).append(matrix)
    found = []
    for (layer, kind, shape), matrices in groups.items():
        read = [read_by(matrix) for matrix in matrices]
        inputs = read[0]
        if len(matrices) > 1:
            blank = torch.zeros(shape[1]) if any(one is not None for one in read) else torch.ones(shape[1])
            inputs = torch.cat([(blank if one is None else one.cpu()).expand(shape) for one in read])
        found.append(TestedMap(layer, kind, tuple(matrices), inputs))
    return found


def candidates(weight: torch.Tensor, largest_input: torch.Tensor | None) -> Iterator[tuple[Place, ...]]:
    """Yield places to zero in a weight ``(out, in)``: strongest and largest scalars alone, then strongest together.

    ``largest_input`` is the largest magnitude of each input, ``(in,)`` or by row ``(out, in)``; None, for a map that the
    pass did not reach, counts all inputs as equal.
    """
    magnitude = weight.detach().float().abs()
    contribution = magnitude if largest_input is None else magnitude * largest_input.float().to(magnitude.device)
    strongest = largest_places(contribution, TOGETHER)
    for place in dict.fromkeys([*strongest[:STRONGEST], *largest_places(magnitude, LARGEST)]):
        yield (place,)
    yield tuple(strongest)


def largest_places(matrix: torch.Tensor, count: int) -> list[Place]:
    """Return (row, column) of the largest entries, largest first."""
    order = matrix.flatten().topk(min(count, matrix.numel())).indices.tolist()
    return [divmod(flat, matrix.shape[1]) for flat in order]


def damage(setup: Setup, tested: TestedMap, places: Sequence[Place]) -> Measurement:
    """Measure the damage of zeroing these scalars of a map together."""
    with ExitStack() as edits:
        for row, column in places:
            number, row_inside = tested.place(row)
            edits.enter_context(scalars_zeroed(tested.matrices[number].weight, [(row_inside, column)]))
        nats = setup.nats()
    words = " ".join(tested.words(place) for place in places)
    return _damage_measurement(setup, nats, tested.path, len(places), words, layer=tested.layer)


def _damage_measurement(
    setup: Setup, nats: torch.Tensor, condition: str, count: int, words: str, *, layer: int | None = None
) -> Measurement:
    error = standard_error(nats - setup.intact())
    return Measurement(
        DAMAGE, capped_collapse(setup.intact(), nats, vocabulary_size(setup.subject)), condition, float(count),
        error if math.isfinite(error) else None, layer, prompt=words,
    )  # fmt: skip


def located_super_weights(setup: Setup) -> Iterator[Measurement]:
    """Yield place, value and cost of each located super weight, and what all of them together cost."""
    for weight in setup.weights:
        place = _place_in_words(weight)
        yield Measurement(LAYER, float(weight.layer), prompt=place)
        if weight.value is not None:
            yield Measurement(VALUE, weight.value, layer=weight.layer, prompt=place)
        with zeroed(setup.model, [weight]):
            difference = setup.nats() - setup.intact()
        ratio = exp_or_inf(float(difference.mean()))
        error = standard_error(difference) * ratio
        yield Measurement(
            RATIO, ratio, ALONE, error=error if math.isfinite(error) else None, layer=weight.layer, prompt=place
        )
    with setup.super_weights_zeroed():
        nats = setup.nats()
    words = " ".join(_place_in_words(weight) for weight in setup.weights)
    yield _damage_measurement(setup, nats, ZEROED, len(setup.weights), words)


def _place_in_words(weight: SuperWeight) -> str:
    expert = "" if weight.expert is None else f"expert {weight.expert} "
    return f"{expert}[{weight.row}, {weight.column}]"


def ranked_damages(study: Study) -> tuple[Measurement, ...]:
    """Return the damages of all candidates, worst first; a damage that is not finite comes before all others."""
    damages = [point for point in study.select(DAMAGE) if point.layer is not None]
    return tuple(
        sorted(damages, key=lambda point: point.value if math.isfinite(point.value) else math.inf, reverse=True)
    )


def map_names(study: Study) -> tuple[str, ...]:
    """Return the names of the linear maps of a layer."""
    return study.conditions(DOWN)


def tested_layers(study: Study) -> range:
    """Return the layers that were tested."""
    return range(1 + max((point.layer for point in ranked_damages(study) if point.layer is not None), default=-1))


def worst_of(study: Study, layer: int, path: str) -> Measurement | None:
    """Return the worst damage in one map, or None if it was not tested."""
    return next((point for point in ranked_damages(study) if (point.layer, point.condition) == (layer, path)), None)


def table(study: Study) -> Rows:
    """Return one row per layer, one column per linear map: the worst damage in nats and how many scalars did it."""
    rows = [["nats", *map_names(study)]]
    for layer in tested_layers(study):
        worst_of_layer = [worst_of(study, layer, path) for path in map_names(study)]
        rows.append(
            [
                f"layer {layer}",
                *("" if point is None else f"{point.value:+.4f} ({point.x:.0f})" for point in worst_of_layer),
            ]
        )
    return rows


def draw(study: Study, figure: Any) -> None:
    """Draw the damage as colours on a logarithmic scale with numbers; frame maps that hold super weights."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    names, damages = (
        map_names(study),
        [[worst_of(study, layer, path) for layer in tested_layers(study)] for path in map_names(study)],
    )
    values = [[math.nan if point is None else max(point.value, SMALLEST_SHOWN) for point in row] for row in damages]
    axes = figure.subplots()
    axes.grid(visible=False)
    if not damages:
        axes.set_title("no linear map keeps a plain weight", fontsize=8)
        return
    largest = max((point.value for point in ranked_damages(study)), default=1.0)
    image = axes.imshow(
        values, norm=LogNorm(SMALLEST_SHOWN, max(largest, 10 * SMALLEST_SHOWN)), cmap="viridis", aspect="auto"
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("layer")
    axes.set_xticks(tested_layers(study), [str(layer) for layer in tested_layers(study)])
    size = 9 if len(tested_layers(study)) <= 10 else 5
    for map_number, row in enumerate(damages):
        for layer, point in enumerate(row):
            if point is not None:
                dark = point.value < math.sqrt(SMALLEST_SHOWN * largest)
                words = f"{point.value:.2g}" if point.value >= SMALLEST_SHOWN else f"<{SMALLEST_SHOWN:g}"
                axes.text(layer, map_number, words, ha="center", va="center", fontsize=size, color="w" if dark else "k")
    down_names = [name for name in names if study.value(DOWN, name)]
    for layer in {int(point.value) for point in study.select(LAYER)} if down_names else ():
        corner = layer - 0.5, names.index(down_names[0]) - 0.5
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=2.5))
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("worst damage, nats per token")
    axes.set_title("by one scalar or a few; framed where the located super weights stand", fontsize=8)


def judge(study: Study) -> tuple[Verdict, ...]:
    """Judge whether the most damaging scalars of all linear maps stand in a down projection of an early layer."""
    ranked = ranked_damages(study)
    if not ranked:
        summary = "no linear map keeps a plain weight: no scalar of one can be zeroed"
        return (Verdict("paper: where", study.model, Outcome.NOT_APPLICABLE, summary),)
    most_damaging = ranked[0]
    summary = f"of {len(ranked)} candidates the worst: {_described(most_damaging)}"
    elsewhere = [
        point for point in ranked if (point.layer, point.condition) != (most_damaging.layer, most_damaging.condition)
    ]
    summary += f"; of all other maps: {_described(elsewhere[0])}" if elsewhere else ""
    if most_damaging.value < math.log(CONTRIBUTING):
        summary += f": nothing reaches x{CONTRIBUTING:g}, the model hangs on no few scalars of one map"
        return (Verdict("paper: where", study.model, Outcome.NOT_APPLICABLE, summary),)
    depth = (most_damaging.layer or 0) / len(tested_layers(study)) if math.isfinite(most_damaging.value) else math.nan
    down = study.value(DOWN, most_damaging.condition) == 1.0
    passed = down and EARLY_LIMIT.holds(depth)
    cause = "" if passed else f"a counter-example: the worst is {_described(most_damaging)}"
    if not passed:
        cause += ", no down projection" if not down else ", no early layer"
    outcome = Outcome.PASSED if passed else Outcome.FAILED
    return (Verdict("paper: where", study.model, outcome, summary, measured=depth, limit=EARLY_LIMIT, cause=cause),)


def _described(point: Measurement) -> str:
    return f"layer {point.layer} {point.condition} {point.prompt} ({point.value:+.4g} nats)"


CHAPTER: Final = Chapter("where", "Where the damage is", "section 3.1", measure, table, draw, judge)
