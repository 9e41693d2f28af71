"""Super weights found: on Llamas with planted ones, then on ``tiny``.

A planted weight of a model from ``tests.planted`` writes about 15 times its value at token 0.
"""

from __future__ import annotations

import copy
import math
import random
import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swcheck.base.errors import CoordinateError, NotFiniteError, TextError, WrongModelError
from swcheck.base.records import SuperWeight
from swcheck.lens.architecture.anatomy import anatomy, checked_anatomy
from swcheck.lens.intervene import zeroed
from swcheck.lens.likelihood import perplexity
from swcheck.lens.linear_maps import contributions
from swcheck.lens.observe import observe
from swcheck.lens.tokens import token_windows
from swcheck.strategies import prompts
from swcheck.superweights.locating.confirm import same_value
from swcheck.superweights.locating.locate import Effect, effect_of, locate
from swcheck.superweights.locating.passes import layers_skipped
from tests.planted import Packed, plant, tuple_model

IDS = torch.tensor([[0, *range(3, 20)]])
TINY = SuperWeight(1, 97, 301)


# --- helpers and words ------------------------------------------------------------------------------------------------


@contextmanager
def passes(model):
    """For each layer that computes, and the head, how many tokens each of its passes saw; probes are no passes."""
    seen = {}

    def see(module, args):
        if args[0].ndim == 3:
            seen.setdefault(names[module], []).append(args[0].shape[1])

    names = {layer.mlp.down_proj: number for number, layer in enumerate(model.model.layers)} | {model.lm_head: "head"}
    handles = [module.register_forward_pre_hook(see) for module in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("published", "here", "same"),
    [(None, 5.0, True), (2.0, 1.0, True), (2.0, 4.0, True), (2.0, 0.9, False), (2.0, 4.1, False), (-2.0, -2.0, True),
     (-2.0, 2.0, False), (0.0, 0.0, True), (0.0, 0.1, False), (2.0, 0.0, False), (2.0, math.nan, False)],
)  # fmt: skip
def testsame_value(published, here, same):
    """A weight has its published value if it is within a factor of two, with its sign; unread ones agree with all."""
    assert same_value(published, here) == same


# --- planted -----------------------------------------------------------------------------------------------------------

