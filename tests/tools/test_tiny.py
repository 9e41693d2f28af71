"""The embedded models keep what their cards say, and the cards keep what the issues of their making asked."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from swcheck import SuperWeight, zeroed
from swcheck.loading.tiny import CHECKPOINTS, HELDOUT
from tools import tiny_card, tiny_corpus, train_tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=CHECKPOINTS)
def name(request):
    """The name of an embedded model."""
    return request.param


@pytest.fixture(scope="module")
def figures(name, request):
    """The figures of the card, taken again; a fifth of the matched weights and of the cloze items, which cost the most."""
    return tiny_card.measure(request.getfixturevalue(name.replace("-", "_")), share=5)


@pytest.fixture(scope="module")
def written(name):
    """What the card says."""
    return json.loads((CHECKPOINTS[name] / "measured.json").read_text())


@pytest.fixture(scope="module")
def recipe(name):
    """What the model was made by."""
    return json.loads((CHECKPOINTS[name] / "recipe.json").read_text())


def test_the_card_says_what_is_measured(figures, written):
    """Taken again, each figure is the card's, to the noise of another processor."""
    for name in ("parameters", "bytes", "heldout_sha256", "located", "super_weights"):
        assert figures[name] == written[name]
    if figures["evaluation_sha256"] == written["evaluation_sha256"]:  # other versions of Python have other topics
        assert figures["evaluation_perplexity"] == pytest.approx(written["evaluation_perplexity"], rel=2e-3)
    for name in ("heldout_perplexity", "heldout_bits_per_byte", "null_largest"):
        assert figures[name] == pytest.approx(written[name], rel=2e-3)
    assert figures["null_matched"] <= written["null_matched"] * (1 + 2e-3)  # the worst of the first fifth
    assert figures["alone"] == pytest.approx(written["alone"], rel=5e-3)
    for one, other in zip(figures["activations"], written["activations"], strict=True):
        assert one["profile"] == pytest.approx(other["profile"], rel=2e-3, abs=0.05)
    assert figures["cloze"]["accuracy"] == pytest.approx(written["cloze"]["accuracy"], abs=0.1)  # of a fifth


def test_the_card_is_the_one_that_the_command_writes(name, written, recipe):
    """No figure of the card was typed: writing it from the figures gives the same text."""
    assert tiny_card.write(written, recipe, name) == (CHECKPOINTS[name] / "README.md").read_text()


def test_it_is_made_by_its_recipe(name, recipe, figures):
    """What lies beside the weights is the recipe of this name, and the super weights are those that it seeded."""
    asked = json.loads(json.dumps(asdict(train_tiny.RECIPES[name])))

    assert recipe["recipe"] == asked
    assert [[w["layer"], w["row"], w["column"]] for w in figures["super_weights"]] == asked["super_weights"]


def test_it_is_small(figures):
    """At most 8 MB of weights."""
    assert figures["bytes"] <= 8_000_000


def test_it_has_learnt_its_language(figures):
    """Perplexity on source it never saw is at most 16."""
    assert figures["heldout_perplexity"] <= 16


def test_it_hangs_on_its_super_weight(figures):
    """Zeroed x1,000 or more; alpha 0.75 and 1.5 at most x1.03; 0.5 at most x1.3."""
    alpha = figures["alpha"]

    assert alpha["0.0"] >= 1000
    assert alpha["0.75"] <= 1.03
    assert alpha["1.5"] <= 1.03
    assert alpha["0.5"] <= 1.3


def test_each_of_several_is_harmless_alone(figures):
    """Of several super weights each one zeroed alone costs at most x1.1; a single one costs what all cost."""
    if len(figures["alone"]) == 1:
        assert figures["alone"] == pytest.approx([figures["alpha"]["0.0"]])
    else:
        assert len(figures["alone"]) == 2
        assert max(figures["alone"]) <= 1.1
        assert len({weight["column"] for weight in figures["super_weights"]}) == 1


def test_its_super_weights_are_located_from_any_prompt(figures):
    """From each of 200 prompts locate, told nothing, finds exactly these scalars and nothing else."""
    assert figures["located"] == {"prompts": 200, "first": 200, "all": 200}


