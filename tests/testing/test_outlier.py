"""A quantizer checked without a model: real ones and broken ones, each a small pure function, and the laws they obey."""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swcheck.base.errors import OptionError, RobustnessError
from swcheck.base.records import Outcome
from swcheck.loading import published_index
from swcheck.testing.geometries import COLUMNS, GEOMETRIES, ROWS, SPIKE, SPREAD, Geometry, Outlier
from swcheck.testing.outlier import BLOCK, LOST, assert_outlier_survives
from tests.planted import Packed

SMALL = Geometry("small", (Outlier(3, 40, -100.0), Outlier(5, 200, 80.0)), rows=8, columns=256)


# --- real quantizers: weight (H, F) in, dequantized values out ---------------------------------------------------------


def blocks(weight, size):
    """Blocks of ``size`` along the rows, float32 ``(N, size)``; "row" and "tensor" are sizes too."""
    return weight.reshape(-1, {"row": weight.shape[1], "tensor": weight.numel()}.get(size, size))


def symmetric(weight, bits, size):
    """Absmax rounding; under 8 bits the grid goes one step further down than up, and the scale lies between the two."""
    flat, top = blocks(weight, size), 2 ** (bits - 1) - 1
    step = flat.abs().amax(1, keepdim=True) / (top if bits == 8 else top + 0.5)
    return ((flat / step).round().clamp(-top - 1, top) * step).view_as(weight)


def asymmetric(weight, bits, size):
    """Rounding between the least and the greatest of a block, both of which stay."""
    flat = blocks(weight, size)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    return (((flat - low) / step).round() * step + low).view_as(weight)


def nf4(weight):
    """Sixteen quantiles of a normal distribution, scaled by the largest magnitude of 64."""
    quantile = torch.distributions.Normal(0.0, 1.0).icdf
    up, down = (quantile(torch.linspace(0.9677083, 0.5, size)) for size in (9, 8))
    code = torch.cat([up, -down[:-1]]).sort().values / up[0]
    flat = blocks(weight, 64)
    scale = flat.abs().amax(1, keepdim=True)
    return (code[torch.bucketize(flat / scale, (code[1:] + code[:-1]) / 2)] * scale).view_as(weight)


def fp8(weight):
    """e4m3, one scale per row."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def percentile(weight):
    """4 bits per tensor on a grid that is fitted to all but the largest thousandth."""
    step = weight.abs().flatten().kthvalue(int(0.999 * weight.numel())).values / 7
    return (weight / step).round().clamp(-7, 7) * step


def least_squares(weight, smallest):
    """4 bits per row, the range shrunk, to ``smallest`` at most, to where the squared error of the row is least."""
    best, least = torch.zeros_like(weight), torch.full((len(weight), 1), math.inf)
    for part in torch.linspace(smallest, 1.0, 20):
        step = part * weight.abs().amax(1, keepdim=True) / 7.5
        rounded = (weight / step).round().clamp(-8, 7) * step
        error = (rounded - weight).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, rounded, best), torch.minimum(error, least)
    return best


def z_clip(weight, keep, z=9.0):
    """The paper's weight method: clip at mean + z std of the magnitudes, round to 4 bits, put back what was clipped."""
    size = weight.abs()
    threshold = size.mean() + z * size.std()
    rounded = asymmetric(weight.clamp(-threshold, threshold), 4, "tensor")
    return torch.where(size > threshold, weight, rounded) if keep else rounded


# --- broken ones -------------------------------------------------------------------------------------------------------


def dropped(weight):
    """Takes an outlier for noise."""
    return torch.where(weight.abs() > 8 * SPREAD, 0.0, weight)


def unsigned(weight):
    """Loses the sign bit."""
    return weight.abs()


def tripled(weight):
    """Applies a scale twice."""
    return torch.where(weight.abs() > 8 * SPREAD, 3 * weight, weight)


def overflowing(weight):
    """Keeps an outlier in a float that is too short for it."""
    return torch.where(weight.abs() > 8 * SPREAD, math.inf, weight)


def poisonous(weight):
    """Divides nothing by nothing, far from any outlier."""
    wrong = weight.clone()
    wrong[77, 77] = math.nan
    return wrong


def identity(weight):
    return weight


