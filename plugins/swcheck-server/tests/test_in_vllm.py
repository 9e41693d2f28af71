"""The extension in the worker: its hooks on modules shaped as vLLM's, and a gate through it over real HTTP."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
import torch
from server_double import Mlp, RowParallelLinear, Served, Worker, serving
from swcheck_server import ENGINE
from swcheck_server.in_vllm import find
from torch import nn

import swcheck
from swcheck import (
    Capability,
    CheckpointError,
    Outcome,
    RobustnessError,
    SuperWeight,
    all_verdicts,
    assert_perplexity_within,
    assert_super_weights_preserved,
    check_engine,
    observe,
    token_windows,
)
from swcheck.lens.intervene import scaled
from swcheck.superweights.subject.as_subject import as_subject

WEIGHT = SuperWeight(1, 97, 301)
IDS = [0, 5, 9, 33, 2, 77]


@pytest.fixture(scope="module")
def base():
    return swcheck.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def reference(base):
    return as_subject(base, token_ids=token_windows(base.tokenizer, base.text, count=2, length=48))


def load(url):
    return ENGINE.load(url, reference="tiny", device="cpu", dtype=None)


def kept(worker, kind, layer, width):
    values = np.frombuffer(base64.b64decode(worker.swcheck_tensor(kind, layer)), "<f4")
    return torch.from_numpy(values.copy().reshape(-1, width))


# --- the hooks -----------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_what_torch_computes(base):
    """The stream after each layer, and what its down projection reads."""
    worker = Worker(base)
    assert worker.swcheck_shape() == {"version": 1, "shape": [5, 256, 512]}
    worker.swcheck_keep([0, 1, 4], [1])
    worker.run(IDS)
    with torch.no_grad(), observe(base.model, residual=[0, 1, 4], inputs=[1]) as sight:
        base.model(torch.tensor([IDS]))
    for layer in (0, 1, 4):
        assert torch.allclose(kept(worker, "residual", layer, 256), sight.residual[layer][0], atol=1e-3)
    assert torch.allclose(kept(worker, "inputs", 1, 512), sight.inputs[1][0], atol=1e-3)
    assert worker.swcheck_tokens()["positions"] == [0, 1, 2, 3, 4, 5]


def test_nothing_is_kept_before_or_behind(base):
    """Each question begins anew, and none leaves a hook."""
    worker = Worker(base)
    worker.swcheck_shape()
    worker.swcheck_keep([1], [])
    worker.run(IDS)
    worker.swcheck_keep([1], [])
    worker.run(IDS[:2])
    assert worker.swcheck_tokens() == {"ids": [0, 5], "positions": [0, 1], "rows": {"residual 1": 2}}
    worker.swcheck_keep([], [])
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in worker.model.modules())


def test_a_weight_is_read_and_overridden_wherever_it_is_stored(base):
    """By what the map does; a correction is not read back, and is undone by the next client."""
    worker = Worker(base)
    worker.swcheck_shape()
    plain = worker.run(IDS)
    assert worker.swcheck_weight(1, 97, 301, 150.0)["value"] == pytest.approx(2.625)
    worker.swcheck_correct([[1, 97, 301, -2.625]])
    assert worker.swcheck_weight(1, 97, 301, 150.0)["value"] == pytest.approx(2.625)
    with torch.no_grad(), scaled(base.model, [WEIGHT], 0.0):
        wanted = base.model(torch.tensor([IDS])).logits[0]
    assert torch.allclose(worker.run(IDS), wanted, atol=2e-2)
    assert not torch.allclose(worker.run(IDS), plain, atol=1)
    worker.swcheck_shape()
    assert torch.equal(worker.run(IDS), plain)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("swcheck_keep", ([5], [])),
        ("swcheck_keep", (["0"], [])),
        ("swcheck_weight", (1, 256, 0, 1.0)),
        ("swcheck_weight", (1, 0, 512, 1.0)),
        ("swcheck_weight", (1, 0, 0, float("nan"))),
        ("swcheck_correct", ([[1, 0, True, 1.0]],)),
        ("swcheck_correct", ([[1, 0, 0, "__import__('os')"]],)),
    ],
)
def test_it_takes_numbers_of_its_own_layers_alone(base, method, given):
    """Anything else is refused before a hook is put."""
    worker = Worker(base)
    with pytest.raises(ValueError, match="ask for swcheck_shape first"):
        getattr(worker, method)(*given)
    worker.swcheck_shape()
    with pytest.raises(ValueError, match="is no "):
        getattr(worker, method)(*given)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in worker.model.modules())


class Experts(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.shared_expert = Mlp(mlp)


def test_a_model_whose_maps_are_not_one_a_layer_is_said(base):
    """Experts, other widths, other layers: in words, and without a guess."""
    worker = Worker(base)
    with pytest.raises(LookupError, match="0 stacks of 6 layers"):
        find(worker.model, 6, 256)
    with pytest.raises(LookupError, match="to 255 channels"):
        find(worker.model, 5, 255)
    worker.model.layers[3].mlp = Experts(base.model.model.layers[3].mlp)
    assert "0 stacks of 5 layers with one RowParallelLinear" in worker.swcheck_shape()["reason"]
    worker.model.layers[3].mlp = nn.ModuleList([RowParallelLinear(nn.Linear(512, 256, bias=False)) for _ in "ab"])
    assert "0 stacks of 5 layers with one RowParallelLinear" in worker.swcheck_shape()["reason"]


# --- over HTTP -----------------------------------------------------------------------------------------------------------


def test_conformance(base):
    """Values and overrides are what they say, and nothing is left of them."""
    with serving(Served(base, worker=Worker(base))) as url:
        (reading,) = check_engine("server", [url])
    assert reading.contribution == pytest.approx(2.625, rel=1e-4)


def test_the_same_model_passes_every_check(base, reference):
    """With the activation and the collapse of torch; the report says what was sent."""
    served = Served(base, worker=Worker(base))
    with serving(served) as url:
        found = all_verdicts(as_subject(load(url)), reference)
    assert {verdict.outcome for verdict in found.values()} == {Outcome.PASSED}
    assert found["super activations"].measured == pytest.approx(1, abs=1e-4)
    assert found["dependence"].measured == pytest.approx(1, abs=1e-2)
    assert "numbers of layers and of scalars for its extension" in found["perplexity"].facts["runtime"]
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in served.worker.model.modules())


@pytest.mark.parametrize("alpha", [0.0, 0.5], ids=["zeroed", "halved"])
def test_a_damaged_super_weight_is_red_with_its_cause(reference, alpha):
    """It is seen in what it writes, and proven by giving it back in the worker."""
    other = swcheck.load("tiny", device="cpu")
    with torch.no_grad():
        other.model.model.layers[1].mlp.down_proj.weight[97, 301] *= alpha
    check = assert_super_weights_preserved if alpha else assert_perplexity_within
    with serving(Served(other, worker=Worker(other))) as url, pytest.raises(RobustnessError) as caught:
        check(load(url), reference)
    verdict = caught.value.verdict
    assert verdict.cause_kind == "super_weight"
    if alpha:
        assert verdict.measured == pytest.approx(alpha, abs=1e-3)
    else:
        assert any(name == "proof" and "100% of the loss returns" in words for name, words in verdict.detail)


def test_every_change_of_weights_has_a_salt_of_its_own(base):
    """No keys and values that were computed with other weights are read from a cache."""
    served = Served(base, worker=Worker(base))
    ids = torch.tensor(IDS)
    with serving(served) as url:
        runtime = load(url).model
        before = len(served.asked)
        runtime.log_probabilities(ids)
        with runtime.overridden({WEIGHT: 0.0}):
            runtime.log_probabilities(ids)
        runtime.log_probabilities(ids)
    salts = [body["cache_salt"] for body in served.asked[before:] if body["prompt"] == IDS]
    assert len(salts) == len(set(salts)) == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"skips": 3}, "or of this one not all"),
        ({"others": 2}, "it has to have no other requests"),
        ({"compiled": True}, "its hooks saw 0 of .* tokens at residual 0: --enforce-eager"),
    ],
    ids=["cache", "others", "compiled"],
)
def test_a_worker_whose_hooks_do_not_see_a_prompt_shows_nothing(base, reference, fault, words):
    """Tokens behind a cache, another client's, or none at all: not applicable, with the reason."""
    with serving(Served(base, worker=Worker(base, **fault))) as url:
        candidate = as_subject(load(url))
        assert not candidate.runtime.can(Capability.VALUES)
        verdict = assert_super_weights_preserved(candidate, reference)
        assert verdict.outcome is Outcome.NOT_APPLICABLE
        assert re.search(words, verdict.summary)


def test_tokens_of_others_in_a_later_pass_are_an_error(base):
    """Not another prompt's numbers in the place of this one's."""
    worker = Worker(base)
    with serving(Served(base, worker=worker)) as url:
        runtime = load(url).model
        worker.others = 2
        with pytest.raises(CheckpointError, match="it has to have no other requests"):
            runtime.values(torch.tensor(IDS), residual=[1])


def test_a_model_that_several_workers_share_shows_no_tensors(base):
    """Each has a part of the input of a down projection."""
    with serving(Served(base, worker=Worker(base), workers=2)) as url:
        runtime = load(url).model
    assert not runtime.can(Capability.VALUES)
    assert "2 workers share the model" in runtime.advice
