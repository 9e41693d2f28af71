"""Section 3.1 on the embedded model: of all linear maps one early down projection holds what the model hangs on."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from swcheck import load
from swcheck.base.records import Outcome, SuperWeight
from swcheck.study.catalogue import chapter_of
from swcheck.study.chapters import where
from swcheck.study.common.record import ZEROED
from swcheck.study.common.setup import RATIO, restored_after
from swcheck.study.runner import measure_study
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory
from tests.planted import Packed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _few():
    """Two short windows are enough to see a collapse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, "WINDOWS", 2)
        patch.setattr(where, "LENGTH", 64)
        yield


@pytest.fixture(scope="module")
def study(tiny_setup):
    return measure_study(tiny_setup, "where")


def test_the_claim_holds_on_the_embedded_model(study, tiny_setup):
    """The honest slow answer agrees with what was located: the worst of all candidates is the super weight."""
    (verdict,) = where.judge(study)
    (weight,) = tiny_setup.weights
    worst = where.ranked_damages(study)[0]

    assert verdict.outcome is Outcome.PASSED
    assert verdict.measured == weight.layer / 5
    assert (worst.layer, worst.condition, worst.prompt) == (1, "mlp.down_proj", f"[{weight.row}, {weight.column}]")
    assert worst.value > 3
    assert all(
        one.value < 0.1 for one in where.ranked_damages(study) if (one.layer, one.condition) != (1, "mlp.down_proj")
    )


def test_every_linear_map_is_asked(study):
    """Seven maps in five layers, each with scalars alone and one set; the located super weights stand beside them."""
    assert len(where.map_names(study)) == 7
    assert len(where.tested_layers(study)) == 5
    for layer in where.tested_layers(study):
        for path in where.map_names(study):
            counts = [one.x for one in study.select(where.DAMAGE, path, layer=layer)]
            assert counts.count(where.TOGETHER) == 1
            assert where.STRONGEST <= counts.count(1) <= where.STRONGEST + where.LARGEST
    assert study.value(where.LAYER, prompt="[97, 301]") == 1
    assert study.value(RATIO, where.ALONE, layer=1, prompt="[97, 301]") > 100
    assert study.value(where.DAMAGE, ZEROED) > 3


def test_the_model_is_as_before(study, tiny_setup):
    """Not one bit of a map differs after the study."""
    assert study.model == "tiny"
    assert torch.equal(tiny_setup.nats(), tiny_setup.intact())


