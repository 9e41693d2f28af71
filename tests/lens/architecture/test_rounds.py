"""Layers that run in several rounds of one pass are read in their last round."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from swcheck import RobustnessError, SuperWeight, assert_super_weights_preserved, locate, scaled, zeroed
from swcheck.base.errors import ArchitectureError, OptionError
from swcheck.lens.architecture.anatomy import anatomy, checked_anatomy
from swcheck.lens.observe import observe
from swcheck.lens.replace import residual_replaced
from swcheck.superweights.locating.passes import Passes
from swcheck.testing.planting import Planting, plant_super_weights
from tests.lens.architecture.test_streams import normed
from tests.lens.architecture.test_structure import OddBlock
from tests.versions import RECENT
from tools.families_table import DAMAGES, IDS, TEXT, planted_at_some_token
from tools.small_models import small_model

WIDTH, INNER, ROUNDS = 32, 80, 3


class RoundsModel(nn.Module):
    """A language model whose layers run in rounds; each begins with the words and the normed end of the one before."""

    def __init__(self, block=OddBlock):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(64, WIDTH), nn.Linear(WIDTH, 64)
        self.layers = nn.ModuleList(block(WIDTH, INNER) for _ in range(4))

    def forward(self, ids, use_cache=False):
        state = words = self.words(ids)
        for _ in range(ROUNDS):
            stream = state + words
            for layer in self.layers:
                stream = layer(stream)
            state = normed(stream)
        return SimpleNamespace(logits=self.out(state))


class Twice(RoundsModel):
    """Each layer runs twice before the next."""

    def forward(self, ids, use_cache=False):
        stream = self.words(ids)
        for layer in self.layers:
            stream = layer(layer(stream))
        return SimpleNamespace(logits=self.out(stream))


class OneLayer(RoundsModel):
    """All layers are one module."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([self.layers[0]] * 4)


class FirstRoundSquared(OddBlock):
    """A layer whose output is no sum in the first round."""

    runs = 0

    def forward(self, stream):
        self.runs += 1
        return super().forward(stream) ** (2 if self.runs == 1 else 1)


def test_rounds_are_counted():
    """The layers are known, and how often they run."""
    body = checked_anatomy(RoundsModel().eval())
    assert (body.structure.rounds, len(body.layers), body.hidden, body.inner) == (ROUNDS, 4, WIDTH, INNER)
    assert {place.is_added for layer in body.structure.places for place in layer} == {True}


class LoopedLlama(LlamaForCausalLM):
    """A model of remote code: its modules are named as those of a family that is known, and run twice."""

    def __init__(self, config):
        super().__init__(config)
        body, once = self.model, self.model.forward

        def twice(input_ids=None, **options):
            first = once(input_ids, **options).last_hidden_state
            return once(**{**options, "inputs_embeds": first})

        body.forward = twice


def test_rounds_of_a_known_family_are_counted():
    """What a family's row says of the paths is not believed of the rounds."""
    once = small_model("llama")
    assert checked_anatomy(once).structure.rounds == 1
    assert checked_anatomy(LoopedLlama(once.config).eval()).structure.rounds == 2


def test_a_super_weight_is_located():
    """What a planted one writes is said of the last round; without it, in all rounds, there is none."""
    model = RoundsModel().eval()
    assert locate(model, token_ids=IDS).super_weights == ()
    planted = planted_at_some_token(model, [Planting(1, 3)])
    found = locate(model, token_ids=IDS)
    assert found.super_weights == planted
    assert found.written[0] == pytest.approx(found.activations[0].value, rel=0.05)
    with scaled(model, planted, 0.0):
        assert locate(model, token_ids=IDS).super_weights == ()


def test_what_does_not_settle_is_not_planted():
    """Two scalars that earlier rounds let write most at different tokens are refused, not planted half."""
    with pytest.raises(OptionError, match="what is written in earlier rounds changes what is read"):
        plant_super_weights(RoundsModel().eval(), [Planting(1, 3), Planting(1, 3), Planting(1, 3)], IDS)


