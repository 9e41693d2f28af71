"""Figure 7 on the embedded model: in large blocks clipping and keeping loses less than plain rounding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from swcheck.base.records import Outcome
from swcheck.quantizers.rounding import minmax
from swcheck.study.chapters import weights
from swcheck.study.common.setup import ACCURACY, RATIO, setup_of
from swcheck.study.runner import measure_study
from tests.planted import Packed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(read_setup):
    """The study on two block sizes and two bit widths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "SIDES", (128,))
        patch.setattr(weights, "BITS", (4, 2))
        patch.setattr(weights, "WINDOWS", 4)
        return measure_study(read_setup, "weights")


@pytest.fixture(scope="module")
def whole(study):
    """The size of the largest matrix, at which the claim is judged."""
    return max(one.x for one in study.select(RATIO, weights.PLAIN.by_size_condition))


def test_the_claim_holds_on_the_embedded_model(study, whole):
    """A whole tensor plainly rounded to 4 bits costs a lot; clipped and kept, most of it returns."""
    (verdict,) = weights.judge(study)

    assert verdict.outcome is Outcome.PASSED
    assert verdict.measured < 0.5
    assert study.value(RATIO, weights.PLAIN.by_size_condition, x=whole) > 1.3
    assert study.value(RATIO, weights.PLAIN.by_size_condition, x=128) < study.value(
        RATIO, weights.PLAIN.by_size_condition, x=whole
    )


def test_every_rule_and_both_readings_are_measured(study, whole):
    """Eight methods, each with its error; the formula as printed loses more than the code's, two bits more than four."""
    assert len(study.conditions(RATIO)) == len(weights.METHODS) + len(weights.OVER_BITS)
    assert all(one.error is not None for one in study.select(RATIO))
    for method in weights.METHODS:
        assert study.select(RATIO, method.by_size_condition, x=128)
    assert study.value(RATIO, weights.PRINTED.by_size_condition, x=whole) > study.value(
        RATIO, weights.PLAIN.by_size_condition, x=whole
    )
    for method in weights.OVER_BITS:
        four, two = (study.value(RATIO, method.by_bits_condition, x=bits) for bits in (4.0, 2.0))
        assert two > four == study.value(RATIO, method.by_size_condition, x=whole)


def test_the_extreme_stays_and_its_neighbours_pay(study, whole):
    """Plain rounding keeps the super weight itself; what it loses is the rest of its block, and clipping saves that."""
    for method in (weights.PLAIN, weights.CLIPPED):
        assert study.value(weights.KEPT, method.by_size_condition, x=whole) == pytest.approx(1.0)
    plain, clipped = (
        study.value(weights.NEIGHBOURS, one.by_size_condition, x=whole) for one in (weights.PLAIN, weights.CLIPPED)
    )
    assert plain > 4 * clipped


def test_the_model_is_as_before(study, read_setup):
    """Not one bit of a map differs after the study."""
    assert torch.equal(read_setup.nats(), read_setup.intact())
    assert study.select(ACCURACY, weights.CLIPPED.by_size_condition)


def test_no_cut_is_worse_than_none():
    """The chosen threshold never moves the outputs farther than keeping without clipping does, even where a cut would."""
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    weight[3, 5] = 40.0
    read = torch.zeros(4, 16)
    read[:, 5] = 1.0  # what is read is the outlier's column alone: every cut of another weight is wasted
    setting = weights.Setting(weights.CLIPPED, 4, None)
    kept = minmax(weight, 4)
    kept[3, 5] = weight[3, 5]
    for places in ((), ((3, 5),)):
        chosen = weights.rounded(setting, weight, places, read)
        assert weights.output_error(chosen - weight, read) <= weights.output_error(kept - weight, read)
    assert float(weights.rounded(setting, weight, ((3, 5),), None)[3, 5]) == 40.0


@pytest.mark.parametrize(("block", "shape"), [(None, (6, 8)), (16, (16,)), ((4, 4), (2, 4)), ((4, 5), (2, 3))])
def test_the_block_of_a_place(block, shape):
    """The block of row 5, column 6 is the run or the tile around it, cut off at the edge."""
    tensor = torch.arange(48.0).view(6, 8)
    assert weights.block_of(tensor, (5, 6), block).shape == shape
    assert 46.0 in weights.block_of(tensor, (5, 6), block)


def damaged(study, value, whole):
    """The study with another number for clipping and keeping at the largest block."""
    kept = [
        replace(one, value=value)
        if (one.quantity, one.condition, one.x) == (RATIO, weights.CLIPPED.by_size_condition, whole)
        else one
        for one in study.measurements
    ]
    return replace(study, measurements=tuple(kept))


@pytest.mark.parametrize("value", [5.0, math.nan])
def test_a_model_on_which_clipping_loses_more_is_red(study, whole, value):
    """Where clipping and keeping loses more, or no number is left, the claim fails in words."""
    (verdict,) = weights.judge(damaged(study, value, whole))

    assert verdict.outcome is Outcome.FAILED
    assert "clipping and keeping loses" in verdict.cause


def test_where_nothing_is_lost_nothing_is_claimed(study):
    """A model that plain rounding does not hurt is no place for the claim."""
    unhurt = [replace(one, value=1.0) if one.quantity == RATIO else one for one in study.measurements]
    (verdict,) = weights.judge(replace(study, measurements=tuple(unhurt)))

    assert verdict.outcome is Outcome.NOT_APPLICABLE


def test_packed_maps_are_left_out_with_a_note(tiny):
    """A map that keeps no plain weight stays as it is, and the note says which."""
    setup = setup_of(tiny)
    mlp = setup.model.model.layers[3].mlp
    plain = mlp.up_proj
    mlp.up_proj = Packed(plain)
    try:
        assert len(setup.maps()) == 34
        left = "linear maps without a plain weight, left as they are: 1, first model.layers.3.mlp.up_proj"
        assert setup.notes == [left]
    finally:
        mlp.up_proj = plain


@pytest.mark.parametrize("tasks", [True, False])
def test_the_picture_shows_units(study, tasks):
    """Block sizes, bits, and accuracy where it was measured; each axis says what it is, each method has its line."""
    kept = study.measurements if tasks else tuple(one for one in study.measurements if one.quantity != ACCURACY)
    figure = Figure()
    weights.draw(replace(study, measurements=kept), figure)

    assert len(figure.axes) == (3 if tasks else 2)
    assert all(axes.get_xlabel() for axes in figure.axes)
    assert len(figure.axes[0].containers) == len(weights.METHODS)


def test_the_table_has_every_method(study):
    """Block sizes are columns; every method has its row of perplexity and of its neighbours' error."""
    head, *rows = weights.table(study)

    assert head == ["", "bits", "128x128", "tensor"]
    assert all(len(row) == len(head) for row in rows)
    titles = [row[0] for row in rows]
    assert all(titles.count(f"perplexity: {method.name}") >= 1 for method in weights.METHODS)
    assert "cloze: plain" in titles
