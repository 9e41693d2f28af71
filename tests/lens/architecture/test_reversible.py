"""Layers that hand on several tensors are read in the one to which their MLPs' outputs are added."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from swcheck import Planting, locate, plant_super_weights, scaled
from swcheck.base.errors import ArchitectureError
from swcheck.lens.architecture.anatomy import anatomy, checked_anatomy
from swcheck.lens.observe import observe
from swcheck.lens.replace import residual_replaced
from tests.lens.architecture.test_streams import INNER, WIDTH, normed
from tools.families_table import IDS


class Reversible(nn.Module):
    """A reversible layer: attention, here a causal mean, reads one stream and adds to the other, and the MLP the other way."""

    def __init__(self):
        super().__init__()
        self.look_back = nn.Linear(WIDTH, WIDTH, bias=False)
        self.wide, self.narrow = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, *, attended, written):
        count = torch.arange(1, written.shape[1] + 1)[:, None]
        attended = attended + self.look_back(normed(written).cumsum(1) / count)
        return self.returned(attended, written, self.narrow(torch.nn.functional.silu(self.wide(normed(attended)))))

    def returned(self, attended, written, output):
        return attended, written + output


class Swapped(Reversible):
    """The same layer, which returns its streams in another order than it gets them."""

    def returned(self, attended, written, output):
        return written + output, attended, None


class Both(Reversible):
    """A layer whose MLP writes to both streams."""

    def returned(self, attended, written, output):
        return attended + output, written + output


class Squared(Reversible):
    """A layer whose stream is no sum."""

    def returned(self, attended, written, output):
        return attended, (written + output) * written.abs()


class ReversibleModel(nn.Module):
    """A language model of such layers, whose head reads both streams."""

    def __init__(self, block=Reversible):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(64, WIDTH), nn.Linear(2 * WIDTH, 64)
        self.layers, self.is_swapped = nn.ModuleList(block() for _ in range(6)), block is Swapped

    def forward(self, ids, use_cache=False):
        attended = written = self.words(ids)
        for layer in self.layers:
            first, second, *_ = layer(attended=attended, written=written)
            attended, written = (second, first) if self.is_swapped else (first, second)
        return SimpleNamespace(logits=self.out(torch.cat([attended, written], -1)))


@pytest.mark.parametrize(("block", "number"), [(Reversible, 1), (Swapped, 0)])
def test_the_tensor_that_mlps_add_to_is_found(block, number):
    """It is told by what the pass adds up to, whatever the order; the stream gets just what an MLP writes."""
    body = checked_anatomy(ReversibleModel(block).eval())
    assert (body.structure.tensor, body.structure.streams, body.hidden) == (number, None, WIDTH)
    assert [(place.path, place.is_added) for place in body.structure.places[2]] == [("narrow", True)]


@pytest.mark.parametrize("block", [Reversible, Swapped])
def test_a_super_weight_is_located(block):
    """What a planted one writes stands in that tensor; without it there is none."""
    model = ReversibleModel(block).eval()
    assert locate(model, token_ids=IDS).super_weights == ()
    planted = plant_super_weights(model, [Planting(1, 3)], IDS)
    found = locate(model, token_ids=IDS)
    assert found.super_weights == planted
    assert found.written[0] == pytest.approx(found.activations[0].value, rel=0.05)
    with scaled(model, planted, 0.0):
        assert locate(model, token_ids=IDS).super_weights == ()


@pytest.mark.parametrize("block", [Reversible, Swapped])
def test_a_channel_is_replaced_in_that_tensor_alone(block):
    """What a layer returns beside it stays as it was."""
    model, wanted, returned = ReversibleModel(block).eval(), torch.full((1, 8), torch.nan), []
    wanted[0, 2] = 50.0
    with torch.no_grad(), observe(model, residual=[1]) as before:
        model(IDS[:, :8])
    model.layers[2].register_forward_pre_hook(lambda _module, _args, given: returned.append(given), with_kwargs=True)
    with torch.no_grad(), residual_replaced(model, 1, 5, wanted), observe(model, residual=[1]) as after:
        model(IDS[:, :8])
        model(IDS[:, :8])
    assert float(after.residual[1][0, 2, 5]) == 50
    assert (after.residual[1] != before.residual[1]).nonzero().tolist() == [[0, 2, 5]]
    assert torch.equal(returned[0]["written"], after.residual[1])
    assert not (returned[0]["attended"] == 50).any()


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (Both, "layers hands on 2 tensors, and MLPs do not add to just one of them"),
        (Squared, r"what layers\.0 returns is no sum of its input and what its modules return: \d+\.\d+% is left"),
    ],
)
def test_what_cannot_be_told_or_does_not_add_up_is_refused(block, found):
    """A model whose MLPs write to several tensors, or whose stream is no sum, is refused with what was seen."""
    with pytest.raises(ArchitectureError, match=found):
        anatomy(ReversibleModel(block).eval())
