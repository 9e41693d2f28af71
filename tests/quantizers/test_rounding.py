"""Round-to-nearest on bare tensors: its laws, by hypothesis, and the numbers of the paper's two formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.errors import OptionError
from swcheck.quantizers.rounding import (
    Reading,
    absmax,
    clip_iqr,
    clip_share,
    clip_z_score,
    minmax,
    row_block,
    with_kept,
    with_largest_kept,
)

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
BITS = st.integers(2, 8)
BLOCKS = st.one_of(st.none(), st.sampled_from([1, 2, 3, 7, 16, 64, 1000]))


@st.composite
def matrices(draw, dtypes=DTYPES):
    """A matrix of ordinary weights with up to three outliers; sometimes constant, sometimes with zeros."""
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    made = torch.randn(rows, columns, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**16)))) * 0.02
    made = made * draw(st.sampled_from([0.0, 1e-3, 1.0, 50.0])) + draw(st.sampled_from([0.0, 0.0, 0.5]))
    for _ in range(draw(st.integers(0, 3))):
        value = draw(st.sampled_from([6.0, -6.0, 0.0, 0.3, 100.0]))
        made[draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))] = value
    return made.to(draw(dtypes))


def blocks_of(weight, block):
    """The blocks of a tensor, each flat, in float64."""
    return weight.double().flatten().split(block or weight.numel())


def rounders(bits):
    """Every way to round, as functions of tensor and block."""
    return [
        lambda w, b: minmax(w, bits, block=b),
        lambda w, b: minmax(w, bits, block=b, reading="paper"),
        lambda w, b: absmax(w, bits, block=b),
    ]


# --- laws --------------------------------------------------------------------------------------------------------------


@given(matrices(), BITS, BLOCKS)
def test_shape_dtype_and_no_trace(weight, bits, block):
    """A new tensor of the same shape and dtype comes back, and the given one is as before."""
    before = weight.clone()
    for rounded in (*(f(weight, block) for f in rounders(bits)), clip_z_score(weight, 3.0, block=block)):
        assert (rounded.shape, rounded.dtype) == (weight.shape, weight.dtype)
        assert rounded.data_ptr() != weight.data_ptr()
        assert torch.equal(weight, before)


@given(matrices(), BITS, BLOCKS)
def test_the_extremes_stay_exact(weight, bits, block):
    """Minimum and maximum of a block come back to the bit; symmetric grids keep the largest magnitude, and zero."""
    asymmetric, paper, symmetric = (f(weight, block) for f in rounders(bits))
    for rounded in (asymmetric, paper):
        for old, new in zip(blocks_of(weight, block), blocks_of(rounded, block), strict=True):
            assert old.min() == new.min()
            assert old.max() == new.max()
            assert new[old.argmax()] == old.max()
    for old, new in zip(blocks_of(weight, block), blocks_of(symmetric, block), strict=True):
        assert new[old.abs().argmax()] == old[old.abs().argmax()]
        assert (new[old == 0] == 0).all()


@given(matrices(), BITS, BLOCKS)
def test_the_error_is_half_a_step(weight, bits, block):
    """No element moves by more than half a step and one rounding to the dtype."""
    steps = [
        lambda part: (part.max() - part.min()) / (2**bits - 1),
        lambda part: (part.max() - part.min()) / (2 ** (bits - 1) - 1),
        lambda part: part.abs().max() / (2 ** (bits - 1) - 1),
    ]
    for f, step in zip(rounders(bits), steps, strict=True):
        for old, new in zip(blocks_of(weight, block), blocks_of(f(weight, block), block), strict=True):
            grid = torch.finfo(weight.dtype)
            slack = grid.eps * old.abs().max() + grid.eps * grid.tiny + 1e-12  # the last term: between subnormals
            assert (old - new).abs().max() <= step(old) / 2 + slack


@given(matrices(), BITS, BLOCKS)
def test_rounding_twice_changes_nothing(weight, bits, block):
    """Values on the grid stay where they are, as far as the dtype can tell them apart."""
    for f in rounders(bits):
        once = f(weight, block)
        twice = f(once, block)
        slack = torch.finfo(weight.dtype).eps * weight.abs().max().double()
        assert ((once.double() - twice.double()).abs() <= slack).all()


@given(matrices(), BITS, BLOCKS)
def test_few_values_are_left(weight, bits, block):
    """A block holds at most as many different values as its grid has codes."""
    counts = (2**bits, 2 ** (bits - 1), 2**bits - 1)
    for f, most in zip(rounders(bits), counts, strict=True):
        assert all(len(part.unique()) <= most for part in blocks_of(f(weight, block), block))


@given(matrices(), BITS)
def test_blocks(weight, bits):
    """A block of all elements is the tensor, a block of a row's length is the row, and blocks do not see each other."""
    for f in rounders(bits):
        assert torch.equal(f(weight, weight.numel()), f(weight, None))
        assert torch.equal(f(weight, 10 * weight.numel()), f(weight, None))
        assert torch.equal(f(weight, row_block(weight)), torch.stack([f(row, None) for row in weight]))
        flat = weight.flatten()
        apart = torch.cat([f(part, None) for part in flat.split(7)])
        assert torch.equal(f(weight, 7).flatten(), apart)


