"""Weights zeroed, scaled and set inside a block: what the model computes there, and that it is as before after it."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from swcheck.base.errors import CoordinateError, OptionError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.intervene import scalars_zeroed, scaled, set_to, zeroed
from swcheck.lens.linear_maps import contributions
from swcheck.lens.observe import observe
from swcheck.lens.replace import maps_replaced, residual_replaced
from swcheck.strategies import super_weights
from tests.planted import Packed, tuple_model

IDS = torch.tensor([[0, 5, 9, 33, 2]])
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INSIDE = super_weights(layers=4, rows=16, columns=32)
ALPHAS = st.floats(allow_nan=False, allow_infinity=False)
ONE, OTHER = SuperWeight(1, 2, 3), SuperWeight(2, 5, 30)


def matrix(model, layer):
    return anatomy(model).down_projections[layer].weight.detach()


def bits(model):
    """Every bit of the model: parameters and buffers."""
    return {name: tensor.contiguous().view(torch.uint8).clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def changed(model, before):
    """Which places of the down projections differ, bit for bit, from what they were."""
    found = set()
    for layer, down in enumerate(anatomy(model).down_projections):
        now = down.weight.detach().view(torch.uint8).view(*down.weight.shape, -1)
        was = before[f"model.layers.{layer}.mlp.down_proj.weight"].view(*down.weight.shape, -1)
        found |= {(layer, row, column) for row, column in (now != was).any(-1).nonzero().tolist()}
    return found


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture(scope="module", params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def model(request, random_llama):
    """The random Llama in each dtype, one copy for this file."""
    return copy.deepcopy(random_llama).to(request.param)


# --- plain weights -----------------------------------------------------------------------------------------------------


@given(weight=INSIDE, alpha=ALPHAS)
def test_scaled(model, weight, alpha):
    """Inside the block the scalar is alpha times itself, rounded once to the dtype; after it every bit is as before."""
    before, value = bits(model), float(matrix(model, weight.layer)[weight.row, weight.column])
    with scaled(model, [weight, weight], alpha):
        now = matrix(model, weight.layer)[weight.row, weight.column]
        assert torch.equal(now, torch.tensor(alpha * value, dtype=torch.float64).to(now.dtype))
        assert changed(model, before) <= {(weight.layer, weight.row, weight.column)}
    assert same(bits(model), before)


@given(weights=st.lists(INSIDE, max_size=6))
def test_zeroed(model, weights):
    """All named scalars are zero together, nothing else is touched, however often one is named."""
    before = bits(model)
    with zeroed(model, (weight for weight in [*weights, *weights])):
        assert changed(model, before) == {(w.layer, w.row, w.column) for w in weights}
        assert all(matrix(model, w.layer)[w.row, w.column] == 0 for w in weights)
    assert same(bits(model), before)


@given(weight=INSIDE, value=st.floats(-1e4, 1e4))
def test_set_to(model, weight, value):
    """Inside the block the scalar is the record's value, rounded once to the dtype."""
    before = bits(model)
    with set_to(model, [SuperWeight(weight.layer, weight.row, weight.column, value)] * 2):
        now = matrix(model, weight.layer)[weight.row, weight.column]
        assert torch.equal(now, torch.tensor(value, dtype=torch.float64).to(now.dtype))
    assert same(bits(model), before)


@given(weight=INSIDE)
def test_scaling_by_one(model, weight):
    """Scaling by one changes no bit."""
    before = bits(model)
    with scaled(model, [weight], 1.0):
        assert same(bits(model), before)


@given(weights=st.lists(INSIDE, min_size=1, max_size=3))
def test_zeroed_twice_is_zeroed_once(model, weights):
    """Zeroing what is zero, in one block or in nested ones, changes no bit more, and all come back."""
    before = bits(model)
    with zeroed(model, weights):
        once = bits(model)
        with zeroed(model, weights):
            assert same(bits(model), once)
        assert same(bits(model), once)
    with zeroed(model, weights * 2):
        assert same(bits(model), once)
    assert same(bits(model), before)


