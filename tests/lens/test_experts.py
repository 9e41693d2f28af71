"""What single experts read and write is what a loop over them by hand gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from swcheck import SuperWeight, effective_weight, observe, zeroed
from swcheck.base.errors import NotObservedError
from swcheck.lens.architecture.anatomy import Anatomy, MapKey, anatomy
from swcheck.lens.architecture.families import TRACED
from swcheck.lens.architecture.places import Place, Structure
from swcheck.lens.intervene import maps_zeroed
from swcheck.lens.likelihood import token_nats
from swcheck.lens.linear_maps import plain_matrices
from swcheck.lens.nulls import draw_matched
from swcheck.lens.routing import routing_recorded, routing_replaced, share_of_other_experts
from swcheck.testing.planting import visited_experts
from tools.small_models import EXPERTS, INNER, small_model

IDS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mixtral():
    """A random mixture of experts."""
    return small_model("mixtral")


def inputs_by_hand(model, layer, expert):
    """The input of one expert's down projection at every token, zero where it is not chosen, ``(B, T, F)``."""
    block, seen = model.model.layers[layer].mlp, {}
    hook = block.register_forward_pre_hook(lambda _module, args: seen.update(x=args[0]))
    with torch.no_grad():
        model(IDS)
    hook.remove()
    x = seen["x"].flatten(0, 1)
    chosen = block.gate(x)[-1] if isinstance(block.gate(x), tuple) else block.gate(x).topk(2).indices
    gate, up = (x @ block.experts.gate_up_proj[expert].T).chunk(2, -1)
    read = torch.nn.functional.silu(gate) * up
    return (read * (chosen == expert).any(1, keepdim=True)).view(*IDS.shape, -1)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_inputs_are_those_of_a_loop_by_hand(mixtral, implementation):
    """However the experts are computed, each is seen at the tokens that it gets, with what it reads there."""
    mixtral.set_experts_implementation(implementation)
    keys = [MapKey(2, expert) for expert in range(EXPERTS)]
    with torch.no_grad(), observe(mixtral, inputs=keys) as seen:
        mixtral(IDS)
    assert mixtral.config._experts_implementation == implementation
    for key in keys:
        assert seen.inputs[key].shape == (*IDS.shape, INNER)
        assert torch.allclose(seen.inputs[key], inputs_by_hand(mixtral, 2, key.expert), atol=1e-6)


def test_a_zeroed_scalar_of_an_expert_is_restored_to_the_bit(mixtral):
    """Inside the block an expert's scalar is 0 and the answers differ; after it every bit is as before."""
    weight = SuperWeight(1, 3, 5, expert=2)
    matrix = anatomy(mixtral).down_map(weight).weight
    matrix[3, 5] = 50.0
    before, intact = copy.deepcopy(mixtral.state_dict()), token_nats(mixtral, IDS)
    with zeroed(mixtral, [weight]):
        assert float(matrix[3, 5]) == 0
        assert not torch.equal(token_nats(mixtral, IDS), intact)
    with maps_zeroed(mixtral, [MapKey(1, 2)]):
        assert not matrix.any()
    assert all(torch.equal(value, before[name]) for name, value in mixtral.state_dict().items())


def test_a_null_is_drawn_from_the_same_expert(mixtral):
    """The matched weights of a super weight in an expert are of that expert."""
    weights = [SuperWeight(1, 3, 5, expert=2), SuperWeight(1, 3, 6, expert=2)]
    assert {(one.layer, one.expert) for one in draw_matched(mixtral, weights, seed=0)} == {(1, 2)}


def test_outputs_of_an_expert_and_packed_experts_are_refused(mixtral):
    """What no hook reaches is refused in words: the outputs of one expert, and experts that are no plain floats."""
    with (
        pytest.raises(NotObservedError, match="experts are computed together"),
        observe(mixtral, outputs=[MapKey(1, 2)]),
    ):
        pass
    anatomy(mixtral)
    experts = mixtral.model.layers[1].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.data.to(torch.int8), requires_grad=False)
    experts.forward = lambda hidden, *_routing: hidden
    with (
        pytest.raises(NotObservedError, match=r"the input of .*\n  found: MixtralExperts keeps it packed"),
        torch.no_grad(),
        observe(mixtral, inputs=[MapKey(1, 2)]),
    ):
        mixtral(IDS)
    with (
        pytest.raises(NotObservedError, match="keeps it packed, and no hook reaches"),
        zeroed(mixtral, [SuperWeight(1, 3, 5, expert=2)]),
    ):
        pass