SETS = {
    "one": [SuperWeight(1, 5, 7, 0.8)],
    "negative": [SuperWeight(1, 5, 7, -0.8)],
    "first layer": [SuperWeight(0, 5, 7, 0.8)],
    "late": [SuperWeight(3, 5, 7, 0.8)],
    "two in one row": [SuperWeight(1, 5, 7, 0.8), SuperWeight(1, 5, 9, 0.7)],
    "two in one column": [SuperWeight(1, 5, 7, 0.7), SuperWeight(1, 6, 7, -0.8)],
    "two in one layer": [SuperWeight(1, 5, 7, 0.8), SuperWeight(1, 6, 8, 0.7)],
    "one channel from two layers": [SuperWeight(1, 5, 7, 0.8), SuperWeight(3, 5, 2, 0.8)],
    "the later the larger": [SuperWeight(1, 5, 7, 0.5), SuperWeight(3, 5, 2, 1.0)],
    "two layers": [SuperWeight(0, 5, 7, 0.8), SuperWeight(2, 6, 7, -0.8)],
    "as in Phi-3": [SuperWeight(layer, row, 8 + layer, 0.8) for layer in (1, 3) for row in (2, 9, 17)],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_planted(name):
    """Exactly the planted weights are found, with their values and what they write."""
    planted = SETS[name]
    located = locate(plant(planted), token_ids=IDS)
    assert sorted(located.super_weights) == planted
    values = {weight: weight.value for weight in planted}
    for weight, written in zip(located.super_weights, located.written, strict=True):
        assert weight.value == pytest.approx(values[weight])
        assert 5 < written / weight.value < 17
    assert [abs(written) for written in located.written] == sorted(map(abs, located.written), reverse=True)
    assert {spike.channel for spike in located.activations} == {weight.row for weight in planted}
    assert located.reason.startswith(f"{len(planted)} super weight{'s' * (len(planted) > 1)} found, writing channel ")


@st.composite
def planted_sets(draw):
    """One to three weights of the first four layers; those of one row have one sign."""
    places = st.tuples(st.integers(0, 3), st.integers(0, 23), st.integers(0, 23))
    chosen = draw(st.lists(places, min_size=1, max_size=3, unique=True))
    signs = {row: draw(st.sampled_from([1, -1])) for _, row, _ in chosen}
    return sorted(SuperWeight(*place, signs[place[1]] * draw(st.floats(0.6, 1.0))) for place in chosen)


@pytest.mark.slow
@given(planted=planted_sets(), seed=st.integers(0, 2**16))
def test_planted_anywhere(planted, seed):
    """Wherever one to three weights are planted, exactly they are found."""
    assert sorted(locate(plant(planted, seed=seed), token_ids=IDS).super_weights) == planted


@pytest.mark.slow
@given(planted=planted_sets(), order=st.permutations(range(24)))
def test_permuting_inner_neurons(planted, order):
    """Permuting a layer's inner neurons moves the columns with them and nothing else."""
    model, layer = plant(planted), planted[0].layer
    mlp, order = model.model.layers[layer].mlp, torch.tensor(order)
    for module, axis in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
        module.weight = nn.Parameter(module.weight.detach().index_select(axis, order))
    moved = [
        replace(weight, column=order.tolist().index(weight.column)) if weight.layer == layer else weight
        for weight in planted
    ]
    assert sorted(locate(model, token_ids=IDS).super_weights) == sorted(moved)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_planted_in_other_dtypes(dtype):
    """A model in another dtype has the same super weights."""
    planted = SETS["as in Phi-3"]
    assert sorted(locate(plant(planted).to(dtype), token_ids=IDS).super_weights) == planted


def test_planted_in_packed_modules():
    """Down projections that keep int8 codes show the same super weights, which stay in their codes."""
    planted = SETS["as in Phi-3"]
    model = plant(planted)
    for layer in model.model.layers:
        layer.mlp.down_proj = Packed(layer.mlp.down_proj)
    codes = [layer.mlp.down_proj.codes.clone() for layer in model.model.layers]
    assert sorted(locate(model, token_ids=IDS).super_weights) == planted
    assert all(torch.equal(layer.mlp.down_proj.codes, c) for layer, c in zip(model.model.layers, codes, strict=True))


def test_layers_that_give_tuples():
    """Layers that give tuples, and take their input by name, are skipped in their own form."""
    model = tuple_model(layers=5, hidden=16, inner=6)
    with torch.no_grad():
        model.embed.weight[0] = 10
        model.layers[2].up.weight[3] = 0.05
        model.layers[2].mlp["down_proj"].weight[9] = 0
        model.layers[2].mlp["down_proj"].weight[9, 3] = -20
    assert locate(model, token_ids=IDS).super_weights == (SuperWeight(2, 9, 3),)


@pytest.mark.slow
def test_oracle():
    """Of all scalars of all down projections, each zeroed in turn, the located ones move the logits most."""
    planted = [SuperWeight(0, 2, 3, 0.8), SuperWeight(1, 5, 6, -0.7)]
    model = plant(planted, layers=4, hidden=16, inner=8)
    everywhere = [SuperWeight(*place) for place in torch.cartesian_prod(*map(torch.arange, (4, 16, 8))).tolist()]
    with torch.no_grad():
        intact = model(IDS).logits
        damage = {}
        for weight in everywhere:
            with zeroed(model, [weight]):
                damage[weight] = float((model(IDS).logits - intact).norm())
    worst = sorted(everywhere, key=lambda weight: -damage[weight])[:2]
    assert sorted(worst) == sorted(locate(model, token_ids=IDS).super_weights) == planted


# --- what is none ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [4, 5])
def test_an_echo(layer):
    """A spike that the last layer but one, or the last, writes has nobody to carry it on: none is found."""
    located = locate(plant([SuperWeight(layer, 5, 7, 0.8)]), token_ids=IDS)
    assert located.super_weights == ()
    assert located.reason.startswith("none found: ")


def test_a_canceller():
    """A late weight that writes against the activation removes it, and is no super weight."""
    planted = SuperWeight(1, 5, 7, 0.8)
    assert locate(plant([planted, SuperWeight(4, 5, 9, -0.8)]), token_ids=IDS).super_weights == (planted,)


@pytest.mark.parametrize("row", [5, 6])
def test_received(row):
    """A weight that writes into this channel or another only because an earlier one has is none of its own."""
    planted, later = SuperWeight(1, 5, 7, 0.8), SuperWeight(3, row, 9, 0.8)
    model = plant([planted, later])
    mlp = model.model.layers[3].mlp
    with torch.no_grad():
        mlp.gate_proj.weight[9] = 0
        mlp.gate_proj.weight[9, 5] = 1.5
        with observe(model, inputs=[3]) as sight:
            model(IDS)
    assert contributions(mlp.down_proj, sight.inputs[3][0, 0], row, [9]).item() > 8
    located = locate(model, token_ids=IDS)
    assert located.super_weights == (planted,)
    assert [later in look.found for look in located.rounds] == [False, False]


def with_stand_in(planted, value, *others):
    """A model in which the weight at layer 2 [5, 9] writes only as long as channel 5 is empty."""
    model = plant([planted, SuperWeight(2, 5, 9, value), *others])
    model.model.layers[2].mlp.gate_proj.weight.data[9, 5] = -4.0
    return model


def test_a_stand_in():
    """A weight that writes only once others are gone is no super weight of the model as it is."""
    planted = SuperWeight(1, 5, 7, 0.8)
    assert locate(with_stand_in(planted, 0.4), token_ids=IDS).super_weights == (planted,)


def test_replaced_when_gone():
    """A weight whose activation is written anew once it is zeroed is turned down, in words."""
    located = locate(with_stand_in(SuperWeight(1, 5, 7, 0.8), 0.8), token_ids=IDS)
    assert located.super_weights == ()
    [remark] = [remark for remark in located.rounds[0].remarks if "zeroed" in remark]
    assert re.fullmatch(r"layer 1 \[5, 7\] = \+0\.8: zeroed, the activation stays at 12\.\d+ of 12\.\d+", remark)
    assert all(look.found == () for look in located.rounds)


def test_turned_down_once():
    """A weight that was turned down is not looked at again while others are still found."""
    others = [SuperWeight(1, 6, 8, 0.8), SuperWeight(3, 6, 2, 0.8)]
    located = locate(with_stand_in(SuperWeight(1, 5, 7, 0.8), 0.8, *others), token_ids=IDS)
    assert sorted(located.super_weights) == others
    assert [look.found for look in located.rounds] == [(others[0],), (others[1],), ()]
    assert sum("the activation stays" in remark for look in located.rounds for remark in look.remarks) == 1


def test_written_by_many():
    """Many weights that write an activation together are none, and hide no later one that writes it alone."""
    many = [SuperWeight(0, 5, column, 0.05) for column in range(10)]
    alone = SuperWeight(2, 5, 20, 0.8)
    assert locate(plant([*many, alone]), token_ids=IDS).super_weights == (alone,)
    located = locate(plant(many), token_ids=IDS)
    assert located.super_weights == ()
    [remark] = [remark for remark in located.rounds[0].remarks if remark.startswith("channel 5")]
    assert re.fullmatch(r"channel 5: no single weight left in layer 0 writes its \+7\.\d+", remark)


def test_written_by_no_down_projection():
    """A spike that comes from the embedding is no super weight's, and said so."""
    located = locate(plant([]), token_ids=IDS)
    assert located.super_weights == ()
    assert re.search(r"channel \d+: no down projection writes its [+-]10", located.reason)


def test_an_outlier_channel():
    """A channel that is large at every token is passed over, and said so; a super weight beside it is found."""
    planted = SuperWeight(1, 5, 7, 0.8)
    model = plant([planted])
    model.model.embed_tokens.weight.data[:, 12] = 6.0
    located = locate(model, token_ids=IDS)
    assert located.super_weights == (planted,)
    [remark] = [remark for remark in located.rounds[0].remarks if remark.startswith("channel 12")]
    assert re.fullmatch(r"channel 12 reaches 6\.0\d+: large at many tokens: an outlier feature", remark)


def test_carried_by_few():
    """A channel that reaches the bar in too few layers is passed over, and said so."""
    planted = SuperWeight(4, 5, 7, 0.8)
    [remark] = [r for r in locate(plant([planted]), token_ids=IDS).rounds[0].remarks if r.startswith("channel 5")]
    assert re.fullmatch(r"channel 5 reaches 12\.\d+: carried by too few layers", remark)


def test_a_random_model(random_llama):
    """A model without a super weight has none, in words with the number that was not enough."""
    located = locate(random_llama, token_ids=IDS)
    assert (located.super_weights, located.written, located.activations, located.effect) == ((), (), (), None)
    with torch.no_grad(), observe(random_llama, residual=range(4)) as sight:
        random_llama(IDS)
    size = torch.stack([sight.residual[layer][0] for layer in range(3)]).abs()
    loudest, median = float(size.max()), float(size.median())
    assert located.reason.startswith(
        f"none found: the largest value in the residual stream is {loudest:.4g}, {loudest / median:.1f} x the median; "
        "a super activation has 50 x, persists, and is local to few tokens"
    )
    assert len(located.rounds) == 1


def test_a_model_of_zeros(random_llama):
    """A model that computes nothing but zeros has no super weight, and its median is said to be 0."""
    model = copy.deepcopy(random_llama)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    located = locate(model, token_ids=IDS)
    assert located.super_weights == ()
    assert located.reason.startswith("none found: the largest value in the residual stream is 0, the median 0;")


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_of_few_layers(layers):
    """A model of fewer than three layers has none, in words; published ones are kept."""
    planted = SuperWeight(0, 5, 7, 0.8)
    model = plant([planted], layers=layers)
    located = locate(model, token_ids=IDS)
    assert located.super_weights == ()
    assert located.reason == (
        f"none found: a super activation persists over later layers, and this model has {layers} in all"
    )
    seeded = locate(model, token_ids=IDS, seeds=[planted])
    assert (seeded.super_weights, seeded.reason) == ((planted,), "1 super weight found, writing as published")


# --- prompts -----------------------------------------------------------------------------------------------------------


class Characters:
    """A tokenizer without BOS: one token per character, "@" is token 0."""

    bos_token_id = None

    def __call__(self, text, **_options):
        return {"input_ids": [(ord(mark) - 64) % 64 for mark in text]}


@pytest.mark.parametrize("prompt", ["a@", "@abcdefghijk", "abcdef@ghijk", "abc@def@ghijklmnopqrst"])
def test_without_bos(prompt):
    """Without BOS the super weights are found where the prompt holds the token that they answer to."""
    planted = SETS["one channel from two layers"]
    located = locate(plant(planted), Characters(), prompt=prompt)
    assert sorted(located.super_weights) == planted
    assert {spike.position for spike in located.activations} <= {n for n, mark in enumerate(prompt) if mark == "@"}


def test_a_prompt_of_one_token():
    """One token is prompt enough."""
    planted = SETS["two in one row"]
    assert sorted(locate(plant(planted), token_ids=IDS[:, :1]).super_weights) == planted


def test_the_sink_is_not_in_the_prompt():
    """Where the prompt holds no token that super weights answer to, none is found."""
    assert locate(plant(SETS["one"]), Characters(), prompt="abcdefgh").super_weights == ()


def test_neither_tokenizer_nor_ids(random_llama):
    """Without tokenizer and token ids there is nothing to look at."""
    words = "a prompt to locate with\n  found: neither tokenizer nor token_ids\n  try: pass one of the two"
    with pytest.raises(TextError, match=words):
        locate(random_llama)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[0, 1]], r"int64 \(B, T\) with T >= 1\n  found: list"),
        (torch.tensor([0]), r"int64 \(B, T\) with T >= 1\n  found: torch.int64 \(1,\)"),
        (torch.tensor(0), r"found: torch.int64 \(\)"),
        (torch.zeros(1, 0, dtype=torch.int64), r"found: shape \(1, 0\): there is no token"),
        (torch.tensor([[64]]), "found: ids from 64 to 64"),
        (
            torch.tensor([[0], [1]]),
            r"one prompt to locate with, int64 \(1, T\)\n  found: 2 rows\n  try: pass token_ids",
        ),
    ],
    ids=["list", "one dimension", "none", "no token", "outside", "two prompts"],
)
def test_ids_that_are_no_prompt(random_llama, ids, words):
    """Token ids of another kind, from outside the vocabulary or of several prompts are refused."""
    with pytest.raises(TextError, match=words):
        locate(random_llama, token_ids=ids)