def test_left_by_an_exception(model):
    """A block left by an exception passes it on and puts every bit back."""
    before = bits(model)
    with pytest.raises(KeyError, match="mine"), zeroed(model, [ONE, OTHER]):
        assert not same(bits(model), before)
        raise KeyError("mine")
    assert same(bits(model), before)


@given(outer=st.lists(INSIDE, min_size=1, max_size=3), inner=st.lists(INSIDE, min_size=1, max_size=3), alpha=ALPHAS)
def test_nested(model, outer, inner, alpha):
    """Blocks nest, also over one scalar: leaving the inner gives the outer's bits back, leaving that the first."""
    before = bits(model)
    with scaled(model, outer, 3.0):
        between = bits(model)
        with scaled(model, inner, alpha), zeroed(model, outer):
            pass
        assert same(bits(model), between)
    assert same(bits(model), before)


def test_not_a_number_keeps_its_bits(model):
    """A NaN that stood at the place comes back with its payload, which no arithmetic would give back."""
    broken = copy.deepcopy(model)
    weight = matrix(broken, 1)
    weight.view(torch.uint8).view(*weight.shape, -1)[2, 3] = 255
    before = bits(broken)
    with zeroed(broken, [ONE]):
        assert weight[2, 3] == 0
    assert same(bits(broken), before)


def test_not_a_contiguous_weight(random_llama):
    """A weight that is stored transposed is edited at its row and column."""
    model = copy.deepcopy(random_llama)
    down = model.model.layers[1].mlp.down_proj
    down.weight = nn.Parameter(down.weight.detach().T.contiguous().T)
    before = down.weight.detach().clone()
    with zeroed(model, [ONE]):
        assert (down.weight != before).nonzero().tolist() == [[2, 3]]
    assert torch.equal(down.weight, before)


# --- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_not_finite(random_llama, alpha):
    """A scale that is NaN or infinite is refused before anything is touched."""
    before = bits(random_llama)
    with (
        pytest.raises(OptionError, match=f"alpha = {alpha}\n  found: a scale has to be a finite number"),
        scaled(random_llama, [ONE], alpha),
    ):
        pytest.fail("the block was entered")
    assert same(bits(random_llama), before)


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (SuperWeight(4, 0, 0), "layer 4 was asked for"),
        (SuperWeight(0, 16, 0), "row 16 was asked for"),
        (SuperWeight(0, 0, -1), "column -1 was asked for"),
    ],
)
@pytest.mark.parametrize("change", [zeroed, lambda m, w: scaled(m, w, 2.0), set_to], ids=["zeroed", "scaled", "set_to"])
def test_a_coordinate_outside(random_llama, change, weight, words):
    """A coordinate outside the model is refused before the ones inside are touched."""
    before = bits(random_llama)
    weights = [SuperWeight(1, 2, 3, 1.0), SuperWeight(weight.layer, weight.row, weight.column, 1.0)]
    with pytest.raises(CoordinateError, match=words), change(random_llama, weights):
        pytest.fail("the block was entered")
    assert same(bits(random_llama), before)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_set_to_no_value(random_llama, value):
    """A scalar cannot be set to a value that nobody has read, or to one that is not finite."""
    words = re.escape(
        f"set {SuperWeight(1, 2, 3, value)}\n  found: its value is {value}\n  try: give it a finite value"
    )
    with pytest.raises(OptionError, match=words), set_to(random_llama, [SuperWeight(1, 2, 3, value)]):
        pytest.fail("the block was entered")


def test_set_to_two_values(random_llama):
    """One scalar cannot be set to two values."""
    weights = [SuperWeight(1, 2, 3, 1.0), SuperWeight(1, 2, 3, 2.0)]
    words = re.escape("set layer 1 [2, 3] = +2\n  found: it is also to be +1\n  try: give each scalar once")
    with pytest.raises(OptionError, match=words), set_to(random_llama, weights):
        pytest.fail("the block was entered")