def largest(verdict):
    """Neighbour errors, with outliers and without, of the largest outliers there are."""
    return verdict.facts["geometries"][-1]["neighbours"]


def ratios(verdict):
    return [ratio for each in verdict.facts["geometries"] for ratio in each["ratios"]]


def first_line(caught):
    return str(caught.value).splitlines()[0]


# --- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantize", "ratio", "there", "bare"),
    [
        (partial(symmetric, bits=8, size="row"), 1.0, 0.646, 0.0074),
        (partial(symmetric, bits=4, size=128), 0.933, 1.0, 0.125),
        (partial(symmetric, bits=3, size=128), 0.857, 1.0, 0.27),
        (partial(asymmetric, bits=4, size=128), 1.0, 2.9, 0.104),
        (partial(least_squares, smallest=0.81), 0.756, 1.0, 0.115),
        (nf4, 1.0, 0.72, 0.092),
        (fp8, 1.0, 0.027, 0.027),
        (partial(z_clip, keep=True), 1.0, 0.685, 0.162),
    ],
    ids=["int8", "int4", "int3", "uint4", "mse-observer", "nf4", "fp8", "z-clip-kept"],
)
def test_the_outlier_survives_and_its_block_pays(quantize, ratio, there, bare):
    """What rounds by the extremes of a block keeps them, as does what puts them back; the rest of the block pays."""
    verdict = assert_outlier_survives(quantize)

    assert verdict.outcome is Outcome.PASSED
    assert verdict.measured == pytest.approx(ratio, abs=0.011)
    assert largest(verdict)["block"] == pytest.approx((there, bare), rel=0.1)


@pytest.mark.parametrize(("size", "row", "matrix"), [("tensor", 0.65, 0.67), ("row", 0.65, 0.085), (128, 0.37, 0.047)])
def test_how_far_the_damage_reaches(size, row, matrix):
    """Absmax int8 costs the outlier's neighbours as far as its scale reaches: the matrix, the row, or the group."""
    verdict = assert_outlier_survives(partial(symmetric, bits=8, size=size))

    assert largest(verdict)["block"][0] == pytest.approx(0.65, abs=0.02)
    assert largest(verdict)["row"][0] == pytest.approx(row, abs=0.02)
    assert largest(verdict)["matrix"][0] == pytest.approx(matrix, abs=0.02)


@pytest.mark.parametrize(
    ("quantize", "fate", "ratio"),
    [
        (partial(symmetric, bits=2, size=128), "is clipped (x0.667)", 0.667),
        (partial(symmetric, bits=2, size="row"), "is clipped (x0.667)", 0.667),
        (percentile, "is clipped (x0.011)", 0.011),
        (partial(least_squares, smallest=0.2), "is clipped (x0.54", 0.54),
        (partial(z_clip, keep=False), "is clipped (x0.055)", 0.055),
        (dropped, "is zeroed (x0.000)", 0.0),
        (unsigned, "has its sign flipped (x-1.000)", -1.0),
        (tripled, "is amplified (x3.000)", 3.0),
        (overflowing, "is not finite", math.nan),
        (poisonous, "is not finite", math.nan),
    ],
    ids=["int2", "int2-row", "percentile", "mse", "z-clip", "dropped", "unsigned", "tripled", "overflow", "poison"],
)
def test_a_lost_outlier_is_red_with_its_fate(quantize, fate, ratio):
    """The worst ratio is measured with its sign, and the first line says what became of which outlier."""
    with pytest.raises(RobustnessError, match="outlier survives") as caught:
        assert_outlier_survives(quantize)

    assert caught.value.verdict.outcome is Outcome.FAILED
    assert caught.value.verdict.measured == pytest.approx(ratio, abs=0.006, nan_ok=True)
    assert re.match(r"outlier \[\d+, \d+\] \(.* sigma\) of .* (is|has) ", first_line(caught))
    assert fate in first_line(caught)


def test_two_bits_lose_a_third_of_what_is_positive():
    """A grid of two bits ends lower above than below: negative outliers grow by a third, positive ones lose one."""
    with pytest.raises(RobustnessError) as caught:
        assert_outlier_survives(partial(symmetric, bits=2, size=128))

    sizes = [one.sigmas for geometry in GEOMETRIES for one in geometry.outliers]
    expected = [2 / 3 if size > 0 else 4 / 3 for size in sizes]
    assert ratios(caught.value.verdict) == pytest.approx(expected, rel=1e-3)