@given(matrices(), st.floats(0, 20), BLOCKS)
def test_clipping(weight, z, block):
    """Magnitudes are cut at mean + z deviations of their block; below it nothing moves, and no sign changes."""
    for old, new in zip(blocks_of(weight, block), blocks_of(clip_z_score(weight, z, block=block), block), strict=True):
        deviation = old.abs().std() if len(old) > 1 else torch.zeros(())
        limit = old.abs().mean() + z * deviation
        kind = torch.finfo(weight.dtype)
        slack = kind.eps * max(old.abs().max(), kind.smallest_normal)  # below it the steps are absolute
        assert (new.abs() <= limit + slack).all()
        inside = old.abs() <= limit - slack
        assert torch.equal(new[inside], old[inside])
        assert (new * old >= 0).all()


@given(matrices(), st.floats(0, 0.5), BLOCKS)
def test_clipping_a_share(weight, share, block):
    """No magnitude above the k-th largest of its block is left, that one stays, and what lies below is as before."""
    cut = clip_share(weight, share, block=block)
    for old, new in zip(blocks_of(weight, block), blocks_of(cut, block), strict=True):
        limit = old.abs().sort(descending=True).values[int(len(old) * share + 1) - 1]
        assert new.abs().max() == limit
        assert torch.equal(new, old.clamp(-limit, limit))


@given(matrices(), st.floats(0, 20), BLOCKS)
def test_clipping_by_quartiles(weight, times, block):
    """A cut never lies below the third quartile, moves nothing outwards, and a wider one cuts less."""
    narrow, wide = (clip_iqr(weight, bound, block=block) for bound in (times, times + 1))
    for old, new, loose in zip(*(blocks_of(one, block) for one in (weight, narrow, wide)), strict=True):
        third = old.abs().sort().values[3 * (len(old) - 1) // 4]
        assert torch.equal(new[old.abs() <= third], old[old.abs() <= third])
        assert (new.abs() <= loose.abs()).all()
        assert (loose.abs() <= old.abs()).all()


@given(matrices(), BITS, st.integers(1, 12), st.integers(1, 12))
def test_a_tile_is_rounded_as_if_it_stood_alone(weight, bits, height, width):
    """Whatever the sides, edges included, a tile comes out as its elements do in a tensor of their own."""
    rounded = minmax(weight, bits, block=(height, width))
    for row in range(0, weight.shape[0], height):
        for column in range(0, weight.shape[1], width):
            place = slice(row, row + height), slice(column, column + width)
            assert torch.equal(rounded[place], minmax(weight[place], bits))


@given(matrices(), BITS)
def test_tiles_and_runs_meet_where_they_are_the_same(weight, bits):
    """A tile of one row is a run of a row's length, a tile of everything is the tensor; nothing else is promised."""
    for f in rounders(bits):
        assert torch.equal(f(weight, (1, weight.shape[1])), f(weight, row_block(weight)))
        assert torch.equal(f(weight, tuple(weight.shape)), f(weight, None))
        assert torch.equal(f(weight, (100, 100)), f(weight, None))


@given(matrices(), st.integers(0, 5))
def test_keeping_the_largest(weight, count):
    """The largest magnitudes come back as they were, the others as they were rounded."""
    count = min(count, weight.numel())
    rounded = clip_z_score(weight, 0.0)
    kept = with_largest_kept(rounded, weight, count)
    places = weight.flatten().abs().double().topk(count).indices
    assert torch.equal(kept.flatten()[places], weight.flatten()[places])
    rest = torch.ones(weight.numel(), dtype=torch.bool)
    rest[places] = False
    assert torch.equal(kept.flatten()[rest], rounded.flatten()[rest])


def test_keeping_places():
    """Given coordinates get their original values back; the rounded tensor is not written to."""
    weight = torch.tensor([[1.0, 2.0], [3.0, 400.0]])
    rounded = torch.zeros(2, 2)
    assert with_kept(rounded, weight, [(1, 1), (0, 0)]).tolist() == [[1.0, 0.0], [0.0, 400.0]]
    assert rounded.count_nonzero() == 0


# --- numbers -----------------------------------------------------------------------------------------------------------


def test_the_two_readings_of_the_step():
    """The code's grid has 2**N values, the printed formula's half of them."""
    weight = torch.linspace(0, 15, 61)
    assert minmax(weight, 4).unique().tolist() == list(range(16))
    assert minmax(weight, 4, reading=Reading.PAPER).unique().tolist() == pytest.approx([15 * i / 7 for i in range(8)])


def test_a_symmetric_grid():
    """Three bits have seven values around zero."""
    assert absmax(torch.linspace(-3, 3, 61), 3).unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]


