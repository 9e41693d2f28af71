"""A model with several residual streams is read in their mean, wherever a layer keeps them."""

from __future__ import annotations

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from swcheck import Planting, RobustnessError, assert_super_weights_preserved, locate, plant_super_weights, scaled
from swcheck.base.errors import ArchitectureError
from swcheck.lens.architecture.anatomy import anatomy, checked_anatomy
from swcheck.lens.observe import observe
from swcheck.lens.replace import residual_replaced
from swcheck.superweights.locating.passes import Passes
from tests.versions import RECENT
from tools.families_table import IDS
from tools.small_models import small_model

WIDTH, INNER, STREAMS = 16, 48, 3


def normed(stream):
    """Divide a stream by its root mean square."""
    return stream / stream.square().mean(-1, keepdim=True).sqrt()


class MixingBlock(nn.Module):
    """A decoder layer that reads a weighted sum of its streams, mixes them, and writes to each by a weight of the token's."""

    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(WIDTH, 2 * STREAMS)
        self.wide, self.narrow = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, streams):  # (B, T, S, H)
        reads, writes = self.gates(normed(streams.mean(2))).sigmoid().chunk(2, -1)  # (B, T, S)
        mixed = 0.9 * streams + 0.1 * streams.mean(2, keepdim=True)
        read = normed((reads[..., None] * streams).sum(2))
        written = self.narrow(torch.nn.functional.silu(self.wide(read)))
        return mixed + writes[..., None] * written[:, :, None]


class Layout(nn.Module):
    """The same layer for streams that are kept otherwise."""

    def __init__(self, axis):
        super().__init__()
        self.axis, self.block, self.power = axis, MixingBlock(), 1

    def forward(self, kept):
        if self.axis == -1:
            return self.block(kept.unflatten(-1, (STREAMS, WIDTH))).flatten(2) ** self.power
        return self.block(kept.movedim(self.axis, 2)).movedim(2, self.axis) ** self.power


class StreamsModel(nn.Module):
    """A language model of such layers."""

    def __init__(self, axis):
        super().__init__()
        torch.manual_seed(0)
        self.axis, self.config = axis, SimpleNamespace(hidden_size=WIDTH)
        self.words = nn.Embedding(64, WIDTH)
        self.layers = nn.ModuleList(Layout(axis) for _ in range(6))
        self.out = nn.Linear(WIDTH, 64)

    def forward(self, ids, use_cache=False):
        streams = self.words(ids)[:, :, None].repeat(1, 1, STREAMS, 1)
        kept = streams.flatten(2) if self.axis == -1 else streams.movedim(2, self.axis)
        for layer in self.layers:
            kept = layer(kept)
        streams = kept.unflatten(-1, (STREAMS, WIDTH)) if self.axis == -1 else kept.movedim(self.axis, 2)
        return SimpleNamespace(logits=self.out(streams.mean(2)))


@pytest.fixture(params=[2, 0, -1])
def model(request):
    """A model whose streams lie in one axis or another."""
    return StreamsModel(request.param).eval()


def test_streams_are_found(model):
    """The axis of the streams is seen in the pass, and what MLPs write is not taken for a plain sum."""
    body = checked_anatomy(model)
    assert (body.structure.streams, body.hidden, body.inner) == (model.axis, WIDTH, INNER)
    assert [place.path for place in body.structure.places[0]] == ["block.narrow"]
    assert not any(place.is_added for layer in body.structure.places for place in layer)


def test_a_super_weight_is_located(model):
    """What a planted one writes stands in the mean of the streams; without it there is none."""
    planted = plant_super_weights(model, [Planting(1, 3)], IDS)
    found = locate(model, token_ids=IDS)
    assert found.super_weights == planted
    assert found.written[0] == pytest.approx(found.activations[0].value, rel=0.05)
    with scaled(model, planted, 0.0):
        assert locate(model, token_ids=IDS).super_weights == ()


def test_all_layouts_give_the_same_stream():
    """The mean is the same number, however the streams are kept."""
    streams = []
    for axis in (2, 0, -1):
        model = StreamsModel(axis).eval()
        with torch.no_grad():
            streams.append(Passes(model, checked_anatomy(model), IDS).first.residual)
    assert streams[0].shape == (6, IDS.shape[1], WIDTH)
    for other in streams[1:]:
        torch.testing.assert_close(other, streams[0])


def test_a_channel_is_replaced_in_all_streams(model):
    """The mean is what was wanted at the tokens that were named, and the streams keep their distances."""
    wanted = torch.full((1, 8), torch.nan)
    wanted[0, 2] = 50.0
    with torch.no_grad(), observe(model, residual=[1]) as before:
        model(IDS[:, :8])
    with torch.no_grad(), residual_replaced(model, 1, 5, wanted), observe(model, residual=[1]) as after:
        model(IDS[:, :8])
    assert float(after.residual[1][0, 2, 5]) == pytest.approx(50.0)
    changed = (after.residual[1] != before.residual[1]).nonzero().tolist()
    assert changed == [[0, 2, 5]]


def test_a_layer_that_does_not_add_up_is_refused(model):
    """A layer that squares its streams is no sum of them and of what its modules write, token by token."""
    checked_anatomy(model)
    damaged = StreamsModel(model.axis).eval()
    damaged.layers[2].power = 2
    with pytest.raises(ArchitectureError, match="layers.2 returns is no sum"):
        anatomy(damaged)


@pytest.mark.slow
@RECENT
@pytest.mark.parametrize("name", ["deepseek_v4", "hy_v4", "gemma3n_text", "qwen4_exp_text"])
def test_released_models_with_several_streams(name):
    """A planted super weight is located in each; the gate is green on it, and red with its place where it is zeroed."""
    model = small_model(name)
    assert locate(model, token_ids=IDS).super_weights == ()
    expert = None if name == "gemma3n_text" else "shared"
    planted = plant_super_weights(model, [Planting(1, 3, expert=expert)], IDS)
    assert locate(model, token_ids=IDS).super_weights == planted
    text = IDS.repeat(2, 1)
    assert_super_weights_preserved(model, model, token_ids=text)
    damaged = copy.deepcopy(model)
    anatomy(damaged).down_map(planted[0]).weight[planted[0].row, planted[0].column] = 0
    with pytest.raises(RobustnessError, match=re.escape(planted[0].place)):
        assert_super_weights_preserved(damaged, model, token_ids=text)
