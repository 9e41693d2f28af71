"""What a block of ``observe`` shows, when it stops, and how single scalars are read from black boxes."""

from __future__ import annotations

import copy
import re
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import MllamaForCausalLM

from swcheck import Planting, assert_super_weights_preserved, locate, plant_super_weights
from swcheck.base.errors import CoordinateError, NotObservedError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.storage import first_tensor, plain_weight
from swcheck.lens.linear_maps import _input_format, contributions, effective_weight, inputs_of, linear_maps, packed_maps
from swcheck.lens.observe import observe
from tests.planted import Packed, plant, tuple_model
from tests.versions import RECENT
from tools.small_models import small_model

IDS = torch.tensor([[0, 5, 9, 33, 2], [7, 1, 60, 2, 2]])
LAYERS = range(4)


def hooks(model):
    """How many hooks a model carries."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@contextmanager
def counted(model):
    """How many layers, down projections and heads were entered, and how many layers left, in the block."""
    calls = Counter()
    layers = model.model.layers
    watched = {"layers": layers, "downs": [layer.mlp.down_proj for layer in layers], "heads": [model.lm_head]}
    handles = [
        module.register_forward_pre_hook(lambda _m, _args, name=name: calls.update([name]))
        for name, modules in watched.items()
        for module in modules
    ]
    handles += [layer.register_forward_hook(lambda _m, _args, _out: calls.update(["left"])) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def test_residual(random_llama):
    """The residual stream after a layer is what transformers gives as the hidden state behind it."""
    model = copy.deepcopy(random_llama)  # transformers leaves hooks of its own behind
    with torch.no_grad(), observe(model, residual=LAYERS) as sight:
        hidden = model(IDS, output_hidden_states=True).hidden_states
    for layer in LAYERS[:-1]:
        assert torch.equal(sight.residual[layer], hidden[layer + 1])
    assert torch.equal(model.model.norm(sight.residual[3]), hidden[4])


def test_inputs_and_outputs(random_llama):
    """Inputs and outputs are what hooks of one's own see pass through the down projections."""
    seen = {}
    handles = [
        layer.mlp.down_proj.register_forward_hook(lambda _m, args, out, n=n: seen.update({n: (args[0], out)}))
        for n, layer in enumerate(random_llama.model.layers)
    ]
    with observe(random_llama, inputs=LAYERS, outputs=LAYERS) as sight:
        random_llama(IDS)
    for handle in handles:
        handle.remove()
    for layer in LAYERS:
        assert torch.equal(sight.inputs[layer], seen[layer][0])
        assert torch.equal(sight.outputs[layer], seen[layer][1])
        assert not sight.inputs[layer].requires_grad
        assert not sight.outputs[layer].requires_grad


def test_layers_that_give_tuples():
    """Where a layer gives a tuple, its residual stream is the first of it."""
    model = tuple_model()
    with observe(model, residual=[0, 1]) as sight:
        out = model(IDS)
    assert torch.equal(sight.residual[0], model.layers[0](model.embed(IDS))[0])
    assert torch.equal(sight.residual[1], out)
    assert first_tensor((out, None)) is out
    assert first_tensor(out) is out


def test_the_last_pass_is_shown(random_llama):
    """After several passes in one block the sight holds the last."""
    with observe(random_llama, residual=[1]) as sight:
        random_llama(IDS)
        random_llama(IDS[:1, :3])
    assert sight.residual[1].shape == (1, 3, 16)


@given(layer=st.sampled_from(LAYERS), what=st.sampled_from(["residual", "inputs", "outputs"]))
def test_stop(random_llama, layer, what):
    """With ``stop`` nothing behind the last thing asked for is computed, and the rest of the block is left out."""
    with counted(random_llama) as calls, observe(random_llama, **{what: [0, layer]}, stop=True) as sight:
        random_llama(IDS)
        pytest.fail("the block went on")
    assert sorted(getattr(sight, what)) == sorted({0, layer})
    left = layer + (what == "residual")
    assert calls == Counter(layers=layer + 1, downs=layer + 1, left=left, heads=0)


