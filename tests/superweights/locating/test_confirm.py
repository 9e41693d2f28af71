"""Known super weights are verified by a pass that ends after their layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import swcheck
from swcheck.base.errors import CoordinateError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import checked_anatomy
from swcheck.loading.streaming import pager
from swcheck.loading.streaming.mapped_pages import can_give_back
from swcheck.loading.streaming.pager import pager_of
from swcheck.superweights.locating.confirm import confirm
from swcheck.superweights.locating.locate import locate
from tests.checkpoints import copy_of_tiny, forgotten

IDS = torch.arange(0, 30).view(1, -1)


def test_what_locate_finds_is_confirmed(tiny):
    """With its value, and with what it writes, at the token of its activation."""
    found = locate(tiny.model, token_ids=IDS)
    [one] = confirm(tiny.model, found.super_weights, IDS)
    assert one.is_confirmed
    assert one.weight == found.super_weights[0]
    assert one.written == pytest.approx(found.written[0])
    assert (one.position, one.residual) == (found.activations[0].position, pytest.approx(found.activations[0].value))


def test_what_writes_nothing_or_has_another_value_is_not(tiny):
    """Another column, and a published value of another sign, are told apart from a super weight."""
    [known] = locate(tiny.model, token_ids=IDS).super_weights
    others = [replace(known, column=known.column - 1, value=None), replace(known, value=-known.value)]
    assert [one.is_confirmed for one in confirm(tiny.model, others, IDS)] == [False, False]
    with pytest.raises(CoordinateError):
        confirm(tiny.model, [SuperWeight(9, 0, 0)], IDS)


def test_later_layers_are_not_run(tiny):
    """The pass ends after the last layer that is asked about."""
    runs, layers = [], checked_anatomy(tiny.model).layers
    handles = [
        layer.register_forward_hook(lambda *_, number=number: runs.append(number))
        for number, layer in enumerate(layers)
    ]
    confirm(tiny.model, locate(tiny.model, token_ids=IDS).super_weights, IDS)
    runs.clear()
    confirm(tiny.model, [SuperWeight(1, 97, 301)], IDS)
    for handle in handles:
        handle.remove()
    assert runs == [0, 1]


@pytest.mark.skipif(not can_give_back(), reason="only Linux shows which pages were written to")
def test_of_a_streamed_model_only_these_layers_are_read(monkeypatch, tmp_path):
    """Two of tiny's five layers, and one for its structure: less than seven tenths of what locating reads (files are read in units of 16 pages)."""
    monkeypatch.setattr(pager, "LEAST", 0)
    folder = copy_of_tiny(tmp_path / "tiny", forgotten)
    verified, searched = (swcheck.load(folder, stream=True, dtype="bfloat16").model for _ in range(2))
    [one] = confirm(verified, [SuperWeight(1, 97, 301)], IDS)
    assert one.is_confirmed
    locate(searched, token_ids=IDS)
    assert 0 < pager_of(verified).bytes_read < 0.7 * pager_of(searched).bytes_read
