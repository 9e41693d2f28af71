"""Whatever is nested and wherever it fails, the model and the process are as before."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.planted import Packed
from tools.reliability.programs import ACTIONS, BLOCKS, PROGRAMS, Step, run
from tools.reliability.traces import differences, state_of


@pytest.fixture(scope="module", params=["plain", "packed"])
def model(request, random_llama):
    model = copy.deepcopy(random_llama)
    if request.param == "packed":
        for layer in model.model.layers:
            layer.mlp.down_proj = Packed(layer.mlp.down_proj)
    return model


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(program=PROGRAMS)
def test_random_programs_leave_no_trace(model, program):
    """Any nesting of blocks and passes, ended by any error or an interrupt, restores everything."""
    before = state_of(model)
    run(model, program)
    assert differences(before, state_of(model)) == []


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_changes_something_or_is_refused(name, model):
    """In each block a pass runs, so that the programs do what they say; packed maps refuse some in words."""
    ended = run(model, [Step(name, 1, 0.5), Step("a pass", 1, 0.5)])
    assert ended in {"end", "UnrankedError", "BrokenError"}


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_ends_as_it_says(name, model):
    """An interrupt interrupts, an exception comes out, the rest answers."""
    expected = {"an interrupt": "KeyboardInterrupt", "an exception": "BrokenError", "an unknown token": "IndexError"}
    assert run(model, [Step(name, 1, 0.5)]) == expected.get(name, "end")


def test_traces_are_seen(random_llama):
    """One bit of one weight, a hook, the mode, and a draw of random numbers are each seen."""
    model = copy.deepcopy(random_llama)
    before = state_of(model)
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] *= 1.0000001
    hook = model.model.norm.register_forward_hook(lambda *_: None)
    model.lm_head.train()
    state = torch.get_rng_state()
    torch.rand(1)
    found = differences(before, state_of(model))
    torch.set_rng_state(state)
    hook.remove()
    assert [name.split(" of model")[0] for name in found] == ["random of torch", "bits", "modules of lm_head", "hooks"]