def test_stop_waits_for_the_last_thing(random_llama):
    """With ``stop`` the pass goes on to the layer's residual stream where that is asked for beside its inputs."""
    with observe(random_llama, residual=[2], inputs=[2], outputs=[0], stop=True) as sight:
        random_llama(IDS)
    assert (sorted(sight.residual), sorted(sight.inputs), sorted(sight.outputs)) == ([2], [2], [0])


@pytest.mark.parametrize("options", [{"residual": [0, 1]}, {"stop": True}], ids=["without stop", "nothing asked for"])
def test_no_stop(random_llama, options):
    """Without ``stop``, or with nothing to stop after, the pass runs to the end and gives its logits."""
    with observe(random_llama, **options):
        logits = random_llama(IDS).logits
    assert torch.equal(logits, random_llama(IDS).logits)


def test_nested_stops(random_llama):
    """A stop ends the block that asked for it, also from within another block, and not less."""
    reached = []
    with observe(random_llama, residual=[1], stop=True) as outer:
        with observe(random_llama, residual=[0]) as inner:
            random_llama(IDS)
        reached.append("between")
    with observe(random_llama, residual=[1]) as other:
        with observe(random_llama, residual=[0], stop=True):
            random_llama(IDS)
        reached.append("behind")
        random_llama(IDS)
    assert reached == ["behind"]
    assert (list(inner.residual), list(outer.residual), list(other.residual)) == ([0], [1], [1])


@pytest.mark.parametrize("what", ["residual", "inputs", "outputs"])
def test_not_observed(random_llama, what):
    """Asking for a layer that was not watched says what was seen, and how to see more."""
    with observe(random_llama, **{what: [0, 2]}) as sight:
        with pytest.raises(NotObservedError, match=f"{what} of layer 0\n  found: seen so far: nothing\n  try: name"):
            getattr(sight, what)[0]
        random_llama(IDS)
    words = rf"{what} of layer 1\n  found: seen so far: \[0, 2\]\n  try: .*observe\({what}=\.\.\.\)"
    with pytest.raises(NotObservedError, match=words):
        getattr(sight, what)[1]


@pytest.mark.parametrize("what", ["residual", "inputs", "outputs"])
@pytest.mark.parametrize("layer", [-1, 4])
def test_no_such_layer(random_llama, what, layer):
    """A layer outside the model is refused before any hook is placed."""
    before = hooks(random_llama)
    words = f"layer {layer} was asked for\n  found: this model has layers 0 to 3"
    with pytest.raises(CoordinateError, match=words), observe(random_llama, **{what: [0, layer]}):
        pytest.fail("the block was entered")
    assert hooks(random_llama) == before


def test_hooks_are_gone(random_llama):
    """Inside the block there are hooks; after it, left by its end, an exception or a failing pass, none is left."""
    before = hooks(random_llama)
    everything = {"residual": LAYERS, "inputs": LAYERS, "outputs": LAYERS, "stop": True}
    with observe(random_llama, **everything):
        assert hooks(random_llama) == before + 13
    assert hooks(random_llama) == before
    with pytest.raises(KeyError), observe(random_llama, **everything):
        raise KeyError
    assert hooks(random_llama) == before
    with pytest.raises(IndexError), observe(random_llama, **everything):
        random_llama(torch.tensor([[64]]))
    assert hooks(random_llama) == before


# --- single scalars ----------------------------------------------------------------------------------------------------


def linear(bias=False):
    torch.manual_seed(1)
    return nn.Linear(12, 7, bias=bias).double()


def test_contributions():
    """On a plain layer each contribution is weight times input, whatever the bias is."""
    plain, x = linear(bias=True), torch.randn(12, dtype=torch.float64)
    for row in range(7):
        found = contributions(plain, x, row, [3, 0, 11])
        assert found.dtype == torch.float32
        assert torch.allclose(found, (plain.weight[row, [3, 0, 11]] * x[[3, 0, 11]]).float())


