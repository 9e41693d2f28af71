"""What counts as a super activation, decided on literal residual streams, and which layer wrote it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from swcheck.base.records import SuperActivation
from swcheck.superweights.locating.activation_rules import (
    Rules,
    earliest_writer,
    left_standing,
    local_layers,
    median_of,
    spikes,
)

RULES = Rules()


def stream(**series):
    """A residual stream ``(6, 8, 4)`` of 0.1, with ``c1_t0=[...]`` the values of channel 1 at token 0 by layer."""
    residual = torch.full((6, 8, 4), 0.1)
    for place, values in series.items():
        channel, token = (int(part[1:]) for part in place.split("_"))
        residual[:, token, channel] = torch.tensor(values)
    return residual


def found(residual, bar=5.0, rules=RULES, first=None):
    """The spikes of a stream, in short: (channel, token, onset, last, value)."""
    seen = spikes(residual, bar, rules, first=first)
    return [(s.channel, s.position, s.layer, s.last, round(s.value, 3)) for s in seen]


def test_the_rules():
    """These ratios decide what is found in every model, and what every baseline holds."""
    found = Rules(
        above_median=50, below_peak=0.1, band=0.5, carried=0.5, tokens=0.25, written=0.2, share=0.2, drop=0.1, inputs=32, rounds=8,
    )  # fmt: skip
    assert found == RULES


def test_a_spike():
    """A value that sets in and is carried on is a spike, with its onset, its last layer, its sign and the median."""
    residual = stream(c2_t3=[0, -30, -31, -30, -29, 0])
    assert spikes(residual, 5.0, RULES) == (
        SuperActivation(layer=1, channel=2, position=3, value=-30.0, median=pytest.approx(0.1), last=4),
    )


@pytest.mark.parametrize(
    ("series", "last"),
    [
        ([30, 30, 30, 30, 30, 30], 4),
        ([30, 30, 30, 0, 0, 0], 2),
        ([30, 16, 15, 0, 0, 0], 2),
        ([30, 30, 0, 0, 30, 0], 4),
        ([30, 30, 0, 0, 0, 0], None),
        ([30, 14, 30, 30, 30, 0], None),
        ([0, 30, 30, 0, 0, 0], None),
        ([0, 0, 0, 30, 30, 30], 4),
        ([0, 0, 0, 0, 30, 30], None),
        ([0, 0, 0, 0, 0, 30], None),
    ],
    ids=[
        "always", "half of the later layers", "fading to half", "half with a gap", "too few", "not by the next layer", "one of three",
        "late", "echo before the last", "echo of the last",
    ],
)  # fmt: skip
def test_persistence(series, last):
    """A spike is held, to half of its peak, by the next layer and half of the later ones, the last not counting."""
    assert [spike[3] for spike in found(stream(c1_t0=series))] == ([] if last is None else [last])


def test_the_bar():
    """What stays under the bar is no spike; what reaches it in one layer is."""
    residual = stream(c1_t0=[0, 4, 4, 5, 4, 0])
    assert found(residual, bar=5.0) == [(1, 0, 1, 4, 4.0)]
    assert found(residual, bar=5.1) == []
    assert found(residual / 10, bar=0.5) == [(1, 0, 1, 4, 0.4)]


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_stream_of_zeros(tokens):
    """Where everything is zero, and with it the bar, there is no spike."""
    assert spikes(torch.zeros(6, tokens, 4), 0.0, RULES) == ()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 101])
def test_the_median_is_that_of_the_onset(count):
    """It is the lower of the two middle magnitudes, in the layer where the spike sets in."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    assert median_of(values) == float(values.median())
    residual = stream(c2_t3=[0, 30, 30, 30, 30, 0])
    residual[2:] += 0.3
    assert spikes(residual, 5.0, RULES)[0].median == pytest.approx(0.1)


def test_order():
    """Spikes come strongest first, one per channel."""
    residual = stream(c0_t0=[0, 20, 20, 20, 20, 0], c3_t0=[0, -40, -40, -40, -40, 0], c3_t5=[0, 30, 30, 30, 30, 0])
    assert [spike[:2] for spike in found(residual)] == [(3, 0), (0, 0)]


def test_a_late_echo_elsewhere():
    """A louder value at another token of the channel that nothing carries on hides no spike."""
    residual = stream(c1_t0=[0, 20, 20, 20, 20, 0], c1_t6=[0, 0, 0, 0, 90, 0])
    assert found(residual) == [(1, 0, 1, 4, 20.0)]


def test_an_outlier_feature():
    """A channel that is as large at most tokens is an outlier feature, no super activation."""
    residual = stream(c1_t0=[0, 20, 20, 20, 20, 0])
    residual[1:, :, 2] = -50.0
    assert [spike[0] for spike in found(residual)] == [1]
    assert [spike[0] for spike in found(residual, rules=replace(RULES, tokens=1.0))] == [2, 1]