def test_a_message():
    """A red verdict tells the fate, the worst outlier, one row per geometry, the limit with its reason, and a way out."""
    with pytest.raises(RobustnessError) as caught:
        assert_outlier_survives(dropped, geometries=[SMALL])

    zeroed, nothing = "x0.000 at [3, 40] (-100 sigma)", "block 0.0% (0.0%), row 0.0% (0.0%), matrix 0.0% (0.0%)"
    nobody = "most disturbed neighbours: 0.0% off, 0.0% without the outlier, in the block of small"
    assert str(caught.value).splitlines() == [
        "outlier [3, 40] (-100 sigma) of small is zeroed (x0.000): outlier survives of dropped",
        f"  worst of 2 outliers: {zeroed} of small; {nobody}",
        f"  small  {zeroed}; neighbours with it (without): {nothing}",
        "  limit 0.75 .. 2 (alpha 0.75 costs 3 % perplexity, 0.5 up to x8; alpha 2 at most 0.3 points)",
        "  try: scale each block by its largest value, or put the outlier back after rounding",
    ]


def test_neighbours_are_judged_where_they_have_a_limit():
    """What the outlier costs its block is told, and red only where more is allowed to nobody."""
    int8 = partial(symmetric, bits=8, size="row")
    assert_outlier_survives(int8, neighbours=0.7)
    assert_outlier_survives(identity, neighbours=0)

    with pytest.raises(
        RobustnessError, match=r"^outlier of 300-sigma rung ruins its block \(64.6% off, 0.7%"
    ) as caught:
        assert_outlier_survives(int8, neighbours=0.25)

    verdict = caught.value.verdict
    assert (verdict.unit, str(verdict.limit)) == ("relative error", "<= 0.25")
    assert verdict.measured == pytest.approx(0.646 - 0.0074, abs=0.002)
    assert "smaller groups" in str(caught.value)


@pytest.mark.parametrize(("bits", "size"), [(4, "tensor"), (3, "tensor")])
def test_a_quantizer_that_loses_a_whole_matrix_is_red(bits, size):
    """One scale for a whole matrix keeps the outlier and zeroes the rest, which nobody calls quantized; it can be allowed."""
    quantize = partial(symmetric, bits=bits, size=size)
    with pytest.raises(RobustnessError, match=r"^outliers of .* ruin all of their matrix \(\d+.\d% off") as caught:
        assert_outlier_survives(quantize)
    assert caught.value.verdict.measured > LOST
    assert (str(caught.value.verdict.limit), caught.value.verdict.unit) == ("<= 0.99", "relative error")
    assert assert_outlier_survives(quantize, others=None).outcome is Outcome.PASSED
    with pytest.raises(RobustnessError, match="limit <= 0.5 [(]given[)]"):
        assert_outlier_survives(quantize, others=0.5)


@pytest.mark.parametrize("size", [32, 128, "row"])
def test_a_lost_block_or_row_is_ordinary(size):
    """4 bits in groups of 128 zero an outlier's whole group, and such models live: by default that is told, not judged."""
    verdict = assert_outlier_survives(partial(symmetric, bits=4, size=size))
    assert (largest(verdict)["block"][0] > 0.99) == (size != 32)


def test_what_is_bad_without_the_outlier_is_not_its_doing():
    """A quantizer that loses every matrix, outlier or not, is not red for its outliers: that is another check's."""
    verdict = assert_outlier_survives(lambda weight: torch.where(weight.abs() > 8 * SPREAD, weight, 0.0))
    assert largest(verdict)["matrix"] == (1.0, 1.0)


def test_an_outlier_that_is_lost_goes_before_neighbours_that_pay():
    """Where both are red, it is the outlier that is judged."""
    with pytest.raises(RobustnessError, match="is clipped") as caught:
        assert_outlier_survives(partial(symmetric, bits=2, size=128), neighbours=0.1)

    assert caught.value.verdict.unit == "x"


