"""The built-in engine ``rtn``: what it rounds, what it leaves, and what it says to a spec that it does not know."""

from __future__ import annotations

import pytest
import torch

import swcheck
from swcheck.base.errors import EngineError, OptionError
from swcheck.base.records import Scheme
from swcheck.lens.architecture.anatomy import anatomy
from swcheck.quantizers import rounding, rtn
from swcheck.quantizers.rtn import ENGINE, Recipe, parse

ROW, COLUMN = 97, 301


def load(spec, reference="tiny"):
    return ENGINE.load(spec, reference=reference, device="cpu", dtype=None)


def down(loaded):
    return loaded.model.model.layers[1].mlp.down_proj.weight.detach()


# --- what it makes -----------------------------------------------------------------------------------------------------


def test_every_linear_map_of_the_layers_and_nothing_else(tiny):
    """Seven matrices a layer are rounded as the arithmetic says; embeddings, norms and head keep every bit."""
    ours, theirs = load("bits=3,block=64").model.state_dict(), tiny.model.state_dict()
    rounded = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert rounded == {name for name in theirs if name.endswith("proj.weight")}
    assert len(rounded) == 7 * len(anatomy(tiny.model).layers)
    for name in rounded:
        assert torch.equal(ours[name], rounding.minmax(theirs[name], 3, block=64))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("bits=5,per=row", lambda w: rounding.minmax(w, 5, block=512)),
        ("bits=8,per=tensor", lambda w: rounding.minmax(w, 8)),
        ("bits=4,symmetric", lambda w: rounding.absmax(w, 4, block=128)),
        ("bits=4,reading=paper", lambda w: rounding.minmax(w, 4, block=128, reading="paper")),
        ("bits=4,clip=9", lambda w: rounding.minmax(rounding.clip_z_score(w, 9.0, block=128), 4, block=128)),
        ("keep=2,clip=1", lambda w: rounding.with_largest_kept(Recipe(clip=1.0).rounded(w), w, 2)),
    ],
)
def test_a_spec_is_its_arithmetic(tiny, spec, expected):
    """Each word of a spec does to a down projection what ``quantize`` does."""
    assert torch.equal(down(load(spec)), expected(down(tiny)))


@pytest.mark.parametrize("spec", ["bits=3,skip={}", "skip={},bits=3,keep=1", "bits=3,skip={},clip=9"])
def test_skip_leaves_matrices_as_they_are(tiny, spec):
    """What is named, by itself or by what holds it, keeps every bit; all else is rounded."""
    named = "model.layers.1.mlp.down_proj+model.layers.4.self_attn"
    ours, theirs = load(spec.format(named)).model.state_dict(), tiny.model.state_dict()
    kept = {name for name in theirs if name.endswith("proj.weight") and torch.equal(ours[name], theirs[name])}
    attention = {f"model.layers.4.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert kept == {"model.layers.1.mlp.down_proj.weight"} | attention


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down", "layers.1", "model.norm", "model.layers.1.mlp.down_proj+x"]
)
def test_a_name_that_is_no_matrix(name):
    """A module that is not there, or holds no linear map, would be a fix that changes nothing."""
    with pytest.raises(EngineError, match="no linear map in this model is") as caught:
        load(f"bits=4,skip={name}")
    assert caught.value.attempt.startswith("skip=")


def test_keep_puts_the_super_weights_back(tiny):
    """A clip that costs a fifth of the super weight is undone at its coordinate, found by locating, and only there."""
    clipped, kept = down(load("bits=4,clip=9")), down(load("bits=4,clip=9,keep"))
    assert float(clipped[ROW, COLUMN]) == pytest.approx(2.126, abs=1e-3)
    assert float(kept[ROW, COLUMN]) == float(down(tiny)[ROW, COLUMN])
    assert (clipped != kept).nonzero().tolist() == [[ROW, COLUMN]]


def test_keep_without_a_super_weight(tmp_path, tiny):
    """Where none is found to keep, that is an error and no silent nothing."""
    robbed = swcheck.load("tiny", device="cpu")
    with torch.no_grad():
        robbed.model.model.layers[1].mlp.down_proj.weight[ROW, COLUMN] = 0
    robbed.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="keep the super weights of"):
        load("keep", str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "scheme"),
    [
        ("", Scheme("rtn", 4)),
        ("bits=8,per=row", Scheme("rtn", 8)),
        ("bits=2,symmetric", Scheme("absmax", 2)),
    ],
)
def test_what_it_says_of_itself(tiny, spec, scheme):
    """Name, text and tokenizer are the reference's, the scheme is the spec's."""
    loaded = load(spec)
    assert loaded.scheme == scheme
    assert loaded.name == f"rtn:{spec}"
    assert loaded.text == tiny.text
    assert loaded.tokenizer("abc") == tiny.tokenizer("abc")
    assert loaded.model is not tiny.model


def test_through_the_front_door():
    """The entry point leads here."""
    loaded = swcheck.load("rtn:bits=8", reference="tiny", device="cpu", dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.scheme.weight_bits == 8


# --- what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["bitz=4", "4", "bits=4,blocks=3", "no-such-scheme", "nf4"])
def test_an_unknown_word_lists_the_known(spec):
    """The error names every word that it could have been."""
    with pytest.raises(OptionError) as caught:
        parse(spec)
    assert all(word.partition("=")[0] in str(caught.value) for word in rtn.KNOWN)


@pytest.mark.parametrize(
    "spec",
    "bits bits= bits=four bits=4;block=3 bits=0 bits=17 bits=4.5 block=0 block=-1 per=column per symmetric=1 "
    "reading=book clip clip=-1 clip=nan clip=inf keep=0 keep=x".split(),
)
def test_a_value_that_a_word_cannot_have(spec):
    """The error repeats the word and shows how it is written."""
    with pytest.raises(OptionError) as caught:
        parse(spec)
    assert caught.value.attempt.startswith(f"write {spec.partition('=')[0]}")


@pytest.mark.parametrize(
    "spec",
    ["bits=4,bits=4", "per=row,block=64", "symmetric,reading=paper", "bits=1,symmetric", "bits=1,reading=paper"],
)
def test_words_that_do_not_go_together(spec):
    """Doubles and contradictions are refused before anything is loaded."""
    with pytest.raises(OptionError):
        parse(spec)


def test_spaces_and_empty_parts_are_harmless():
    """A spec may be written with spaces after its commas, and end in one."""
    assert parse(" bits=3 , block = 64, ") == Recipe(bits=3, block=64)


def test_without_a_reference():
    """There is nothing to round; the error says how to name it."""
    with pytest.raises(OptionError, match="no reference to round"):
        load("bits=4", None)


def test_a_packed_reference(monkeypatch, tiny):
    """A matrix that is not plain is an error that names it: half a quantization would pass for a whole one."""
    from tests.planted import Packed

    packed = swcheck.load("tiny", device="cpu")
    mlp = packed.model.model.layers[2].mlp
    mlp.down_proj = Packed(mlp.down_proj)
    monkeypatch.setattr(rtn.engines, "load", lambda *_args, **_kwargs: packed)
    with pytest.raises(OptionError, match=r"model\.layers\.2\.mlp\.down_proj as Packed"):
        load("bits=4")
