"""A search in a streamed model reads each layer once, and finds what it finds in the loaded one."""

from __future__ import annotations

import pytest
import torch

import swcheck
from swcheck import Planting, plant_super_weights
from swcheck.lens.architecture.layer_by_layer import logits_of_windows
from swcheck.lens.architecture.storage import evaluating
from swcheck.loading.streaming import pager
from swcheck.loading.streaming.mapped_pages import can_give_back
from swcheck.loading.streaming.pager import page_weights, pager_of
from swcheck.superweights.locating import shared_reading
from swcheck.superweights.locating.locate import locate
from swcheck.superweights.locating.passes import Passes
from tests.versions import RECENT
from tools.families_table import GEOMETRIES, IDS
from tools.small_models import small_model

pytestmark = pytest.mark.skipif(not can_give_back(), reason="only Linux shows which pages were written to")


@pytest.fixture
def own_passes(monkeypatch):
    """The passes that were run by themselves, behind the first one."""
    asked, run_without = [], Passes.run_without

    def noted(self, removed, length):
        asked.append(tuple(removed))
        return run_without(self, removed, length)

    monkeypatch.setattr(Passes, "run_without", noted)
    return asked


@pytest.fixture
def streamed(monkeypatch, tmp_path):
    """Makes a streamed model of a model; of one this small every tensor counts."""
    monkeypatch.setattr(pager, "LEAST", 0)

    def stream(model):
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, dtype="auto").eval()
        page_weights(again, [tmp_path / "model.safetensors"])
        return again

    return stream


def test_each_layer_is_read_once(monkeypatch, own_passes):
    """Tiny's super weight is found, and zeroed, in one reading; a search that runs nothing ahead reads twice."""
    monkeypatch.setattr(pager, "LEAST", 0)
    model = swcheck.load("tiny", stream=True, dtype="bfloat16").model
    ids = torch.arange(40).view(1, -1)
    locate(model, token_ids=ids)  # finds the structure, which reads a layer
    read = [pager_of(model).bytes_read]
    found = locate(model, token_ids=ids)
    read.append(pager_of(model).bytes_read)
    assert [(one.layer, one.row, one.column) for one in found.super_weights] == [(1, 97, 301)]
    assert own_passes == []

    monkeypatch.setattr(shared_reading, "MOST_PASSES", 1)
    assert locate(model, token_ids=ids) == found
    assert len(own_passes) == 1
    assert pager_of(model).bytes_read - read[1] > 1.5 * (read[1] - read[0])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_is_found_is_what_is_found_in_the_loaded_model(streamed, geometry):
    """Every number of it, in every geometry, whether the passes that were run ahead are those that are asked for or not."""
    model = small_model("arcee", 2)
    GEOMETRIES[geometry](model, 1, None)
    loaded, found = locate(model, token_ids=IDS), locate(streamed(model), token_ids=IDS)
    assert found == loaded
    assert found.super_weights


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), [("arcee", 2), ("llama", 2), ("rwkv", 3)])
def test_super_weights_in_two_layers_are_found_in_one_reading(streamed, own_passes, name, seed):
    """A third pass begins beside the second one where that writes a super activation of its own, be it at another token."""
    model = small_model(name, seed)
    wanted = GEOMETRIES["two layers"](model, 1, None)
    own_passes.clear()
    assert set(locate(streamed(model), token_ids=IDS).super_weights) == set(wanted)
    assert own_passes == []


def test_a_value_that_is_none_in_the_end_changes_nothing(streamed, own_passes):
    """What is large after its layer, and a thousandth of what a later one writes, is zeroed in vain."""
    model = small_model("llama")
    plan = [Planting(0, 7, size=100), Planting(2, 5, size=1e5)]
    _, kept = plant_super_weights(model, plan, IDS)
    loaded = locate(model, token_ids=IDS)
    own_passes.clear()
    assert locate(streamed(model), token_ids=IDS) == loaded
    assert loaded.super_weights == (kept,)
    assert own_passes == []


@pytest.mark.slow
def test_no_more_passes_run_side_by_side_than_their_number_allows(streamed, own_passes, monkeypatch):
    """Behind it the search runs them by itself, as ever."""
    model = small_model("arcee", 2)
    wanted = GEOMETRIES["two layers"](model, 1, None)
    monkeypatch.setattr(shared_reading, "MOST_PASSES", 2)
    assert set(locate(streamed(model), token_ids=IDS).super_weights) == set(wanted)
    assert len(own_passes) == 1


@RECENT
def test_layers_that_do_not_run_hand_on_what_they_get(streamed):
    """Those of Mllama that read images."""
    model = small_model("mllama")
    wanted = GEOMETRIES["one"](model, 1, None)
    found = locate(streamed(model), token_ids=IDS)
    assert found == locate(model, token_ids=IDS)
    assert found.super_weights == wanted


@RECENT
@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v4", "gemma3n_text", "qwen4_exp_text"])
def test_a_streamed_model_of_several_residual_streams_is_read_as_the_loaded_one(streamed, name):
    """Its passes are run whole, since only the mean of the streams is kept; nats of many windows agree too."""
    model = small_model(name)
    wanted = GEOMETRIES["one"](model, 1, None if name == "gemma3n_text" else "shared")
    again = streamed(model)
    assert locate(again, token_ids=IDS).super_weights == wanted
    windows = IDS.view(4, 6)
    with evaluating(again):
        expected = model(windows, use_cache=False).logits
        torch.testing.assert_close(torch.cat([*logits_of_windows(again, windows, 2)]), expected)
