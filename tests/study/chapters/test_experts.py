"""The studies on a mixture of experts whose super weight stands in an expert: every chapter runs, and none skips experts."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure

from swcheck.base.records import Loaded, Outcome
from swcheck.study.catalogue import NAMES, chapter_of
from swcheck.study.chapters import prune, weights, where
from swcheck.study.common.setup import RATIO, setup_of
from swcheck.study.common.surgery import without_columns, without_rows
from swcheck.study.runner import measure_study
from swcheck.testing.planting import Planting, plant_super_weights, visited_experts
from tools.small_models import small_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setup(tiny):
    """A random Mixtral with a super weight in an expert of layer 1, on two short windows."""
    model = small_model("mixtral", vocabulary=tiny.model.config.vocab_size)
    ids = torch.tensor([tiny.tokenizer("def area(width, height):\n    return width * height\n")["input_ids"]])
    plant_super_weights(model, [Planting(1, 3, expert=visited_experts(model, 1, ids)[0])], ids)
    found = setup_of(Loaded(model, tiny.tokenizer, "mixture"))
    object.__setattr__(found, "ids", found.ids[:2, :48])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_chapter_runs(setup, name):
    """It measures, judges, prints and draws, and leaves every bit of the model as it was."""
    before = [one.clone() for one in setup.model.parameters()]
    chapter = chapter_of(name)
    study = measure_study(setup, name)

    assert len(chapter.table(study)) > 1
    chapter.draw(study, Figure())
    chapter.judge(study)
    assert all(torch.equal(one, other) for one, other in zip(before, setup.model.parameters(), strict=True))


def test_where_tries_the_matrices_of_experts(setup):
    """Scalars of the experts are zeroed, those of the super weight's expert among them."""
    study = measure_study(setup, "where")
    (weight,) = setup.weights

    assert study.value(where.DOWN, "mlp.experts.down_proj") == 1
    tried = [one.prompt for one in study.select(where.DAMAGE, "mlp.experts.down_proj", layer=1)]
    assert f"expert {weight.expert} [{weight.row}, {weight.column}]" in tried


def test_weights_rounds_the_matrices_of_experts(setup):
    """The super weight in an expert is clipped by plain rounding at few bits, or kept where the method keeps it."""
    matrices = setup.matrices()
    (weight,) = setup.weights
    holding = [one for one in matrices if setup.super_weight_places(one)]

    assert [one.path for one in holding] == [f"mlp.experts.down_proj[{weight.expert}]"]
    assert measure_study(setup, "weights").select(weights.KEPT)


def test_prune_says_what_it_cannot_put_back(setup):
    """Row and column of the expert are zeroed; the contribution is not put back, and the claim about it is not judged."""
    study = measure_study(setup, "prune")

    assert study.value(RATIO, prune.ROWS) > 0
    assert not study.select(RATIO, prune.AT_STRONGEST)
    outcomes = {verdict.check: verdict.outcome for verdict in prune.judge(study)}
    assert outcomes["paper: activation put back"] is Outcome.NOT_APPLICABLE
    assert any("experts are computed together" in note for note in setup.notes)


def test_row_and_column_of_an_expert(setup):
    """Within the block the row, or the column, of that expert's matrix is zero, and of no other."""
    (weight,) = setup.weights
    stack = setup.model.model.layers[1].mlp.experts.down_proj

    with without_rows(setup.model, [weight]):
        assert [not bool(matrix[weight.row].any()) for matrix in stack].index(True) == weight.expert
        assert int((stack == 0).sum()) == stack.shape[2]
    with without_columns(setup.model, [weight]):
        assert not stack[weight.expert][:, weight.column].any()
        assert int((stack == 0).sum()) == stack.shape[1]