def test_a_pair_of_which_each_is_harmless_is_found_as_a_set(tiny_setup):
    """Two neurons that write the same activation together: each alone costs nothing, and the set is still the worst."""
    mlp = tiny_setup.model.model.layers[1].mlp
    gate, up, down = (one.weight.data for one in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    pair = SuperWeight(1, 97, 301), SuperWeight(1, 97, 400)
    with restored_after([gate, up, down]):
        gate[400], up[400] = gate[301], up[301]
        down[:, 400] = 0
        down[97, 301] = down[97, 400] = 0.75 * down[97, 301]
        study = measure_study(replace(tiny_setup, weights=pair, intact_nats={}), "where")
    alone = [one.value for one in where.ranked_damages(study) if one.x == 1]
    (verdict,) = where.judge(study)

    assert max(alone) < math.log(1.1)
    assert verdict.outcome is Outcome.PASSED
    assert where.ranked_damages(study)[0].x == where.TOGETHER
    assert "[97, 301]" in where.ranked_damages(study)[0].prompt
    assert "[97, 400]" in where.ranked_damages(study)[0].prompt


def test_a_super_weight_in_a_late_layer_is_a_counter_example(tiny_setup):
    """Three layers that do nothing in front of the others: the same function, and its super weight in layer 4 of 8."""
    model = load("tiny").model
    nothing = copy.deepcopy(model.model.layers[0])
    with torch.no_grad():
        nothing.self_attn.o_proj.weight.zero_()
        nothing.mlp.down_proj.weight.zero_()
    model.model.layers = nn.ModuleList([*(copy.deepcopy(nothing) for _ in range(3)), *model.model.layers])
    model.config.num_hidden_layers = 8
    subject = replace(tiny_setup.subject, held=HeldModel(model), memory=Memory())
    late = replace(tiny_setup, subject=subject, weights=(SuperWeight(4, 97, 301),), intact_nats={})
    (verdict,) = where.judge(measure_study(late, "where"))

    assert torch.allclose(late.intact(), tiny_setup.intact(), atol=1e-4)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.measured == 0.5
    assert verdict.cause.startswith("a counter-example: the worst is layer 4 mlp.down_proj [97, 301]")
    assert verdict.cause.endswith("no early layer")


def test_a_model_that_hangs_on_no_few_scalars_is_no_place_for_the_claim(tiny_setup):
    """Once collapsed there is nothing left to collapse."""
    with tiny_setup.super_weights_zeroed():
        (verdict,) = where.judge(measure_study(replace(tiny_setup, intact_nats={}), "where"))

    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert "no few scalars" in verdict.summary


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"condition": "self_attn.o_proj"}, "no down projection"),
        ({"value": math.nan}, "a counter-example: the worst is layer 3"),
    ],
)
def test_another_map_or_no_number_is_red(study, change, words):
    """A worse scalar of another map, or one whose damage is no number, is named."""
    place = next(one for one in where.ranked_damages(study) if (one.layer, one.condition) == (3, "mlp.down_proj"))
    broken = replace(study, measurements=(*study.measurements, replace(place, **{"value": 9.0, **change})))
    (verdict,) = where.judge(broken)

    assert verdict.outcome is Outcome.FAILED
    assert words in verdict.cause


def test_candidates_are_the_strongest_and_the_largest():
    """What writes most counts by weight times input, what is largest by weight alone; the strongest come together."""
    weight = torch.tensor([[1.0, 8.0, 0.5], [3.0, 2.0, -9.0]])
    found = list(where.candidates(weight, torch.tensor([10.0, 1.0, 0.1])))

    assert found[:3] == [((1, 0),), ((0, 0),), ((0, 1),)]
    assert found[3] == ((1, 2),)
    assert found[-1] == ((1, 0), (0, 0), (0, 1), (1, 1))


def test_the_picture_has_a_cell_for_every_map(study):
    """Layers and maps are the axes, every cell has its number, the located super weight its frame."""
    figure = Figure()
    where.draw(study, figure)

    assert len(figure.axes[0].texts) == 35
    assert len(figure.axes[0].patches) == 1
    assert figure.axes[0].get_xlabel() == "layer"
    assert figure.axes[1].get_ylabel() == "worst damage, nats per token"


def test_the_table_is_the_map(study):
    """One row a layer, one column a map."""
    head, *rows = where.table(study)

    assert len(head) == 8
    assert len(rows) == 5
    assert rows[1][-1].endswith("(1)")


@pytest.mark.parametrize("name", ["weights", "w8a8", "where"])
def test_a_model_that_is_packed_throughout_is_told_so(tiny_setup, name):
    """Without one plain map these studies measure nothing, claim nothing, and still have a table and a picture."""
    one = chapter_of(name)
    model = load("tiny").model
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for path, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, path, Packed(linear))
    subject = replace(tiny_setup.subject, held=HeldModel(model), memory=Memory())
    study = measure_study(replace(tiny_setup, subject=subject, intact_nats={}, notes=[]), name)

    assert [verdict.outcome for verdict in one.judge(study)] == [Outcome.NOT_APPLICABLE]
    assert "no linear map keeps a plain weight" in one.judge(study)[0].summary
    assert study.notes[0].startswith("linear maps without a plain weight, left as they are: 35")
    assert len(one.table(study)) == 1
    one.draw(study, Figure())
