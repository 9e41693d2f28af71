"""Figures 3 and 4 on the embedded model, and on a planted pair that writes two channels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from swcheck.base.records import Outcome, SuperWeight
from swcheck.study.chapters import activation_results, activations
from swcheck.study.common.record import INTACT, OTHERS, ZEROED
from swcheck.study.common.setup import Setup
from swcheck.study.runner import measure_study
from swcheck.superweights.subject.held_model import HeldModel
from swcheck.superweights.subject.subject import Subject
from tests.planted import plant


@pytest.fixture(scope="module")
def study(tiny_setup):
    return measure_study(replace(tiny_setup, notes=[]), "activations")


class Bare(nn.Module):
    """A model that brings no config, so that nobody can ask it for its attention."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor, **options: object) -> object:
        return self.inner(ids, **options)


@pytest.fixture(scope="module")
def pair():
    """Two planted weights in one column, rows of their own; a model without a tokenizer and without a config."""
    weights = (SuperWeight(1, 3, 5, 8.0), SuperWeight(1, 7, 5, -6.0))
    ids = torch.cat([torch.zeros(4, 1, dtype=torch.int64), torch.arange(1, 61).view(4, 15)], 1)
    subject = Subject("planted", HeldModel(Bare(plant(weights))), token_ids=ids)
    return measure_study(Setup(subject, weights, ids, {}), "activations")


def changed(study, quantity, edit, condition=INTACT, **place):
    """The study with other measurements of a quantity, condition and place."""
    chosen = study.select(quantity, condition, **place)
    rows = [replace(one, **edit) if one in chosen else one for one in study.measurements]
    return replace(study, measurements=tuple(rows))


def by_check(study):
    return {verdict.check.removeprefix("paper: "): verdict for verdict in activation_results.judge(study)}


def test_figure_3_names_the_coordinate(study):
    """The largest input and output of a down projection stand in layer 1 at token 0, in the weight's column and row."""
    source = max(study.select(activation_results.INPUT), key=lambda one: abs(one.value))
    target = max(study.select(activation_results.OUTPUT), key=lambda one: abs(one.value))

    assert (source.layer, source.position, source.channel) == (1, 0, 301)
    assert (target.layer, target.position, target.channel) == (1, 0, 97)
    assert source.value * 2.625 == pytest.approx(target.value, rel=0.01)


def test_figure_4_shows_what_zeroing_takes(study):
    """Zeroed nearly all of it is gone, without the other largest weights most of it stays."""
    assert study.value(activation_results.DROP, ZEROED) > 0.9
    assert 0 <= study.value(activation_results.DROP, OTHERS) < 0.3
    assert study.value(activation_results.HIDDEN, INTACT, x=0.0) < 50
    assert activation_results.carrying_layers(study, 97) == (1, 2, 3)
    assert [verdict.outcome for verdict in activation_results.judge(study)] == [Outcome.PASSED] * 3


def test_attention_is_one_number_a_head_and_the_model_keeps_its_own(tiny, study):
    """Five layers of four heads under two conditions, each a share; the implementation of the model came back."""
    heads = study.select(activation_results.ATTENTION)

    assert len(heads) == 2 * 5 * 4
    assert all(0 <= one.value <= 1 for one in heads)
    assert 0 < activation_results.sink_head_share(study, INTACT) < 1
    assert tiny.model.config._attn_implementation == "sdpa"


def test_attention_adds_up_by_hand(tiny, tiny_setup, study):
    """The number of a head is the mean over windows and later tokens of what the softmax gives to token 0."""
    ids = tiny_setup.ids[:, : activations.LENGTH]
    tiny.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = tiny.model(ids, output_attentions=True).attentions
    finally:
        tiny.model.set_attn_implementation("sdpa")

    expected = float(maps[3][:, 2, 1:, 0].mean())
    assert study.value(activation_results.ATTENTION, layer=3, x=2.0) == pytest.approx(expected, rel=1e-4)


def test_every_prompt_has_its_place(study):
    """Seven prompts and eight windows with BOS, the same seven without."""
    assert len(study.select(activation_results.BY_PROMPT)) == 15
    assert len(study.select(activation_results.BARE)) == 7
    assert {(one.channel, one.position) for one in study.select(activation_results.BY_PROMPT)} == {(97, 0)}


def test_two_channels_are_followed(pair):
    """A pair writes two channels; each is held on its own, whichever is the larger one in a prompt."""
    assert activation_results.channels(pair) == (3, 7)
    assert activation_results.drop(pair, ZEROED, 3) > 0.9
    assert activation_results.drop(pair, ZEROED, 7) > 0.9
    swapped = changed(pair, activation_results.BY_PROMPT, {"channel": 7}, prompt="window 1")
    assert by_check(swapped)["activation's place"].outcome is Outcome.PASSED


def test_what_a_model_does_not_show_is_left_out(pair):
    """Without a config there is no attention: a note says so, and the rest is there."""
    assert not pair.has(activation_results.ATTENTION)
    assert any(note.startswith("attention is left out: AttributeError") for note in pair.notes)
    figure = Figure()
    activation_results.draw(pair, figure)
    assert len(figure.axes) == 4


@pytest.mark.parametrize("value", [500.0, math.nan])
def test_an_activation_that_grows_is_red(study, value):
    """The claim is the same magnitude; a layer with another one, or with none, fails it."""
    verdict = by_check(changed(study, activation_results.PLACE, {"value": value}, layer=2))["activation persists"]

    assert verdict.outcome is Outcome.FAILED
    assert "not the same magnitude" in verdict.cause


@pytest.mark.parametrize("channel", [3, 7])
def test_the_worst_channel_of_a_pair_decides(pair, channel):
    """One of two activations that is no number is enough."""
    broken = changed(pair, activation_results.PLACE, {"value": math.nan}, ZEROED, channel=channel, layer=2)
    verdict = by_check(broken)["activation drops"]

    assert verdict.outcome is Outcome.FAILED
    assert f"channel {channel}" in verdict.cause


@pytest.mark.parametrize("edit", [{"channel": 5}, {"position": 3}])
def test_an_activation_elsewhere_is_red(study, edit):
    """One prompt with its largest value in another channel or at another token is a counter-example, named."""
    verdict = by_check(changed(study, activation_results.BY_PROMPT, edit, prompt="window 1"))["activation's place"]

    assert verdict.outcome is Outcome.FAILED
    assert verdict.cause.startswith("elsewhere for window 1")


def test_without_bos_the_token_may_differ(study):
    """Where prompts do not begin with BOS the sink may move, and only the channel is held."""
    free = changed(study, activation_results.BOS, {"value": 0.0})
    moved = changed(free, activation_results.BY_PROMPT, {"position": 3}, prompt="window 1")

    assert by_check(moved)["activation's place"].outcome is Outcome.PASSED


@pytest.mark.parametrize("value", [200.0, math.nan])
def test_an_activation_that_stays_is_red(study, value):
    """Half of it left after zeroing is not what the paper says."""
    verdict = by_check(changed(study, activation_results.PLACE, {"value": value}, ZEROED))["activation drops"]

    assert verdict.outcome is Outcome.FAILED
    assert "most of it stays" in verdict.cause


def test_table_and_picture(study):
    """A row per layer; four panels with their units, figure 4 on a logarithmic axis."""
    head, *rows = activation_results.table(study)
    figure = Figure()
    activation_results.draw(study, figure)

    assert len(rows) == 5
    assert all(len(row) == len(head) for row in rows)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log", "linear"]
