"""What is asked for in place of a default limit, and for whom: how it is written, and what wins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swcheck.base.errors import OptionError
from swcheck.base.limits import DEFAULTS, SINGLE_MODEL_LIMITS
from swcheck.base.records import Limit
from swcheck.run.limit_overrides import (
    ORIGINS,
    Override,
    check_all_used,
    parse_overrides,
    unused_overrides,
    winning_overrides,
)
from tests import checkpoints

MODEL, CANDIDATE = "llama-7b", "torchao:int8-weight-only"

FROM_CLOSE_TO_FAR = (
    "torchao:int8-weight-only",
    "torchao:int8*",
    "torchao:*",
    "*",
    "llama-7b",
    "llama*",
    "huggyllama/*",
    "",
)
"""Names for the two above; ``*`` is a glob of the candidate first, ``huggyllama/*`` has more letters than ``llama*``."""

entries = st.builds(
    Override,
    st.sampled_from(["perplexity", "kl", "collapse"]),
    st.floats(1, 9).map(lambda high: Limit(None, high, "given")),
    st.sampled_from([*FROM_CLOSE_TO_FAR, "rtn:*", "mistral-7b", "quanto:int8"]),
    st.sampled_from(list(ORIGINS)),
)


@pytest.mark.parametrize(
    ("text", "model", "name", "low", "high"),
    [
        ("perplexity=1.03", "", "perplexity", None, 1.03),
        ("activation=0.8..1.5", "", "activation", 0.8, 1.5),
        ("activation=0.8..", "", "activation", 0.8, 2.0),
        ("contribution=..3", "", "contribution", 0.75, 3.0),
        ("collapse=100", "", "collapse", 100.0, None),
        ("dependence = 0.25", "", "dependence", 0.25, None),
        ("llama-7b:collapse=100", "llama-7b", "collapse", 100.0, None),
        ("*awq*:perplexity=1.08", "*awq*", "perplexity", None, 1.08),
        ("torchao:*:kl=0.02", "torchao:*", "kl", None, 0.02),
        ("rtn:bits=3,block=128:kl=0.3", "rtn:bits=3,block=128", "kl", None, 0.3),
        ("./a:b/w4 : top1 = 0.9", "./a:b/w4", "top1", 0.9, None),
    ],
)
def test_how_an_entry_is_written(text, model, name, low, high):
    """A single number sets the side the default leaves to be set, an interval both; a model's name may hold anything."""
    (one,) = parse_overrides([text])

    assert (one.model, one.name, one.limit.low, one.limit.high) == (model, name, low, high)
    assert parse_overrides([one.text]) == (one,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed=3", "known: contribution, activation"),
        ("torchao:*:speed=3", "known: contribution, activation"),
        ("rtn:bits=3", "known: contribution, activation"),
        ("perplexity", "write it as perplexity=1.03"),
        ("tiny:perplexity", "write it as perplexity=1.03"),
        (":perplexity=1.03", "no model before the colon"),
        ("perplexity", "no value behind it"),
        ("tiny:perplexity", "no value behind it"),
        ("tiny:perplexity=low", "'low' is no number"),
        ("perplexity=nan", "nothing finite is in"),
        ("tiny:activation=2..1", "nothing finite is in"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(text, words):
    """Unknown names, missing numbers and empty intervals are worded errors, whomever they speak of."""
    with pytest.raises(OptionError, match=words.replace("*", "[*]")):
        parse_overrides([text])


def test_where_a_limit_comes_from():
    """The limit itself says where it was given and for whom."""
    sources = [
        parse_overrides([text], origin)[0].limit.source
        for text, origin in (("kl=1", "ini"), ("torchao:*:kl=1", "environment"))
    ]
    assert sources == ["given in the ini-file", "given in the environment for torchao:*"]


@given(st.permutations(FROM_CLOSE_TO_FAR), st.data())
def test_the_closer_one_wins_wherever_it_stands(names, data):
    """Of entries of one place the closest rules, in whatever order they stand; a candidate comes before its reference."""
    kept = data.draw(st.sets(st.sampled_from(names), min_size=1).map(lambda some: [n for n in names if n in some]))
    table = [Override("kl", Limit(None, 1.0, "given"), name) for name in kept]

    # The two globs of the reference rank by their letters, not by the order above.
    close = sorted(FROM_CLOSE_TO_FAR, key=lambda name: {"huggyllama/*": 4.5}.get(name, FROM_CLOSE_TO_FAR.index(name)))
    assert winning_overrides(table, MODEL, CANDIDATE)["kl"].model == next(name for name in close if name in kept)


@given(st.lists(entries, max_size=6))
def test_precedence(table):
    """The laws of a table: an earlier place wins whatever it names, the later of two alike wins, what speaks of others
    changes nothing, and no limit is ruled that nobody speaks of.
    """
    rules = winning_overrides(table, MODEL, CANDIDATE)
    speaking = [one for one in table if one.rank(MODEL, CANDIDATE) is not None]

    assert winning_overrides(speaking, MODEL, CANDIDATE) == rules
    assert set(rules) == {one.name for one in speaking}
    for name, one in rules.items():
        rivals = [other for other in speaking if other.name == name]
        assert list(ORIGINS).index(one.origin) == min(list(ORIGINS).index(other.origin) for other in rivals)
        alike = [other for other in rivals if (other.origin, other.model) == (one.origin, one.model)]
        assert one is alike[-1]
        louder = [*table, Override(name, Limit(None, 77.0, "given"), "", "command line")]
        ruled = winning_overrides(louder, MODEL, CANDIDATE)[name].limit.high
        assert (ruled == 77.0) == (one.origin != "command line" or not one.model)


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_a_model_is_held_to_alone_is_not_a_candidates(name):
    """Collapse and nulls are the model's own: an entry that names only a candidate does not speak of them."""
    (one,) = parse_overrides([f"torchao:*:{name}=1"])
    assert (one.rank(MODEL, CANDIDATE) is None) == (name in SINGLE_MODEL_LIMITS)
    assert parse_overrides([f"llama-7b:{name}=1"])[0].rank(MODEL, None) is not None


@pytest.mark.parametrize("name", ["llama-7b", "Llama 7B", "huggyllama/llama-7b", "llama-*", "huggyllama/*"])
@pytest.mark.parametrize("spec", ["llama-7b", "huggyllama/llama-7b"])
def test_an_alias_and_a_hub_id_mean_the_same(name, spec):
    """Whichever of a model's names was typed, an entry for another one speaks of it."""
    assert winning_overrides(parse_overrides([f"{name}:kl=1"]), spec)["kl"].model == name


def test_a_directory_goes_by_its_name_and_its_path(tmp_path, monkeypatch):
    """A directory is named as it is typed, by its own name, or by another way to write its path."""
    folder = checkpoints.copy_of_tiny(tmp_path / "mine-awq")
    monkeypatch.chdir(tmp_path)
    for name in ("./mine-awq", "mine-awq", "*awq*", str(folder), f"{folder}/../mine-awq"):
        assert winning_overrides(parse_overrides([f"{name}:kl=1"]), "tiny", str(folder))["kl"].model == name
    assert winning_overrides(parse_overrides(["awq:kl=1", "mine:kl=1"]), "tiny", str(folder)) == {}


def test_what_speaks_of_nothing():
    """Without a model nothing is idle; with one, what names neither it nor a candidate is, refused on the command line."""
    table = [*parse_overrides(["torchoa:*:kl=1", "kl=1"], "ini"), *parse_overrides(["torchao:*:kl=1"])]
    assert unused_overrides(table, [], []) == ()
    assert [one.model for one in unused_overrides(table, ["tiny"], ["torchao:int8"])] == ["torchoa:*"]
    check_all_used(table, ["tiny"], ["torchao:int8"])
    with pytest.raises(OptionError, match="no model or candidate of this run is called so: tiny, rtn:4"):
        check_all_used(table, ["tiny"], ["rtn:4"])
    with pytest.raises(OptionError, match="no model of this run is called so: tiny\n"):
        check_all_used(parse_overrides(["torchao:*:collapse=5"]), ["tiny"], ["torchao:int8"])


@pytest.mark.parametrize(
    ("text", "words"), [("perplexity=reported", "perplexity reported"), ("rtn:*:kl=reported", "rtn:*: kl reported")]
)
def test_a_limit_can_be_lifted(text, words):
    """``reported`` lifts the limits that follow the scheme, says so, and is written as it was typed."""
    [entry] = parse_overrides([text], "ini")
    assert (entry.limit.low, entry.limit.high, entry.text) == (None, None, text)
    assert entry.limit.source.endswith("reported, not judged")
    assert str(entry) == words


@pytest.mark.parametrize(("name", "said"), [("dependence", "is no number$"), ("perplexity", "no number, or reported")])
def test_what_guards_a_model_cannot_be_lifted(name, said):
    """The limits of the causal checks take numbers alone; where a word is allowed the error names it."""
    with pytest.raises(OptionError, match=f"(?m){said}"):
        parse_overrides([f"{name}={'reported' if name == 'dependence' else 'never'}"])


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("", (0, 0, 0)),
        (MODEL, (1, 1, 0)),
        (CANDIDATE, (2, 1, 0)),
        ("llama*", (1, 0, 5)),
        ("*", (2, 0, 0)),
        ("nobody", None),
    ],
)
def test_the_rank_is_what_is_written_of_it(name, rank):
    """The candidate before its reference, exact names before globs, more letters before fewer."""
    assert Override("kl", Limit(None, 1.0, "given"), name).rank(MODEL, CANDIDATE) == rank