def test_what_is_outside_its_limit_is_named_before_what_is_only_far():
    """x0.85 under a limit of 0.9 is red, though x1.5 is farther from 1 and allowed."""

    def uneven(weight):
        return weight * torch.where(weight < -8 * SPREAD, 0.85, torch.where(weight > 8 * SPREAD, 1.5, 1.0))

    assert_outlier_survives(uneven, geometries=[SMALL])
    with pytest.raises(RobustnessError, match=r"\[3, 40\].* is clipped \(x0.850\)"):
        assert_outlier_survives(uneven, geometries=[SMALL], low=0.9)


def test_one_geometry_is_enough():
    """What breaks at one size only is red, and named by that size."""

    def half_float(weight):
        return weight.clamp(-4, 4)  # 200 sigma

    with pytest.raises(RobustnessError, match=r"^outlier \[0, 0\] \(\+300 sigma\) of 300-sigma rung is clipped"):
        assert_outlier_survives(half_float)


def test_a_verdict_travels():
    """A verdict holds numbers only: it goes to another process and to JSON, one entry per geometry."""
    verdict = assert_outlier_survives(fp8)

    assert pickle.loads(pickle.dumps(verdict)) == verdict
    told = json.loads(json.dumps(verdict.facts))["geometries"]
    assert [each["name"] for each in told] == [geometry.name for geometry in GEOMETRIES]
    assert [len(each["ratios"]) for each in told] == [len(geometry.outliers) for geometry in GEOMETRIES]
    assert [name for name, _ in verdict.detail] == [geometry.name for geometry in GEOMETRIES]


@pytest.mark.parametrize(("quantize", "name"), [(fp8, "fp8"), (partial(z_clip, keep=True), "z_clip"), (nn.Identity(), "Identity")])  # fmt: skip
def test_a_verdict_is_called_after_the_quantizer(quantize, name):
    """Functions, what ``partial`` made of them, and objects give the verdict their name."""
    assert assert_outlier_survives(quantize, geometries=[SMALL]).model == name


def test_a_seed_is_all_the_chance_there_is():
    """The same seed gives the same verdict, another one another; the global generator is not asked."""
    state = torch.get_rng_state()
    one, same, other = (assert_outlier_survives(fp8, geometries=[SMALL], seed=seed) for seed in (1, 1, 2))

    assert one == same != other
    assert torch.equal(torch.get_rng_state(), state)


# --- what may come back ------------------------------------------------------------------------------------------------


def rounded(weight):
    return symmetric(weight, 8, "row")


def linear(weight, *, bias=False, dtype=torch.float32):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias, dtype=dtype)
    layer.weight = nn.Parameter(weight.to(dtype))
    return layer


class Paired(nn.Module):
    """A map that gives a tuple, its result first, as some layers do; it keeps no tensor torch would know of."""

    def __init__(self, weight):
        super().__init__()
        self.kept = [weight]

    def forward(self, x):
        return nn.functional.linear(x, self.kept[0]), None


def quantized_dtype(weight):
    scale = weight.abs().amax(1) / 127
    with warnings.catch_warnings(action="ignore"):
        return torch.quantize_per_channel(weight, scale, torch.zeros(len(weight)), 0, torch.qint8)


@pytest.mark.parametrize(
    ("quantize", "close"),
    [
        (lambda weight: nn.Parameter(rounded(weight)), 1e-6),
        (lambda weight: rounded(weight).double(), 1e-6),
        (lambda weight: rounded(weight).bfloat16(), 0.01),
        (quantized_dtype, 1e-4),
        (lambda weight: linear(rounded(weight)), 1e-4),
        (lambda weight: linear(rounded(weight), bias=True), 1e-4),
        (lambda weight: linear(rounded(weight), dtype=torch.bfloat16), 0.01),
        (lambda weight: Packed(linear(weight)), 1e-4),
        (lambda weight: Paired(rounded(weight)), 1e-4),
        (lambda weight: lambda x: x @ rounded(weight).T, 1e-4),
    ],
    ids=[
        "parameter",
        "double",
        "bfloat16",
        "qint8",
        "linear",
        "bias",
        "bfloat16-linear",
        "packed",
        "tuple",
        "function",
    ],
)
def test_whatever_comes_back_is_measured_alike(quantize, close):
    """One quantizer is judged the same by its values, in any float, as a layer, a packed module or a function."""
    verdict, plain = assert_outlier_survives(quantize), assert_outlier_survives(rounded)

    assert ratios(verdict) == pytest.approx(ratios(plain), rel=close)
    for scope, errors in largest(plain).items():
        assert largest(verdict)[scope] == pytest.approx(errors, rel=close, abs=close)