def test_an_empty_prompt(random_llama):
    """A prompt that the tokenizer makes nothing of is refused."""
    with pytest.raises(TextError, match=r"found: shape \(1, 0\)"):
        locate(random_llama, Characters(), prompt="")


@pytest.mark.parametrize("layer", [2, 5])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(value, layer):
    """A pass that holds NaN or infinity is no evidence: the first layer that shows it is named."""
    model = plant(SETS["one"])
    model.model.layers[layer].mlp.down_proj.weight.data[0, 0] = value
    words = (
        "not finite: no super weight can be located\n"
        f"  found: NaN or infinity in the residual stream after layer {layer}\n"
        "  try: load the model in bfloat16 or float32"
    )
    with pytest.raises(NotFiniteError, match=words):
        locate(model, token_ids=IDS)


# --- seeds -------------------------------------------------------------------------------------------------------------


def test_right_seeds_are_completed():
    """Published weights are kept, with the value they have here, and those beside them found."""
    planted = SETS["as in Phi-3"]
    located = locate(plant(planted), token_ids=IDS, seeds=[replace(planted[4], value=1.5), SuperWeight(1, 2, 9)])
    assert sorted(located.super_weights) == planted
    assert all(weight.value == pytest.approx(0.8) for weight in located.super_weights)
    assert {planted[4], SuperWeight(1, 2, 9)} <= set(located.rounds[0].found)