def test_routing_given_back_gives_the_answers_back(mixtral):
    """A model whose routers are exchanged answers as before once its tokens are routed as before."""
    for layer in mixtral.model.layers:
        layer.mlp.experts.down_proj.data.mul_(60)
    with routing_recorded(anatomy(mixtral)) as routing:
        intact = token_nats(mixtral, IDS)
    assert {layer: experts.shape for layer, (experts, _) in routing.items()} == dict.fromkeys(
        range(6), (IDS.numel(), 2)
    )
    for layer in mixtral.model.layers:
        layer.mlp.gate.weight.data.copy_(layer.mlp.gate.weight.data[[1, 2, 3, 0]])
    with routing_recorded(anatomy(mixtral)) as other:
        changed = token_nats(mixtral, IDS)
    assert not torch.allclose(changed, intact)
    assert share_of_other_experts(other[0][0], routing[0][0]) > 0.5
    with routing_replaced(anatomy(mixtral), routing):
        assert torch.allclose(token_nats(mixtral, IDS), intact, atol=1e-6)


def test_falcon_and_conv1d_have_plain_weights():
    """Linear maps of other classes are read and written as ``nn.Linear`` is."""
    for name in ("gpt2", "falcon"):
        down = anatomy(small_model(name)).down_map(1)
        down.weight[3, 5] = 7.0
        assert down.weight.shape == (32, down.inner)
        assert effective_weight(down.module, 3, 5) == 7.0


def test_the_experts_of_a_layer_have_matrices_of_the_same_kinds():
    """A list of modules and a 3-D parameter alike: the kind is the path without the number of the expert."""
    stacked = plain_matrices(anatomy(small_model("mixtral")), [1])
    assert {one.kind for one in stacked if one.down is not None} == {"mlp.experts.down_proj"}

    class Listed(nn.Module):
        """Two experts in a list, as older families keep them."""

        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Module()
            self.mlp.experts = nn.ModuleList([nn.ModuleDict({"down": nn.Linear(3, 2)}) for _ in range(2)])

    layer = Listed()
    places = (tuple(Place(f"mlp.experts.{number}.down", expert=number) for number in range(2)),)
    body = Anatomy(TRACED, (layer,), Structure("layers", places), 2, 3)
    found = list(plain_matrices(body))
    assert [one.path for one in found] == ["mlp.experts.0.down", "mlp.experts.1.down"]
    assert {one.kind for one in found} == {"mlp.experts.down"}


class Wrapped(torch.Tensor):
    """A tensor that keeps its values in another one, as quantizers' do: it has no storage of its own."""

    @staticmethod
    def __new__(cls, whole):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=whole.dtype)

    def __init__(self, whole):
        self.whole = whole

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        opened = [one.whole if isinstance(one, cls) else one for one in args]
        found = func(*opened, **(kwargs or {}))
        return cls(found) if func is torch.ops.aten.detach.default else found


def test_a_packed_router_beside_experts_is_no_matrix_of_theirs():
    """What the experts read is the same where a quantizer keeps the router's matrix without a storage."""
    model, ids = small_model("mixtral"), torch.arange(5, 29)[None]
    key = next(down.key for down in anatomy(model).down_maps(1) if down.key.expert in visited_experts(model, 1, ids))
    inputs = []
    for _ in range(2):
        with torch.no_grad(), observe(model, inputs=[key]) as sight:
            model(ids, use_cache=False)
        inputs.append(sight.inputs[key])
        router = model.model.layers[1].mlp.gate
        router.weight = torch.nn.Parameter(Wrapped(router.weight.detach()), requires_grad=False)
    assert inputs[0].any()
    assert torch.equal(*inputs)