def test_contributions_of_a_packed_module():
    """On a packed layer the contributions are those of the plain layer that computes the same, and codes stay."""
    packed, x = Packed(linear()), torch.randn(12)
    codes = packed.codes.clone()
    plain = packed.unpacked()
    for row in range(7):
        expected = plain.weight[row] * x
        assert torch.allclose(contributions(packed, x, row, range(12)), expected, atol=1e-6)
        assert torch.allclose(expected.sum(), packed(x)[row], atol=1e-5)
    assert torch.equal(packed.codes, codes)


def test_contributions_of_no_column():
    """No column has no contribution."""
    assert contributions(linear(), torch.zeros(12, dtype=torch.float64), 0, []).shape == (0,)


def test_contributions_leave_their_input():
    """The recorded input is not written to."""
    x = torch.ones(12, dtype=torch.float64)
    contributions(linear(), x, 0, range(12))
    assert torch.equal(x, torch.ones_like(x))


class Subclass(nn.Linear):
    """A linear layer that computes with twice its weight."""

    def forward(self, x):
        return 2 * super().forward(x)


def halved(module):
    """The module with a ``forward`` of its own, that gives half."""
    forward = module.forward
    module.forward = lambda x: 0.5 * forward(x)
    return module


def not_plain():
    """Linear maps whose weight is not, or need not be, what the next pass computes with."""
    subclass = Subclass(12, 7, bias=False)
    normed = parametrizations.weight_norm(linear().float())
    pruned = prune.random_unstructured(linear().float(), "weight", amount=0.3)
    return {"subclass": subclass, "own forward": halved(linear(bias=True)), "parametrized": normed, "pruned": pruned,
            "packed": Packed(linear())}  # fmt: skip


@pytest.mark.parametrize("name", not_plain())
def test_no_plain_weight(name):
    """A weight that is not simply what the module computes with is not taken for plain."""
    assert plain_weight(not_plain()[name]) is None


def test_no_plain_weight_elsewhere():
    """Weights without values or without fractions, and tensors of another class, are not taken for plain."""

    class Tensor(torch.Tensor):
        pass

    integers = linear()
    integers.weight = nn.Parameter(torch.ones(7, 12, dtype=torch.int8), requires_grad=False)
    special = linear()
    special.weight = nn.Parameter(torch.ones(7, 12).as_subclass(Tensor))
    modules = [nn.Linear(12, 7, device="meta"), integers, special, nn.Identity(), nn.Bilinear(2, 2, 2)]
    assert [plain_weight(module) for module in modules] == [None] * 5


def test_plain_weight():
    """The weight of an ordinary linear layer is given itself, no copy."""
    plain = linear()
    assert plain_weight(plain).data_ptr() == plain.weight.data_ptr()


@pytest.mark.parametrize("name", ["plain", *not_plain()])
def test_effective_weight(name):
    """The effective weight is what stands between one input and one output, wherever the module keeps it."""
    module = linear(bias=True) if name == "plain" else not_plain()[name]
    dtype = next((t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), None)
    eye = torch.eye(12, dtype=dtype)
    with torch.no_grad():
        matrix = (module(eye) - module(torch.zeros_like(eye))).T
    before = copy.deepcopy(module.state_dict())
    for row, column in [(0, 0), (6, 11), (3, 5)]:
        assert effective_weight(module, row, column) == pytest.approx(float(matrix[row, column]), rel=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_effective_weight_without_fractions():
    """A packed module whose tensors are all integers, or bytes of fractions, is probed in float32."""
    packed = Packed(linear())
    expected = packed.unpacked().weight[2, 3].item()
    scale = packed.scale
    packed.forward = lambda x: nn.functional.linear(x, packed.codes.float() * scale)
    for stored in (torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.float8_e4m3fn)):
        packed.scale = stored
        assert effective_weight(packed, 2, 3) == pytest.approx(expected)


def test_the_probe_goes_where_the_codes_are():
    """A packed module is probed on the device of its tensors, whatever their dtype."""
    packed = Packed(linear()).to("meta")
    packed.scale = None
    assert _input_format(packed) == (12, torch.float32, torch.device("meta"))
    packed.codes = None
    assert _input_format(packed) == (12, torch.float32, torch.device("cpu"))