def test_local_in_the_first_look():
    """A short second look cannot tell what is local: where it is judged in the first one, an outlier feature stays one."""
    whole = stream()
    whole[1:, :, 2] = -50.0
    prefix = whole[:, :1]
    assert [spike[0] for spike in found(prefix)] == [2]
    assert found(prefix, first=whole) == []


@pytest.mark.parametrize(
    ("value", "place"), [(21.0, (0, 21.0)), (10.0, (0, 10.0)), (9.0, (6, -90.0)), (-21.0, (6, -90.0))]
)
def test_what_is_left_standing(value, place):
    """With a weight zeroed, what keeps half of its value is looked at where it stands, not where its channel is larger now."""
    intact, raised = SuperActivation(1, 1, 0, 20.0, 0.1, 4), SuperActivation(1, 1, 6, -90.0, 0.1, 4)
    (seen,) = left_standing([raised], [intact], [value], 5.0, RULES)
    assert (seen.position, seen.value) == place
    assert left_standing([], [intact], [value], 25.0, RULES) == ()


def test_other_channels_beside_one_left_standing():
    """They stay, and the largest is first."""
    intact, other = SuperActivation(1, 1, 0, 20.0, 0.1, 4), SuperActivation(1, 2, 3, 40.0, 0.1, 4)
    assert [seen.channel for seen in left_standing([other], [intact], [20.0], 5.0, RULES)] == [2, 1]


@pytest.mark.parametrize(("layers", "kept"), [(1, [1]), (2, [1]), (3, [])])
def test_large_everywhere_in_late_layers(layers, kept):
    """A channel that is large at all tokens in half of its layers at most keeps the spike that it carries before."""
    residual = stream(c1_t0=[0, 30, 30, 30, 30, 0])
    residual[5 - layers : 5, :, 1] = 30.0
    assert [spike[0] for spike in found(residual)] == kept


@pytest.mark.parametrize(("tokens", "holders"), [(1, 1), (3, 1), (4, 1), (8, 2), (9, 2), (40, 10)])
def test_few_tokens(tokens, holders):
    """Few are a quarter of the tokens, and one in a short prompt; holding is half of the largest, whatever the sign."""
    few, more = torch.zeros(2, 2, tokens)
    few[1, :holders] = torch.tensor([40.0] + [-20.0] * (holders - 1))
    more[1, : min(tokens, holders + 1)] = torch.tensor([40.0] + [-20.0] * holders)[:tokens]
    assert bool(local_layers(few, RULES)[1])
    assert bool(local_layers(more, RULES)[1]) == (tokens == 1)


@pytest.mark.parametrize("layers", [1, 2])
def test_too_few_layers(layers):
    """In fewer than three layers nothing can persist, so there is no spike."""
    assert spikes(torch.full((layers, 8, 4), 30.0), 1.0, RULES) == ()
    assert found(stream(c1_t0=[30, 30, 0, 0, 0, 0])[:3]) == [(1, 0, 0, 1, 30.0)]


@pytest.mark.parametrize(
    ("value", "outputs", "writer"),
    [
        (100.0, [0, 100, 0, 0], 1),
        (100.0, [0, 25, 0, 75], 1),
        (100.0, [0, 19, 21, 60], 2),
        (-100.0, [0, 30, -100, -30], 2),
        (100.0, [-90, 0, 190, 0], 2),
        (100.0, [0, 10, 10, 10], None),
        (100.0, [-100, -100, -100, -100], None),
        (100.0, [0, 0, 0, 0], None),
        (100.0, [0, 20, 80, 0], 1),
        (-100.0, [0, -15, -15, -15], None),
        (0.5, [0, 0.5, 0, 0], 1),
    ],
    ids=[
        "alone",
        "the earliest",
        "not the smallest",
        "negative",
        "a canceller",
        "by many",
        "against it",
        "received",
        "a fifth",
        "negative by many",
        "small",
    ],
)
def test_earliest_writer(value, outputs, writer):
    """The writer is the first layer that adds a fifth of the spike or more, with its sign, not the largest."""
    spike = SuperActivation(layer=3, channel=0, position=1, value=value, median=1.0, last=3)
    assert earliest_writer(spike, outputs, RULES) == writer


def test_writers_one_after_the_other():
    """Behind one writer the next is the earliest; behind the onset there is none."""
    down = [40.0, 0.0, 40.0, 40.0]
    spike = SuperActivation(layer=2, channel=0, position=0, value=80.0, median=1.0, last=3)
    assert earliest_writer(spike, down, RULES) == 0
    assert earliest_writer(spike, down, RULES, after=0) == 2
    assert earliest_writer(spike, down, RULES, after=2) is None