# --- black boxes -------------------------------------------------------------------------------------------------------


class Subclass(nn.Linear):
    """A linear layer of a class of its own."""


def with_own_forward(plain):
    forward = plain.forward
    plain.forward = forward
    return plain


def subclassed(plain):
    made = Subclass(plain.in_features, plain.out_features, bias=False)
    made.load_state_dict(plain.state_dict())
    return made


BOXES = {
    "packed": Packed,
    "subclass": subclassed,
    "own forward": with_own_forward,
    "parametrized": parametrizations.weight_norm,
    "pruned": lambda plain: prune.l1_unstructured(plain, "weight", amount=0.3),
}


@pytest.fixture(params=BOXES)
def pair(request, random_llama):
    """A Llama whose down projections are black boxes, and a plain one that computes the same."""
    boxed, plain = copy.deepcopy(random_llama), copy.deepcopy(random_llama)
    for layer, twin in zip(boxed.model.layers, plain.model.layers, strict=True):
        layer.mlp.down_proj = BOXES[request.param](layer.mlp.down_proj)
        eye = torch.eye(32)
        with torch.no_grad():
            twin.mlp.down_proj.weight.copy_(layer.mlp.down_proj(eye).T)
    return boxed, plain


@pytest.mark.parametrize(
    "change",
    [
        lambda m: zeroed(m, [ONE, OTHER, ONE]),
        lambda m: scaled(m, [ONE, OTHER, ONE], -7.5),
        lambda m: scaled(m, [ONE], 1e4),
        lambda m: scaled(m, [ONE], 1.0),
        lambda m: set_to(m, [SuperWeight(1, 2, 3, 4.0), SuperWeight(1, 2, 4, -4.0)]),
    ],
    ids=["zeroed", "negative", "huge", "one", "set"],
)
def test_a_black_box_equals_the_edit(pair, change):
    """A black box overridden from outside computes what an equal plain layer does edited in place."""
    boxed, plain = pair
    before, count = bits(boxed), hooks(boxed)
    with torch.no_grad(), change(boxed), change(plain):
        assert torch.allclose(boxed(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-5)
        assert same(bits(boxed), before)
    assert same(bits(boxed), before)
    assert hooks(boxed) == count
    with torch.no_grad():
        assert torch.allclose(boxed(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-5)


def test_the_edit_is_felt(pair):
    """What the two routes agree on is no agreement on nothing: the logits move."""
    boxed, _ = pair
    with torch.no_grad():
        before = boxed(IDS).logits
        with scaled(boxed, [ONE], 1e4):
            assert not torch.allclose(boxed(IDS).logits, before, rtol=1e-2, atol=1e-3)


def test_black_boxes_nest(pair):
    """In a nested block alpha multiplies what the outer block left."""
    boxed, plain = pair
    with torch.no_grad(), scaled(boxed, [ONE], 40.0), scaled(boxed, [ONE, OTHER], -2.0), scaled(plain, [ONE], -80.0):
        with scaled(plain, [OTHER], -2.0):
            assert torch.allclose(boxed(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-5)
        with zeroed(boxed, [ONE]):
            module = anatomy(boxed).down_projections[1]
            assert contributions(module, torch.ones(32), 2, [3]).item() == pytest.approx(0, abs=1e-6)


def test_a_black_box_left_by_an_exception(pair):
    """Hooks are gone after a block left by an exception, and after one that could not be entered."""
    boxed, _ = pair
    before = hooks(boxed)
    with pytest.raises(KeyError), zeroed(boxed, [ONE, OTHER]):
        assert hooks(boxed) == before + 2
        raise KeyError
    assert hooks(boxed) == before
    boxed.model.layers[2].mlp.down_proj = NoHooks()
    before = hooks(boxed)
    with pytest.raises(RuntimeError, match="no hooks here"), zeroed(boxed, [ONE, OTHER]):
        pytest.fail("the block was entered")
    assert hooks(boxed) == before


def test_a_black_box_is_asked_once_for_all_of_its_scalars(pair):
    """Three scalars of one module cost one more call of it in a pass, and equal the edit of a plain layer."""
    boxed, plain = pair
    three = [ONE, SuperWeight(1, 2, 7), SuperWeight(1, 9, 3)]
    module = anatomy(boxed).down_projections[1]
    calls, forward = [], module.forward
    module.forward = lambda x: calls.append(len(x)) or forward(x)
    try:
        with torch.no_grad(), scaled(boxed, three, 40.0), scaled(plain, three, 40.0):
            inside = boxed(IDS).logits
            assert torch.allclose(inside, plain(IDS).logits, rtol=1e-4, atol=1e-5)
        assert calls == [1, 4]
    finally:
        del module.forward


class NoHooks(nn.Identity):
    """A module that takes no hooks."""

    def register_forward_hook(self, *_args, **_options):
        raise RuntimeError("no hooks here")


def test_a_half_precision_box(random_llama):
    """A packed module that runs in bfloat16 is overridden within bfloat16's rounding of its output."""
    boxed = Packed(random_llama.model.layers[1].mlp.down_proj)
    model = copy.deepcopy(random_llama)
    model.model.layers[1].mlp.down_proj = boxed
    x = torch.randn(3, 32).to(torch.bfloat16)
    exact = boxed.unpacked().weight.detach().clone()
    exact[2, 3] = 0
    with zeroed(model, [ONE]):
        found = boxed(x)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), x.float() @ exact.T, rtol=2**-6, atol=2**-9)


def test_a_box_that_gives_a_tuple():
    """Where a module gives a tuple, its first is changed and the rest passed on."""

    class Paired(Packed):
        def forward(self, x):
            return super().forward(x), "rest"

    model = tuple_model()
    box = Paired(model.layers[0].mlp["down_proj"])
    model.layers[0].mlp["down_proj"] = box
    exact = box.unpacked().weight.detach().clone()
    exact[2, 3] = 0
    x = torch.randn(4, 6)
    with zeroed(model, [SuperWeight(0, 2, 3)]):
        found, rest = box(x)
    assert rest == "rest"
    assert torch.allclose(found, x @ exact.T, atol=1e-6)


class Clipping(Packed):
    """A packed layer that clips its inputs, as static activation quantization does: no linear map of what it is given."""

    def forward(self, x):
        return super().forward(x.clamp(-1, 1))


@given(x=st.lists(st.floats(-4, 4, width=32), min_size=6, max_size=6))
def test_a_box_that_clips(x):
    """Zeroing takes away what the scalar writes at the input it really gets, and leaves the input and other rows."""
    model = tuple_model()
    box = model.layers[0].mlp["down_proj"] = Clipping(model.layers[0].mlp["down_proj"])
    x = torch.tensor([x, x[::-1]])
    given, without = x.clone(), x.clone()
    without[:, 3] = 0
    expected = box(x)
    expected[:, 2] = box(without)[:, 2]
    with zeroed(model, [SuperWeight(0, 2, 3)]):
        assert torch.allclose(box(x), expected, atol=1e-6)
    assert torch.equal(x, given)


def test_a_box_of_unknown_width():
    """A black box that does not say how wide it is, and cannot be read, is overridden all the same."""
    model = tuple_model()
    box = model.layers[0].mlp["down_proj"] = nn.Tanh()
    x = torch.randn(4, 6)
    expected = x.tanh()
    expected[:, 3] *= -2
    with scaled(model, [SuperWeight(0, 3, 3)], -2.0):
        assert torch.allclose(box(x), expected, atol=1e-6)


# --- what was lost, given back ------------------------------------------------------------------------------------------


def test_maps_given_back_compute_what_the_other_model_does(pair):
    """A whole map, or some of its rows, answers as the other model's inside the block, and as before after it."""
    boxed, _ = pair
    name, other = "model.layers.1.mlp.down_proj", torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
    down, before, count = anatomy(boxed).down_projections[1], bits(boxed), hooks(boxed)
    with torch.no_grad():
        usual = down(x)
        with maps_replaced(boxed, {name: other}, {}):
            assert torch.allclose(down(x), x @ other.T, atol=1e-5)
        with maps_replaced(boxed, {name: other[[2, 5]]}, {name: [2, 5]}):
            found = down(x)
        assert torch.allclose(found[..., [2, 5]], x @ other[[2, 5]].T, atol=1e-5)
        found[..., [2, 5]] = usual[..., [2, 5]]
        assert torch.equal(found, usual)
        assert torch.equal(down(x), usual)
    assert same(bits(boxed), before)
    assert hooks(boxed) == count


def test_a_map_given_back_keeps_the_bias():
    """The bias of a module is its own: only the map is another's."""
    model = tuple_model()
    model.layers[1].mlp.down_proj = nn.Linear(6, 8)
    down, other, x = model.layers[1].mlp.down_proj, torch.ones(8, 6), torch.ones(1, 2, 6)
    with torch.no_grad(), maps_replaced(model, {"layers.1.mlp.down_proj": other}, {}):
        assert torch.allclose(down(x), 6 + down.bias)


@pytest.mark.parametrize("make", [lambda pair: pair[1], lambda _pair: tuple_model(hidden=16)], ids=["tensor", "tuple"])
def test_a_channel_of_the_residual_stream_is_set(pair, make):
    """The wanted values stand after the layer, at their tokens and windows, and nothing else changes there."""
    model = make(pair)
    ids = torch.cat([IDS, IDS.flip(1)])
    nan = math.nan
    wanted = torch.tensor([[7.0, nan, nan, nan, nan], [nan, nan, -3.0, nan, nan]])
    with torch.no_grad(), observe(model, residual=[1]) as usual:
        model(ids)
    with torch.no_grad(), residual_replaced(model, 1, 4, wanted), observe(model, residual=[1]) as sight:
        model(ids[:1])
        first = sight.residual[1].clone()
        model(ids[1:])
    found = torch.cat([first, sight.residual[1]])
    assert (float(found[0, 0, 4]), float(found[1, 2, 4])) == (7.0, -3.0)
    found[0, 0, 4], found[1, 2, 4] = usual.residual[1][0, 0, 4], usual.residual[1][1, 2, 4]
    assert torch.allclose(found, usual.residual[1], atol=1e-5)
    with torch.no_grad(), residual_replaced(model, 1, 4, wanted[:1]), observe(model, residual=[1]) as sight:
        model(ids)
    assert sight.residual[1][:, 0, 4].tolist() == [7.0, 7.0]


def test_scalars_of_any_map_are_zeroed_and_come_back():
    """At their places the matrix is zero inside the block; after it, also after an error, it is as before to the bit."""
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    with scalars_zeroed(weight, [(1, 2), (3, 5)]):
        assert float(weight[1, 2]) == float(weight[3, 5]) == 0.0
        assert int((weight == 0).sum()) == 2
    assert torch.equal(weight, before)
    with pytest.raises(ValueError, match="stop"), scalars_zeroed(weight, [(0, 0)]):
        raise ValueError("stop")
    assert torch.equal(weight, before)
    with scalars_zeroed(weight, []):
        assert torch.equal(weight, before)


def test_under_autocast_a_scalar_is_gone_at_once_and_back_at_once(tiny):
    """Autocast keeps the weights it has cast for as long as its block lasts: an edit is seen all the same."""
    weight, ids = SuperWeight(1, 97, 301), torch.tensor([tiny.tokenizer("a = b")["input_ids"]])
    module = tiny.model.model.layers[1].mlp.down_proj.weight.data

    def first() -> float:
        with observe(tiny.model, residual=[1]) as sight, torch.no_grad():
            tiny.model(ids)
        return float(sight.residual[1][0, 0, 97])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert first() > 300
        with zeroed(tiny.model, [weight]):
            assert abs(first()) < 30
        assert first() > 300
        with scalars_zeroed(module, [(97, 301)]):
            assert abs(first()) < 30
        assert first() > 300