def test_the_size_of_the_probe():
    """A module that rounds its inputs to a grid is read right at an input that it usually gets."""
    packed = Packed(linear())
    packed.forward = lambda x: Packed.forward(packed, (x / 0.75).round() * 0.75)
    expected = packed.unpacked().weight[2, 3].item()
    assert effective_weight(packed, 2, 3, at=7.5) == pytest.approx(expected)
    assert effective_weight(packed, 2, 3) == pytest.approx(0.75 * expected)


def test_a_width_of_another_name():
    """AutoRound's kernels say ``infeatures``."""
    packed = Packed(linear())
    expected = packed.unpacked().weight[2, 3].item()
    packed.infeatures = packed.in_features
    del packed.in_features
    assert effective_weight(packed, 2, 3) == pytest.approx(expected)


def test_width_unknown():
    """A black box that does not say how wide its input is cannot be probed, and the message says what to do instead."""
    words = re.escape(
        "the input width of Identity\n  found: the module has no in_features\n  try: compare contribution"
    )
    with pytest.raises(NotObservedError, match=words):
        effective_weight(nn.Identity(), 0, 0)


def test_every_plain_linear_map_of_the_layers():
    """Seven maps a layer in the model's order; a packed one is named apart, the head is no map of a layer."""
    model = plant([SuperWeight(1, 3, 5, 6.0)], layers=2)
    paths = [one.path for one in linear_maps(model)]

    assert len(paths) == 14
    assert paths[-1] == "mlp.down_proj"
    assert packed_maps(model) == ()
    model.model.layers[1].mlp.down_proj = Packed(model.model.layers[1].mlp.down_proj)
    assert len(linear_maps(model)) == 13
    assert packed_maps(model) == ("model.layers.1.mlp.down_proj",)


def test_what_maps_read():
    """Maps that read the same tensor share it; the tensor is what the map really gets."""
    model = plant([SuperWeight(1, 3, 5, 6.0)], layers=2)
    maps = {(one.layer, one.path): one for one in linear_maps(model)}
    seen = inputs_of(model, list(maps.values()), torch.tensor([[0, 1, 2]]))

    assert seen[maps[0, "mlp.gate_proj"]].data_ptr() == seen[maps[0, "mlp.up_proj"]].data_ptr()
    assert seen[maps[1, "mlp.down_proj"]].shape == (1, 3, 24)
    with observe(model, inputs=[1]) as sight, torch.no_grad():
        model(torch.tensor([[0, 1, 2]]), use_cache=False)
    assert torch.equal(seen[maps[1, "mlp.down_proj"]], sight.inputs[1])


@RECENT
def test_a_layer_that_is_left_out_hands_on_what_it_would_get():
    """Mllama's layers for images do not run for text: the stream after one is the stream before, in every pass anew."""
    model = small_model("mllama")
    with torch.no_grad(), observe(model, residual=range(6), inputs=[3]) as sight:
        for first in (5, 9):
            model(torch.arange(first, first + 6)[None])
            assert sorted(sight.residual) == list(range(6))
            assert torch.equal(sight.residual[3], sight.residual[2])
            assert not torch.equal(sight.residual[4], sight.residual[3])
    assert 3 not in sight.inputs
    with torch.no_grad(), observe(model, residual=[1, 3, 4]) as sight:
        model(torch.arange(6)[None])
    assert 3 not in sight.residual  # nobody asked for what layer 2 returns


@RECENT
@pytest.mark.slow
def test_the_gate_of_a_model_with_layers_that_do_not_run():
    """A super weight behind such a layer is located at its own layer, and a copy is green."""
    config = small_model("mllama").config
    config.cross_attention_layers = [1]
    torch.manual_seed(0)
    model, ids = MllamaForCausalLM(config).eval(), torch.arange(5, 29)[None]
    planted = plant_super_weights(model, [Planting(2, 3)], ids)
    assert locate(model, token_ids=ids).super_weights == planted
    assert_super_weights_preserved(model, model, token_ids=ids.repeat(2, 1))