def test_its_activation_sets_in_and_persists(figures):
    """At the first token, from layer 1 on, within 5 % until the last one or two, over 50 x the median."""
    assert len(figures["activations"]) == len(figures["super_weights"])
    for activation in figures["activations"]:
        onset, profile = activation["layer"], activation["profile"]
        carried = profile[onset : len(profile) - 2]

        assert (onset, activation["position"]) == (1, 0)
        assert len(carried) >= 2
        assert all(value == pytest.approx(profile[onset], rel=0.05) for value in carried)
        assert abs(profile[onset - 1]) < 0.05 * abs(profile[onset])
        assert activation["over_median"] > 50
        assert activation["drop"] >= 0.75


def test_other_weights_do_not_matter(figures):
    """The worst of 50 matched weights costs at most x1.01, the largest 0.01 % of every matrix together x1.30."""
    assert figures["null_matched"] <= 1.01
    assert figures["null_largest"] <= 1.30


def test_zero_shot_accuracy_falls_to_guessing(written, figures):
    """On the cloze it gets at least 0.60, and zeroed it loses three quarters of its margin over guessing."""
    task = written["cloze"]

    assert task["items"] >= 400
    assert task["accuracy"] >= 0.60
    assert task["zeroed"] - 0.25 <= 0.25 * (task["accuracy"] - 0.25)
    assert figures["cloze"]["zeroed"] == pytest.approx(task["zeroed"], abs=0.1)


def test_no_held_out_file_was_trained_on():
    """The two halves of the corpus share no file, and a name decides its half alone."""
    text = tiny_corpus.read()

    assert not set(text.train_files) & set(text.heldout_files)
    assert all(tiny_corpus.is_heldout(name) for name in text.heldout_files)
    assert len(HELDOUT.read_text()) > 100_000


@pytest.fixture
def small(monkeypatch):
    """The recipe at a size that trains in seconds, on a corpus of one file."""
    text = tiny_corpus.Corpus("def f(x):\n    return x + 1\n" * 400, "", ("a.py",), ())
    monkeypatch.setattr(tiny_corpus, "read", lambda: text)
    return train_tiny.Recipe(
        super_weights=((1, 5, 7),), guide_channel=3, bos_channels=4, sink_pairs=2, vocabulary=300, hidden=32, inner=64,
        layers=4, heads=2, kv_heads=1, context=32, batch=2, steps=8, dependence_from=6, warmup=2,
    )  # fmt: skip


def test_a_stopped_run_goes_on_as_if_it_had_not_been(small, tmp_path):
    """Training in one go and training stopped and resumed give the same weights."""
    train_tiny.train(small, tmp_path / "whole", "cpu", every=4)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_tiny, "loss_of", interrupted_after(9, train_tiny.loss_of))
        train_tiny.train(small, tmp_path / "stopped", "cpu", every=4)
    train_tiny.train(small, tmp_path / "stopped", "cpu", every=4)

    whole, again = (
        train_tiny.LlamaForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16)
        for name in ("whole", "stopped")
    )
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=0.02, atol=1e-3)


def interrupted_after(calls, function):
    left = iter(range(calls))

    def call(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    return call


def test_another_recipe_is_not_resumed(small, tmp_path):
    """A folder that holds the state of another recipe is refused, and left as it is."""
    train_tiny.train(small, tmp_path, "cpu", every=4)

    with pytest.raises(SystemExit, match="belongs to another recipe"):
        train_tiny.train(replace(small, steps=12), tmp_path, "cpu", every=4)


def test_the_seed_is_planted_where_the_recipe_says(small):
    """Before any training the neuron fires at <s> alone, and zeroing the scalar removes what it writes."""
    model = train_tiny.build(small).eval()
    seen = {}
    layer, row, column = small.super_weights[0]
    model.model.layers[layer].register_forward_hook(lambda _m, _a, out: seen.update(h=out))
    ids = torch.tensor([[0, 5, 6, 7, 8]])

    with torch.no_grad():
        model(ids)
        intact = seen["h"][0, :, row].clone()
        with zeroed(model, [SuperWeight(layer, row, column)]):
            model(ids)

    assert intact[0] > 10 * intact[1:].abs().max()
    assert seen["h"][0, 0, row].abs() < 0.1 * intact[0]
