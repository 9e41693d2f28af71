"""The curves that reports draw: the numbers of a plain pass with hooks, and nothing that would load a model again."""

from __future__ import annotations

import math

import pytest
import torch

from swcheck import zeroed
from swcheck.base.records import SuperWeight
from swcheck.superweights.measurements.curves import labelled, layer_curves, position_curve
from swcheck.superweights.measurements.inputs import prompt_ids
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.memory import Memory
from swcheck.superweights.subject.subject import Subject
from tests.planted import plant

WEIGHT = SuperWeight(1, 5, 7, 30.0)


def subject(name, *weights):
    """A planted model under test."""
    ids = torch.zeros(1, 12, dtype=torch.int64) + torch.arange(12) * 5
    return Subject(name, HeldModel(plant(weights)), token_ids=ids, memory=Memory())


def residual_and_down(model, ids):
    """The residual stream after each layer, and inputs and outputs of each down projection, recorded with hooks."""
    found, hooks = {"residual": [], "input": [], "output": []}, []

    def see_layer(_module, _args, output):
        found["residual"].append(output[0] if isinstance(output, tuple) else output)

    def see_map(_module, args, output):
        found["input"].append(args[0])
        found["output"].append(output)

    for layer in model.model.layers:
        hooks += [layer.register_forward_hook(see_layer), layer.mlp.down_proj.register_forward_hook(see_map)]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return found  # fmt: skip


def test_the_curves_of_layers_are_those_of_a_plain_pass():
    """Activation, inputs and outputs by layer of both models, and the reference without its weight, as hooks see them."""
    reference, candidate = subject("r", WEIGHT), subject("c", SuperWeight(1, 5, 7, 3.0))
    activation, inputs, outputs = layer_curves(labelled(reference, candidate), (WEIGHT,))
    ids = prompt_ids(reference)
    for name, one in (("r", reference), ("c", candidate)):
        seen = residual_and_down(one.module, ids)
        assert activation["lines"][name] == pytest.approx([float(x[0, 0, 5]) for x in seen["residual"]], rel=1e-3)
        assert inputs["lines"][name] == pytest.approx([float(x.abs().max()) for x in seen["input"]], rel=1e-3)
        assert outputs["lines"][name] == pytest.approx([float(x.abs().max()) for x in seen["output"]], rel=1e-3)
    with zeroed(reference.module, [WEIGHT]):
        seen = residual_and_down(reference.module, ids)["residual"]
    assert activation["lines"]["r, super weights zeroed"] == pytest.approx([float(x[0, 0, 5]) for x in seen], abs=1e-3)
    assert "c, super weights zeroed" not in activation["lines"]


def test_a_permuted_candidate_is_read_in_its_own_channel():
    """Where channels were permuted, the candidate's line is that of the channel that corresponds."""
    reference, candidate = subject("r", WEIGHT), subject("c", SuperWeight(1, 9, 7, 30.0))
    channels = [9 if channel == 5 else 5 if channel == 9 else channel for channel in range(32)]
    [activation, *_] = layer_curves(labelled(reference, candidate), (WEIGHT,), channels)
    assert max(activation["lines"]["c"]) == pytest.approx(max(activation["lines"]["r"]), rel=0.2)


def test_nothing_is_loaded_for_a_curve():
    """Of a reference whose weights are gone the curves have what was measured before; no new pass is asked for."""
    reference, candidate = subject("r", WEIGHT), subject("c", WEIGHT)
    before = layer_curves(labelled(reference, reference), (WEIGHT,))
    reference.discard()
    after = layer_curves(labelled(reference, candidate), (WEIGHT,))
    assert [one["lines"]["r"] for one in after] == [one["lines"]["r"] for one in before]


@pytest.mark.parametrize(
    ("names", "labels"),
    [(("a", "b"), ["a", "b"]), (("a", "a"), ["reference", "candidate"]), (("", "b"), ["reference", "candidate"])],
)
def test_two_lines_never_share_a_name(names, labels):
    """Models of one name, or without one, are called reference and candidate."""
    assert list(labelled(*(Subject(name) for name in names))) == labels  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 64, 65, 511])
def test_losses_by_position_keep_their_mean(tokens):
    """At most 64 points, each the mean of its positions over all windows."""
    difference = torch.randn(3, tokens, dtype=torch.float64)
    found = position_curve(difference, "c")
    values, step = found["lines"]["c"], found["step"]
    assert len(values) == math.ceil(tokens / step) <= 64
    assert values[0] == pytest.approx(float(difference[:, :step].mean()), rel=1e-3)
