"""The honest slow answer: scalars zeroed one by one, all of the super weight's matrix, some of every other; ``locate`` agrees.

Many edits run in one pass: each is an entry of the batch, and every entry reads the same short prompt. Zeroing the scalar
(row, column) of a linear map takes ``weight times input`` from one output channel, so that nothing before the map is
computed anew. The damage of an edit is the mean KL divergence of the next token from the intact model's, in nats. B
edits, T time, H residual width.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from swcheck.base.evaluation_text import evaluation_text
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.lens.intervene import zeroed
from swcheck.lens.likelihood import token_nats
from swcheck.lens.observe import observe
from swcheck.lens.tokens import token_windows
from swcheck.superweights.locating.locate import locate
from swcheck.superweights.locating.passes import layers_skipped

TEXT = "def area(width, height):\n    return width * height\n"
AT_ONCE = 1024
SAMPLE = 24
FAR = 1000
"""The first is so many times as damaging as the second."""


@contextmanager
def edits(module: nn.Linear, flat: torch.Tensor) -> Iterator[None]:
    """Entry b of the batch runs without the scalars ``flat[b]`` of ``module``, places in its matrix, int64 ``(B, K)``."""

    def without(_module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        entries, out = torch.arange(len(flat)), output.clone()
        for places in flat.T:
            rows, columns = places // module.in_features, places % module.in_features
            out[entries, :, rows] -= module.weight[rows, columns][:, None] * args[0][entries, :, columns]
        return out

    hook = module.register_forward_hook(without)
    try:
        yield
    finally:
        hook.remove()


def damage(model, ids, layer, module, flat, at_once=AT_ONCE):
    """The damage of each edit, float32 ``(B,)``: ``flat`` are places in the matrix of a module, ``(B,)`` or sets of K of
    them, ``(B, K)``.

    The layers before it hand on what they gave before. Position 0 sees BOS alone and predicts no text: left out.
    """
    body, length = anatomy(model), ids.shape[1]
    found = []
    with torch.no_grad():
        with observe(model, residual=range(len(body.layers))) as sight:
            before = model(ids, use_cache=False).logits[:, 1:].log_softmax(-1)
        for part in flat.split(at_once):
            kept = {index: sight.residual[index].expand(len(part), -1, -1) for index in range(layer)}
            with layers_skipped(body, layer, kept, length, {}), edits(module, part.view(len(part), -1)):
                after = model(ids.expand(len(part), -1), use_cache=False).logits[:, 1:].log_softmax(-1)
            found.append((before.exp() * (before - after)).sum(-1).mean(1))
    return torch.cat(found)


def prompt(loaded, length):
    """The first tokens of the text, BOS included, int64 ``(1, length)``."""
    return torch.tensor([loaded.tokenizer(TEXT)["input_ids"][:length]])


def maps(model):
    """Every linear map of the layers, with the number of its layer and its name."""
    for number, layer in enumerate(anatomy(model).layers):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                yield number, name, module


@pytest.fixture(scope="module")
def first(tiny):
    """What ``locate`` says."""
    (weight,) = locate(tiny.model, tiny.tokenizer).super_weights
    return weight


def test_one_edit_is_the_model_without_the_scalar(tiny, first):
    """What the oracle computes for an entry of its batch is what the model says with that scalar set to zero."""
    ids = prompt(tiny, 12)
    module = anatomy(tiny.model).down_projections[first.layer]
    chosen = [first, SuperWeight(first.layer, 3, 5), SuperWeight(first.layer, first.row, 0)]
    flat = torch.tensor([weight.row * module.in_features + weight.column for weight in chosen])
    found = damage(tiny.model, ids, first.layer, module, flat)

    with torch.no_grad():
        before = tiny.model(ids).logits[:, 1:].log_softmax(-1)
        for weight, value in zip(chosen, found.tolist(), strict=True):
            with zeroed(tiny.model, [weight]):
                after = tiny.model(ids).logits[:, 1:].log_softmax(-1)
            assert value == pytest.approx(float((before.exp() * (before - after)).sum(-1).mean()), rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_of_all_scalars_of_its_matrix_the_located_one_is_first_by_far(tiny, first):
    """All 131,072 zeroed one by one: no other comes near, and on real text the next ones change nothing."""
    module = anatomy(tiny.model).down_projections[first.layer]
    found = damage(tiny.model, prompt(tiny, 2), first.layer, module, torch.arange(module.weight.numel()))
    order = [divmod(flat, module.in_features) for flat in found.topk(4).indices.tolist()]
    worst = found.topk(2).values.tolist()

    assert len(found) == 131_072
    assert torch.isfinite(found).all()
    assert order[0] == (first.row, first.column)
    assert worst[0] > FAR * worst[1]

    ids = token_windows(tiny.tokenizer, evaluation_text(), count=8, length=128)
    intact = token_nats(tiny.model, ids).mean()
    ratios = []
    for row, column in order:
        with zeroed(tiny.model, [SuperWeight(first.layer, row, column)]):
            ratios.append(math.exp(float(token_nats(tiny.model, ids).mean() - intact)))
    assert ratios[0] > 1000
    assert all(ratio < 1.01 for ratio in ratios[1:])


@pytest.mark.slow
def test_in_no_other_matrix_does_a_scalar_come_near(tiny, first):
    """Of every linear map the largest weights, those that write the most, and random ones: none is a second super weight."""
    ids, chance = prompt(tiny, 12), torch.Generator().manual_seed(0)
    worst: dict[tuple[int, str], float] = {}
    for layer, name, module in maps(tiny.model):
        weight = module.weight.detach().abs()
        strength = weight * largest_inputs(tiny.model, module, ids)
        flat = torch.cat(
            [weight.flatten().topk(SAMPLE).indices, strength.flatten().topk(SAMPLE).indices,
             torch.randint(weight.numel(), (SAMPLE,), generator=chance)]
        ).unique()  # fmt: skip
        found = damage(tiny.model, ids, layer, module, flat)
        here = flat == first.row * module.in_features + first.column
        if module is anatomy(tiny.model).down_projections[first.layer]:
            assert int(here.sum()) == 1
            own, found = float(found[here]), found[~here]
        worst[layer, name] = float(found.max())

    assert len(worst) == 35
    assert own > FAR / 10 * max(worst.values())


def largest_inputs(model, module, ids):
    """The largest magnitude that each input channel of a module has over the tokens of a prompt."""
    seen = []
    hook = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0].abs().amax(0)))
    with torch.no_grad():
        model(ids, use_cache=False)
    hook.remove()
    return seen[0]


@pytest.mark.slow
def test_both_follow_a_neuron_that_was_moved(tiny, first):
    """With its inner neuron at another place the slow answer moves, and ``locate`` with it."""
    model, other = copy.deepcopy(tiny.model), 17
    mlp = model.model.layers[first.layer].mlp
    swapped = torch.arange(mlp.down_proj.in_features)
    swapped[[first.column, other]] = swapped[[other, first.column]]
    with torch.no_grad():
        for part in (mlp.gate_proj, mlp.up_proj):
            part.weight.copy_(part.weight[swapped])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, swapped])
    row = first.row * mlp.down_proj.in_features + torch.arange(mlp.down_proj.in_features)
    found = damage(model, prompt(tiny, 12), first.layer, mlp.down_proj, row)
    (again,) = locate(model, tiny.tokenizer).super_weights

    assert int(found.argmax()) == other
    assert (again.layer, again.row, again.column) == (first.layer, first.row, other)


def test_of_a_pair_no_single_scalar_tells_and_all_pairs_do(tiny_pair):
    """In ``tiny-pair`` the worst of single edits is mild; of all pairs of the strongest writers the located one is first."""
    model = tiny_pair.model
    weights = locate(model, tiny_pair.tokenizer).super_weights
    (layer,) = {weight.layer for weight in weights}
    module, ids = anatomy(model).down_projections[layer], prompt(tiny_pair, 12)
    places = {weight.row * module.in_features + weight.column for weight in weights}
    strength = module.weight.detach().abs() * largest_inputs(model, module, ids)
    writers = strength.flatten().topk(32).indices
    pairs = writers[torch.tensor(list(itertools.combinations(range(len(writers)), 2)))]
    single, double = (damage(model, ids, layer, module, flat) for flat in (writers, pairs))
    worst = double.topk(2).values.tolist()

    assert len(places) == 2
    assert set(pairs[int(double.argmax())].tolist()) == places
    assert worst[0] > 20 * worst[1]
    assert worst[0] > 20 * float(single.max())