def test_an_outlier_ruins_its_block_and_only_it():
    """One value 300 times as large survives; at 4 bits its block falls onto one value, other blocks lose little."""
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[1, 5] = 6.0
    rounded = minmax(weight, 4, block=64)
    assert rounded[1, 5] == 6.0
    assert len(rounded[1].unique()) == 2
    errors = (rounded - weight).norm(dim=1) / weight.norm(dim=1)
    assert errors[[0, 2, 3]].max() < 0.12


def test_clipping_takes_a_super_weight():
    """In a block of 128, 9 deviations lie below a single outlier: (n - 1) / sqrt(n) = 11.2 is the most it can reach."""
    weight = torch.full((128,), 1e-3)
    weight[7] = 6.0
    assert 4.5 < float(clip_z_score(weight, 9.0)[7]) < 5.1
    assert float(clip_z_score(weight, 11.3)[7]) == 6.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(value):
    """NaN and infinity spoil their own block, and no other."""
    weight = torch.ones(3, 4) * torch.arange(4)
    weight[1, 2] = value
    for f in rounders(4):
        rounded = f(weight, 4)
        assert not torch.isfinite(rounded[1]).all()
        assert torch.isfinite(rounded[[0, 2]]).all()


def test_nothing_to_round():
    """An empty tensor stays empty."""
    assert minmax(torch.empty(0, 3), 4).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda w: minmax(w, 0), "0 bits\n  found: possible here: 1 to 16"),
        (lambda w: minmax(w, 1, reading="paper"), "1 bits\n  found: possible here: 2 to 16"),
        (lambda w: absmax(w, 17), "17 bits"),
        (lambda w: minmax(w, 4, reading="other"), "reading 'other' of the step\n  found: known: code, paper"),
        (lambda w: minmax(w, 4, block=0), "blocks of 0 elements"),
        (lambda w: minmax(w.int(), 4), "a tensor of floating numbers\n  found: torch.int32"),
        (lambda w: clip_z_score(w, -1.0), "clip at z = -1.0"),
        (lambda w: clip_z_score(w, math.nan), "clip at z = nan"),
        (lambda w: clip_share(w, 1.0), "clip a share of 1.0"),
        (lambda w: clip_share(w, math.nan), "clip a share of nan"),
        (lambda w: clip_iqr(w, -0.1), "clip at -0.1 times the interquartile range"),
        (lambda w: minmax(w, 4, block=(2, 2)), "tiles of a matrix\n  found: a tensor of 1 dimensions"),
        (lambda w: minmax(w, 4, block=(2, 0)), "blocks of (2, 0) elements"),
        (lambda w: with_largest_kept(w, w, 5), "keep 5 values\n  found: the tensor has 4"),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    """Bits, blocks, readings and cuts outside the possible are worded errors."""
    with pytest.raises(OptionError) as caught:
        call(torch.ones(4))
    assert words in str(caught.value)