def test_what_is_observed_is_the_last_round():
    """A pass that ends early ends there, and shows what a whole pass does, of the stream and of down projections."""
    model, ran = RoundsModel().eval(), []
    model.layers[2].register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad(), observe(model, residual=[1], inputs=[1], stop=True) as early:
        model(IDS)
    with torch.no_grad(), observe(model, inputs=[1], stop=True) as at_the_map:
        model(IDS)
    ended = len(ran)
    with torch.no_grad(), observe(model, residual=[1], inputs=[1]) as whole:
        model(IDS)
    assert (ended, len(ran)) == (2 * (ROUNDS - 1) + ROUNDS, 2 * (ROUNDS - 1) + 2 * ROUNDS)
    assert torch.equal(early.residual[1], whole.residual[1])
    assert torch.equal(early.inputs[1], whole.inputs[1])
    assert torch.equal(at_the_map.inputs[1], whole.inputs[1])


def test_a_channel_is_replaced_in_the_last_round():
    """Each window gets the values of its own row, once a pass."""
    model, wanted, seen = RoundsModel().eval(), torch.full((2, 24), torch.nan), []
    anatomy(model)
    wanted[0, 2], wanted[1, 4] = 50.0, 60.0
    with torch.no_grad(), residual_replaced(model, 1, 5, wanted):
        model.layers[2].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        model(IDS)
        model(IDS)
    found = [sorted(set((one[..., 5] >= 50).nonzero()[:, 1].tolist())) for one in seen]
    assert found == [*[[]] * (ROUNDS - 1), [2], *[[]] * (ROUNDS - 1), [4]]


def test_a_pass_without_a_weight_runs_all_layers_in_all_rounds():
    """It is what a pass shows with the weight zeroed: an earlier round has changed what the layers below it read."""
    model, weight = RoundsModel().eval(), SuperWeight(2, 3, 5)
    body = checked_anatomy(model)
    model.layers[2].plumbing["narrow"].weight.data[3, 5] = 50
    with torch.no_grad():
        found = Passes(model, body, IDS).run_without([weight], 20).residual
        with zeroed(model, [weight]):
            whole = Passes(model, body, IDS).first.residual
    torch.testing.assert_close(found, whole[:3, :20])


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (Twice, r"layers\.0 runs 2 times in a pass, and not in rounds of all layers: 0, 0, 1, 1, 2, 2, 3, 3"),
        (OneLayer, r"layers\.0 runs 12 times in a pass, and not in rounds of all layers"),
        (lambda: RoundsModel(FirstRoundSquared), r"what layers\.0 returns is no sum .*% is left"),
    ],
)
def test_what_runs_otherwise_or_does_not_add_up_is_refused(make, found):
    """Layers that do not run in whole rounds are refused, and layers that do not add up in each."""
    with pytest.raises(ArchitectureError, match=found):
        anatomy(make().eval())


@pytest.mark.slow
@RECENT
@pytest.mark.parametrize("name", ["hrm_text", "reformer"])
def test_released_models_that_run_in_rounds_or_hand_on_several_tensors(name):
    """A planted super weight is located; the gate is green on a copy, and red with its place on each damaged one."""
    model = small_model(name)
    assert locate(model, token_ids=IDS).super_weights == ()
    planted = planted_at_some_token(model, [Planting(1, 3)])
    assert locate(model, token_ids=IDS).super_weights == planted
    assert_super_weights_preserved(copy.deepcopy(model), model, token_ids=TEXT)
    for damage in DAMAGES.values():
        damaged = copy.deepcopy(model)
        damage(anatomy(damaged).down_map(planted[0]).weight, planted[0])
        with pytest.raises(RobustnessError, match=re.escape(planted[0].place)):
            assert_super_weights_preserved(damaged, model, token_ids=TEXT)