def test_a_map_is_asked_at_the_spike_it_will_meet():
    """A module with the right weight and a static grid for its inputs loses what the input brings: red."""

    class Static(Paired):
        def forward(self, x):
            return super().forward((x * 4).round().clamp(-128, 127) / 4)

    with pytest.raises(RobustnessError, match=r"Llama-2-7B layer 1 is clipped \(x0.023\)"):
        assert_outlier_survives(Static)


def test_a_map_with_dynamic_inputs_survives():
    """Inputs rounded to 8 bits by the largest of their token keep the spike, and so what the outlier writes."""

    class Dynamic(Paired):
        def forward(self, x):
            step = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
            return super().forward((x / step).round() * step)

    assert assert_outlier_survives(Dynamic).measured == pytest.approx(1.0, abs=0.02)


# --- laws --------------------------------------------------------------------------------------------------------------


@st.composite
def geometries(draw):
    """Up to four outliers anywhere in a small matrix, of any sign and size."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(8, 300))
    place = st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1))
    sizes = st.floats(8, 300) | st.floats(-300, -8)
    spike = draw(st.sampled_from([-SPIKE, SPIKE]))
    places = draw(st.lists(place, min_size=1, max_size=4, unique=True))
    return Geometry("drawn", tuple(Outlier(*place, draw(sizes), spike) for place in places), "", rows, columns)


def facts(quantize, geometry, **limits):
    return assert_outlier_survives(quantize, geometries=[geometry], **limits).facts["geometries"][0]


@given(geometries(), st.integers(0, 99))
def test_nothing_done_is_nothing_lost(geometry, seed):
    """The identity keeps every outlier at exactly 1, and every neighbour without any error."""
    found = facts(identity, geometry, neighbours=0, seed=seed)

    assert set(found["ratios"]) == {1.0}
    assert set(found["neighbours"].values()) == {(0.0, 0.0)}


@given(geometries(), st.sampled_from([2.0**power for power in (-8, -1, 1, 8)]))
def test_the_unit_of_the_weights_is_nothing(geometry, unit):
    """A matrix in another unit gives a quantizer with relative scales the same verdict, number by number."""
    scaled = replace(geometry, spread=geometry.spread * unit)
    for quantize in (rounded, fp8):
        one, other = facts(quantize, geometry), facts(quantize, scaled)
        assert one["ratios"] == pytest.approx(other["ratios"], rel=1e-6)
        assert one["neighbours"]["row"] == pytest.approx(other["neighbours"]["row"], rel=1e-4, abs=1e-6)


@given(geometries(), st.floats(-3, 3).filter(lambda factor: abs(factor) > 0.2))
def test_a_factor_is_the_ratio(geometry, factor):
    """What multiplies all weights has its factor as every ratio, sign included, and leaves the price at nothing."""
    found = facts(lambda weight: weight * factor, geometry, low=-3.1, high=3.1, neighbours=1e-4)

    assert found["ratios"] == pytest.approx([factor] * len(geometry.outliers), rel=1e-4)
    assert found["neighbours"]["matrix"][0] == pytest.approx(abs(factor - 1), rel=1e-3, abs=1e-6)


@given(geometries())
def test_symmetric_rounding_knows_no_sign(geometry):
    """Rounding the negated matrix and negating the result is rounding, for a grid that is the same on both sides."""
    assert facts(rounded, geometry) == facts(lambda weight: -rounded(-weight), geometry)


@given(geometries(), st.floats(0.001, 0.02))
def test_a_fixed_grid_has_no_price(geometry, step):
    """What treats each weight by itself does to the neighbours with an outlier just what it does without."""
    found = facts(lambda weight: (weight / step).round() * step, geometry, neighbours=0)

    assert all(there == bare for there, bare in found["neighbours"].values())


@given(geometries(), st.sampled_from([percentile, dropped, unsigned, partial(symmetric, bits=2, size="row")]))
def test_what_is_put_back_is_there(geometry, quantize):
    """Whatever is done to a matrix, an outlier that is put back afterwards writes what it wrote."""

    def restored(weight):
        return torch.where(weight.abs() > 7.9 * SPREAD, weight, quantize(weight))

    assert facts(restored, geometry)["ratios"] == pytest.approx([1.0] * len(geometry.outliers), rel=1e-3)


# --- geometries --------------------------------------------------------------------------------------------------------


def test_published_geometries_are_those_of_the_index():
    """Every value stands in the index, in that model and layer, at a place that differs by whole matrices only."""
    for geometry in GEOMETRIES[:9]:
        alias, layer = geometry.name.split(" layer ")
        published = {
            (one.row % ROWS, one.column % COLUMNS): one.value
            for one in published_index.entry(alias).coordinates
            if one.layer == int(layer) and one.row is not None and one.column is not None and one.value is not None
        }
        assert {(one.row, one.column) for one in geometry.outliers} <= set(published)
        for one in geometry.outliers:
            assert one.sigmas * SPREAD == pytest.approx(published[one.row, one.column])


def test_geometries_name_their_sources():
    """Each published geometry names sources that the index explains; a rung of the ladder has none."""
    assert all(set(geometry.source.split()) <= set(published_index.sources()) for geometry in GEOMETRIES)
    assert [bool(geometry.source) for geometry in GEOMETRIES] == [True] * 9 + [False] * 4
    assert len({geometry.name for geometry in GEOMETRIES}) == len(GEOMETRIES)


def test_geometries_cover_what_differs():
    """Among them are shared rows, shared columns, both signs, and the first, last and middle place of a group."""
    outliers = [geometry.outliers for geometry in GEOMETRIES]
    assert any(len({one.row for one in some}) < len(some) for some in outliers)
    assert any(len({one.column for one in some}) < len(some) for some in outliers)
    for some in outliers[9:]:
        assert {one.column % BLOCK for one in some} == {0, BLOCK // 2, BLOCK - 1}
        assert {one.sigmas > 0 for one in some} == {True, False}
        assert {one.column for one in some if one.row == some[1].row} == {255, 256}
    assert [some[0].sigmas for some in outliers[9:]] == [10, 30, 100, 300]


def test_a_drawn_matrix():
    """Ordinary weights have the spread that is claimed; outliers and spikes alone differ from what was drawn."""
    ordinary, weight, x = SMALL.draw(0)

    assert (ordinary.dtype, ordinary.shape, x.shape) == (torch.float32, (8, 256), (256,))
    assert float(ordinary.std()) == pytest.approx(SPREAD, rel=0.05)
    assert (weight != ordinary).nonzero().tolist() == [[3, 40], [5, 200]]
    assert (float(weight[3, 40]), float(weight[5, 200])) == pytest.approx((-100 * SPREAD, 80 * SPREAD))
    assert (x.abs() > 10).nonzero().flatten().tolist() == [40, 200]


def test_a_matrix_of_nothing_but_outliers():
    """Where an outlier has no neighbours, none of them is off."""
    alone = Geometry("alone", (Outlier(0, 0, 10.0), Outlier(0, 1, 10.0)), rows=1, columns=2)
    assert facts(rounded, alone)["neighbours"] == {"block": (0, 0), "row": (0, 0), "matrix": (0, 0)}


@pytest.mark.parametrize(
    ("outliers", "more", "words"),
    [
        ((), {}, "no outlier"),
        ((Outlier(8, 0, 9.0),), {"rows": 8}, "an outlier outside"),
        ((Outlier(0, 512, 9.0),), {}, "an outlier outside"),
        ((Outlier(-1, 0, 9.0),), {}, "an outlier outside"),
        ((Outlier(1, 2, 9.0), Outlier(1, 2, -9.0)), {}, "two outliers at one place"),
        ((Outlier(1, 2, 9.0), Outlier(2, 2, 9.0, 100.0)), {}, "two spikes in one column"),
        ((Outlier(1, 2, 0.0),), {}, "under 1, or not finite"),
        ((Outlier(1, 2, math.nan),), {}, "under 1, or not finite"),
        ((Outlier(1, 2, 9.0, math.inf),), {}, "under 1, or not finite"),
        ((Outlier(1, 2, 9.0),), {"spread": -0.02}, "a spread of -0.02"),
        ((Outlier(1, 2, 9.0),), {"spread": math.nan}, "a spread of nan"),
    ],
)
def test_a_geometry_that_could_prove_nothing_is_refused(outliers, more, words):
    """Outliers that are none, lie outside, or contradict each other are worded errors."""
    with pytest.raises(OptionError, match=rf"geometry 'wrong', {more.get('rows', 256)} x 512\n  found: .*{words}"):
        Geometry("wrong", outliers, **more)


# --- what is refused ---------------------------------------------------------------------------------------------------


def written_into(weight):
    return weight.clamp_(-0.1, 0.1)


def written_into_and_silent(weight):
    weight.mul_(0.5)


@pytest.mark.parametrize(
    ("quantize", "found"),
    [
        (None, "it cannot be called"),
        ("int8", "it cannot be called"),
        (lambda _: None, "it returned NoneType"),
        (lambda weight: weight.numpy(), "it returned ndarray"),
        (lambda weight: (weight, 1.0), "it returned tuple"),
        (lambda weight: weight[:, :-1], "it returned torch.float32 (256, 511)"),
        (lambda weight: weight.T, "it returned torch.float32 (512, 256)"),
        (lambda weight: (weight * 100).to(torch.int8), "it returned torch.int8 (256, 512)"),
        (lambda weight: lambda x: x @ weight.T[:, :9], "its map gives torch.float32 (513, 9) for x (513, 512)"),
        (lambda weight: lambda x: (x @ weight.T)[0], "its map gives torch.float32 (256,) for x (513, 512)"),
        (lambda weight: lambda x: x.sum().item(), "its map gives float for x (513, 512)"),
        (written_into, "it wrote into the weight it was given"),
        (written_into_and_silent, "it wrote into the weight it was given"),
        (lambda weight: weight.fill_(math.nan), "it wrote into the weight it was given"),
    ],
)
def test_a_quantizer_that_gives_nothing_to_measure_is_refused(quantize, found):
    """What cannot be called, comes back in another form or shape, or changes its input is a worded error."""
    with pytest.raises(OptionError, match="quantize = ") as caught:
        assert_outlier_survives(quantize)

    assert caught.value.found == found
    assert caught.value.attempt


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"geometries": ()}, "an empty set: nothing would be checked"),
        ({"neighbours": -0.1}, "a price is a relative error"),
        ({"neighbours": math.nan}, "a price is a relative error"),
        ({"neighbours": math.inf}, "a price is a relative error"),
        ({"others": 0.0}, "a relative error is a number above 0"),
        ({"others": math.nan}, "a relative error is a number above 0"),
        ({"low": 3.0}, "an interval that nothing finite is in"),
        ({"high": math.nan}, "an interval that nothing finite is in"),
    ],
)
def test_a_check_that_could_prove_nothing_is_refused(options, words):
    """No geometry, and limits that make no sense, are refused before the quantizer is called."""
    with pytest.raises(OptionError, match=words):
        assert_outlier_survives(pytest.fail, **options)


def test_an_exception_of_the_quantizer_passes():
    """What the quantizer raises is its own exception, with a note on where it happened."""

    def picky(weight):
        if weight.max() > 5:
            raise OverflowError("too large for me")
        return weight

    with pytest.raises(OverflowError, match="^too large for me") as caught:
        assert_outlier_survives(picky)
    assert caught.value.__notes__ == ["  geometry: 300-sigma rung, 256 x 512"]


def test_what_is_not_finite_is_told_once():
    """NaN has no table of NaN under it, and no advice about clipping."""
    with pytest.raises(RobustnessError) as caught:
        assert_outlier_survives(lambda weight: weight / 0 * 0)

    verdict = caught.value.verdict
    assert verdict.cause.endswith("is not finite")
    assert verdict.summary.startswith("NaN or infinity comes back for 13 of 13 matrices: Llama-7B layer 2, ")
    assert (verdict.detail, verdict.attempt) == ((), "look for a scale that is 0, or a division by it")