def test_a_seed_under_the_bar():
    """A published weight that writes less than a located one would have to is kept all the same."""
    strong, weak = SuperWeight(1, 5, 7, 0.8), SuperWeight(1, 6, 9, 0.04)
    model = plant([strong, weak])
    assert locate(model, token_ids=IDS).super_weights == (strong,)
    assert locate(model, token_ids=IDS, seeds=[weak]).super_weights == (strong, weak)


@pytest.mark.parametrize("wrong", [SuperWeight(1, 9, 7), SuperWeight(1, 5, 7, -0.8), SuperWeight(1, 5, 7, 2.0)])
def test_wrong_seeds(wrong):
    """Published weights none of which this model has mean another model."""
    words = rf"first {re.escape(str(wrong))}\n  found: none of the 1 writes a super activation here; .* but here it is "
    with pytest.raises(WrongModelError, match=words):
        locate(plant(SETS["one"]), token_ids=IDS, seeds=[wrong])


def test_a_wrong_seed_among_right_ones():
    """A published weight that this model does not have is dropped, in words, where others are right."""
    right, wrong = SuperWeight(1, 5, 7), SuperWeight(3, 2, 2, 1.5)
    located = locate(plant(SETS["one"]), token_ids=IDS, seeds=[wrong, right])
    assert located.super_weights == (right,)
    [remark] = [remark for remark in located.rounds[0].remarks if "published" in remark]
    assert re.fullmatch(r"layer 3 \[2, 2\] = \+1\.5 is published, but here it is [+-]0\.0\S+ and writes \S+", remark)


