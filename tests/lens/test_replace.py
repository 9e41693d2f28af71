"""Parameters are replaced within a block and are themselves again behind it."""

from __future__ import annotations

import copy

import pytest
import torch

from swcheck.lens.replace import parameters_replaced

NAME = "model.layers.1.mlp.down_proj.weight"


class CopyingTable(dict):
    """A table of parameters that copies what is assigned into the tensor that is there, as compressed-tensors' does."""

    def __setitem__(self, key, value):
        if value is not None and self.get(key) is not None:
            self[key].data.copy_(value)
        else:
            super().__setitem__(key, value)


@pytest.mark.parametrize("table", [dict, CopyingTable])
def test_every_bit_is_as_before(random_llama, table):
    """Within the block the pass reads the new values; behind it object and bits are the old ones."""
    model = copy.deepcopy(random_llama)
    module = model.model.layers[1].mlp.down_proj
    module._parameters = table(module._parameters)
    old, ids = model.get_parameter(NAME), torch.arange(6)[None]
    before, logits = old.detach().clone(), model(ids).logits

    with parameters_replaced(model, {NAME: torch.zeros_like(old)}):
        assert not model.get_parameter(NAME).any()
        assert not torch.equal(model(ids).logits, logits)
    assert model.get_parameter(NAME) is old
    assert torch.equal(old, before)
    assert torch.equal(model(ids).logits, logits)