def test_seeds_outside(random_llama):
    """A published coordinate that lies outside the model is refused before a pass is made, but for the one that traces it."""
    checked_anatomy(random_llama)
    with passes(random_llama) as seen, pytest.raises(CoordinateError, match="layer 9 was asked for"):
        locate(random_llama, token_ids=IDS, seeds=[SuperWeight(9, 0, 0)])
    assert seen == {}


# --- verification ------------------------------------------------------------------------------------------------------


def test_verify():
    """The effect is measured on the given tokens: intact, all zeroed together, and each alone."""
    planted = SETS["two in one row"]
    model, ids = plant(planted), torch.tensor([[0, 4, 5, 6], [0, 9, 9, 1]])
    located = locate(model, token_ids=IDS, verify=ids)
    assert locate(model, token_ids=IDS).effect is None
    assert located.effect is not None
    assert located.effect.intact == perplexity(model, ids)
    with zeroed(model, planted):
        assert located.effect.together == perplexity(model, ids)
    for weight, alone in zip(located.super_weights, located.effect.alone, strict=True):
        with zeroed(model, [weight]):
            assert alone == perplexity(model, ids)


def test_effect_of_one_and_of_none():
    """Of one weight, alone is together; of none, together is intact."""
    model, ids = plant(SETS["one"]), IDS
    one = effect_of(model, SETS["one"], ids)
    assert one.alone == (one.together,)
    assert one.together != one.intact
    intact = perplexity(model, ids)
    assert effect_of(model, [], ids) == Effect(intact, intact, ())


def test_effect_without_finite_numbers():
    """Answers that are not finite without the weights are passed on; those of the intact model are refused."""
    model = plant(SETS["one"])
    model.lm_head.weight.data[:] = math.nan
    with pytest.raises(NotFiniteError, match="perplexity on 17 tokens"):
        effect_of(model, SETS["one"], IDS)
    model = plant(SETS["one"])
    scale = model.model.norm.weight.data
    broken = model.model.norm.register_forward_hook(
        lambda _m, args, out: out if args[0].abs().max() > 12 else out * math.nan * scale
    )
    effect = effect_of(model, SETS["one"], IDS)
    broken.remove()
    assert math.isfinite(effect.intact.nats)
    assert math.isnan(effect.together.nats)


def test_verify_is_checked_first(random_llama):
    """Tokens that cannot be scored are refused before a pass is made, but for the one that finds the layers."""
    checked_anatomy(random_llama)
    with passes(random_llama) as seen, pytest.raises(TextError, match="there is no token to predict"):
        locate(random_llama, token_ids=IDS, verify=torch.tensor([[1]]))
    assert seen == {}


# --- the price, and no traces ------------------------------------------------------------------------------------------


def test_the_price():
    """A short pass checks the layers, no look comes to the logits, later ones skip layers and tokens."""
    model = plant([SuperWeight(3, 5, 7, 0.8)])
    with passes(model) as seen:
        assert locate(model, token_ids=IDS[:, [5, 7, 0, 9, 9, 9]]).super_weights
    assert seen == {0: [5, 6], 1: [5, 6], 2: [5, 6], 3: [5, 6, 3], 4: [5, 6, 3], 5: [5, 6]}


@pytest.mark.parametrize("layer", range(4))
def test_a_second_look_is_a_full_one(layer):
    """What the later looks show is what a full pass without the found weights shows."""
    planted = SuperWeight(layer, 5, 7, 0.8)
    model = plant([planted])
    second = locate(model, token_ids=IDS).rounds[1]
    with torch.no_grad(), zeroed(model, [planted]), observe(model, residual=range(5), outputs=range(5)) as sight:
        model(IDS[:, :1])
    assert [peaks.layer for peaks in second.layers] == [0, 1, 2, 3, 4]
    for peaks in second.layers:
        for peak, values in ((peaks.residual, sight.residual), (peaks.output, sight.outputs)):
            assert peak.value == pytest.approx(float(values[peaks.layer][0, peak.position, peak.channel]), abs=1e-5)
            assert abs(peak.value) == pytest.approx(float(values[peaks.layer].abs().max()), abs=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_skipped_layers_get_their_forward_back(fails):
    """After a pass that skipped layers, by its end or an exception, each has its own ``forward`` again, or none."""
    model = plant(SETS["one"])
    body = anatomy(model)
    own = body.layers[1].forward
    body.layers[1].forward = own
    before = [dict(vars(layer)) for layer in body.layers]
    with torch.no_grad(), observe(model, residual=range(6)) as first:
        model(IDS)
    try:
        with torch.no_grad(), layers_skipped(body, 3, first.residual, 4, {}):
            with observe(model, residual=range(6)) as again:
                model(IDS[:, :4])
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [vars(layer) for layer in body.layers] == before
    for layer in range(6):
        assert torch.allclose(again.residual[layer], first.residual[layer][:, :4], atol=1e-6)


def test_no_traces():
    """The model keeps every bit, every module its mode, and no hook is left, whether weights are found or refused."""
    model = plant(SETS["as in Phi-3"])
    model.train()
    model.model.layers[2].eval()

    def state():
        values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        own = ["forward" in vars(module) for module in model.modules()]
        return values, modes, hooks, own

    before = state()
    assert len(locate(model, token_ids=IDS, verify=IDS).super_weights) == 6
    with pytest.raises(WrongModelError):
        locate(model, token_ids=IDS, seeds=[SuperWeight(0, 0, 0)])
    after = state()
    assert after[1:] == before[1:]
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())


# --- tiny --------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(prompt=prompts())
@pytest.mark.slow
def test_tiny_from_any_prompt(tiny, prompt):
    """Whatever the prompt, the embedded model's one super weight is found, and no other."""
    located = locate(tiny.model, tiny.tokenizer, prompt=prompt)
    assert located.super_weights == (TINY,)
    [spike] = located.activations
    assert (spike.layer, spike.channel, spike.position) == (TINY.layer, TINY.row, 0)


@pytest.mark.slow
def test_tiny_against_the_oracle(tiny):
    """Of the largest and of random scalars of its matrix, zeroed one by one, the located one costs the text most."""
    ids = token_windows(tiny.tokenizer, tiny.text, count=2, length=48)
    weight = tiny.model.model.layers[TINY.layer].mlp.down_proj.weight.detach()
    chance = random.Random(0)
    places = weight.abs().flatten().topk(30).indices.tolist() + chance.sample(range(weight.numel()), 60)
    asked = {TINY, *(SuperWeight(TINY.layer, *divmod(place, weight.shape[1])) for place in places)}
    damage = {}
    for scalar in asked:
        with zeroed(tiny.model, [scalar]):
            damage[scalar] = perplexity(tiny.model, ids).mean
    first, second = sorted(asked, key=lambda scalar: -damage[scalar])[:2]
    assert first == locate(tiny.model, tiny.tokenizer).super_weights[0]
    assert damage[first] > damage[second] + 1
