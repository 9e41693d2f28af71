"""The index against the paper's table, against its own words, and against what people type."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swcheck.base.errors import UnknownModelError
from swcheck.base.records import SuperWeight
from swcheck.loading import published_index
from swcheck.loading.published_index import Coordinate, Status

FILE = Path(published_index.__file__).with_name("published_index.csv")
HEAD = [line for line in FILE.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
ROWS = list(csv.DictReader(FILE.read_text(encoding="utf-8").splitlines()[len(HEAD) :]))

# Table 2 of arXiv 2411.07191v1, model names as printed there, without the one coordinate that is disputed.
PAPER = {
    "Llama 7B": [(2, 3968, 7003)],
    "Llama 13B": [(2, 2231, 2278), (2, 2231, 6939)],
    "Llama 30B": [(3, 5633, 12817), (3, 5633, 17439), (10, 5633, 14386)],
    "Llama2 7B": [(1, 2533, 7890)],
    "Llama2 13B": [(3, 4743, 7678)],
    "Mistral-7B v0.1": [(1, 2070, 7310)],
    "OLMo-1B 0724-hf": [(1, 1764, 1710)],
    "OLMo-7B 0724-hf": [(1, 269, 7467), (2, 269, 8275), (7, 269, 453), (24, 269, 2300)],
    "Phi-3 mini-4k-instruct": [
        (2, 525, 808), (2, 1693, 808), (2, 1113, 808), (4, 525, 2723), (4, 1113, 2723), (4, 1693, 2723),
    ],
}  # fmt: skip

# What is asserted by default, beyond the paper's own and without what is received rather than created.
ASSERTED = {
    "huggyllama/llama-7b": PAPER["Llama 7B"],
    "huggyllama/llama-13b": PAPER["Llama 13B"],
    "huggyllama/llama-30b": PAPER["Llama 30B"],
    "meta-llama/Llama-2-7b-hf": PAPER["Llama2 7B"],
    "meta-llama/Llama-2-13b-hf": PAPER["Llama2 13B"],
    "mistralai/Mistral-7B-v0.1": PAPER["Mistral-7B v0.1"],
    "allenai/OLMo-1B-0724-hf": [(1, 1764, 1710), (2, 1764, 8041)],
    "allenai/OLMo-7B-0724-hf": [(1, 269, 7467), (2, 269, 8275), (7, 269, 453)],
    "microsoft/Phi-3-mini-4k-instruct": PAPER["Phi-3 mini-4k-instruct"],
    "meta-llama/Meta-Llama-3-8B": [(1, 788, 2427), (1, 1384, 2427), (1, 4062, 2427)],
    "meta-llama/Llama-3.1-8B-Instruct": [(1, 788, 2427), (1, 1384, 2427), (1, 4062, 2427)],
    "utter-project/EuroLLM-9B": [(9, 1448, 3575)],
    "Unbabel/TowerBase-7B-v0.1": [(1, 2533, 7890)],
    "Qwen/Qwen2.5-3B": [(2, 318, 3189)],
}

TYPED = {
    "llama-7b": "huggyllama/llama-7b",
    "llama-13b": "huggyllama/llama-13b",
    "llama-30b": "huggyllama/llama-30b",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-v0.1": "mistralai/Mistral-7B-v0.1",
    "olmo-1b": "allenai/OLMo-1B-0724-hf",
    "olmo-7b": "allenai/OLMo-7B-0724-hf",
    "olmo-2-7b": "allenai/OLMo-2-1124-7B",
    "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B",
    "gemma-2-2b": "google/gemma-2-2b",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
    "gpt2": "gpt2",
    "openai-community/gpt2": "gpt2",
    "meta-llama/Meta-Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
    "evo2-7b": "arcinstitute/evo2_7b",
}

NAMES = sorted({name for e in published_index.entries() for name in (e.model, *e.aliases)})
DOUBTED = {"disputed", "insufficient", "withdrawn", "received", "echo", "spurious", "unattributed", "unplaced"}


def at(weight: SuperWeight) -> tuple[int, int, int]:
    """Return the place of a super weight, without its value."""
    return weight.layer, weight.row, weight.column


def coordinate(name: str, layer: int, row: int, column: int, tag: str | None = None) -> Coordinate:
    """Return the one coordinate of this place in an entry; a second one fails the test."""
    place = (layer, row, column)
    [found] = [
        c
        for c in published_index.entry(name).coordinates
        if (c.layer, c.row, c.column) == place and tag in {None, c.tag}
    ]
    return found


@pytest.mark.parametrize("name", PAPER)
def test_papers_table(name: str) -> None:
    """Under the name printed in the paper lie exactly its undisputed coordinates."""
    found = [(c.layer, c.row, c.column) for c in published_index.entry(name).coordinates if c.tag == "PAPER"]
    assert Counter(found) == Counter(PAPER[name])


def test_papers_table_is_whole() -> None:
    """The paper has twenty undisputed coordinates in nine models, and the index no other row with its tag."""
    assert sum(map(len, PAPER.values())) == sum(row["tag"] == "PAPER" for row in ROWS) == 20
    assert len(PAPER) == len({row["model"] for row in ROWS if row["tag"] == "PAPER"}) == 9


def test_asserted_by_default() -> None:
    """The models with asserted super weights, and these weights, are the ones written down here, in order."""
    found = {e.model: [at(w) for w in e.super_weights] for e in published_index.entries() if e.super_weights}
    assert found == {model: sorted(places) for model, places in ASSERTED.items()}


@pytest.mark.parametrize("name", ASSERTED)
def test_known(name: str) -> None:
    """A model with sound coordinates is known, and its super weights carry the values of its coordinates."""
    e = published_index.entry(name)
    assert e.status == "known"
    assert published_index.known_super_weights(name) == e.super_weights
    assert [w.value for w in e.super_weights] == [coordinate(name, *at(w)).value for w in e.super_weights]


@pytest.mark.parametrize(
    ("name", "place", "status"),
    [
        ("olmo-1b", (1, 1764, 8041), "disputed"),
        ("olmo-1b", (1, 623, 1710), "spurious"),
        ("olmo-1b", (15, 1764, 6840), "spurious"),
        ("olmo-7b", (24, 269, 2300), "received"),
        ("olmo-7b", (6, 269, 9562), "withdrawn"),
        ("gemma-7b", (0, 1995, 21041), "insufficient"),
        ("falcon-7b", (3, 2002, 10708), "withdrawn"),
        ("falcon-7b", (4, 2002, 5921), "withdrawn"),
        ("llama-2-7b", (30, 2533, 3721), "echo"),
        ("llama-3.1-8b", (31, 788, 12111), "echo"),
        ("mistral-7b", (31, 53, 2187), "echo"),
        ("mistral-7b-instruct", (1, 2070, 7310), "disputed"),
        ("llama-2-7b-chat", (1, 2533, 7890), "disputed"),
        ("towerinstruct-7b", (1, 2533, 7890), "unattributed"),
        ("aya-expanse-8b", (2, 2619, 1079), "inert"),
        ("gpt2", (2, 447, 666), "inert"),
        ("qwen3-8b", (6, 2276, 5723), "inert"),
        ("llama-3.1-8b", (1, 788, 2427), "unmeasured"),
        ("eurollm-9b-instruct", (9, 1448, 3575), "unmeasured"),
        ("qwen3-0.6b", (2, 35, 55), "unmeasured"),
    ],
)
def test_not_asserted(name: str, place: tuple[int, int, int], status: str) -> None:
    """What is doubted, inert outside the paper, or unmeasured is a candidate under its status, never a default."""
    found = coordinate(name, *place)
    assert found.status == status
    assert found in published_index.entry(name).candidates
    assert place not in map(at, published_index.known_super_weights(name))


def test_the_misprint() -> None:
    """OLMo-1B's second coordinate is disputed in the paper's layer 1 and asserted in the code's layer 2."""
    printed, meant = coordinate("olmo-1b", 1, 1764, 8041), coordinate("olmo-1b", 2, 1764, 8041)
    assert (printed.tag, printed.sound, printed.value) == ("PAPER-DISPUTED", False, 0.0018)
    assert (meant.tag, meant.sound, meant.value) == ("CODE", True, -0.5924)


def test_one_of_two() -> None:
    """Llama-2-7B's unpublished half is a candidate that names a scalar, for ``locate`` to confirm."""
    other = coordinate("llama-2-7b", 1, 1415, 7890)
    assert other in published_index.entry("llama-2-7b").candidates
    assert other.super_weight == SuperWeight(1, 1415, 7890)


def test_values_are_of_the_same_model() -> None:
    """Values read in a base model are not passed off as those of its tuned model."""
    assert coordinate("llama-3.1-8b", 1, 788, 2427).value == -0.6055
    assert [w.value for w in published_index.known_super_weights("llama-3.1-8b-instruct")] == [None] * 3


def test_measured_effects() -> None:
    """Effects are numbers: alone, with the set, infinite, and as a divergence."""
    assert coordinate("llama-7b", 2, 3968, 7003).alone_ratio == 181
    assert coordinate("phi-3-mini", 2, 525, 808).alone_ratio == 1.02
    assert coordinate("phi-3-mini", 2, 525, 808).joint_ratio == 671
    assert coordinate("llama-3-8b", 1, 788, 2427).joint_ratio == math.inf
    assert coordinate("eurollm-9b", 9, 1448, 3575).alone_kl == 3.284


def test_experts_are_shown_not_asserted() -> None:
    """A mixture of experts has candidates that say which expert; none that was not measured is asserted."""
    scalar = coordinate("qwen3-30b-a3b", 1, 940, 711)
    assert (str(scalar.super_weight), scalar.sound) == ("layer 1 expert 68 [940, 711]", False)
    assert {c.expert for c in published_index.entry("deepseek-r1").candidates} == {24, 190, 64, 202, "shared"}
    assert published_index.known_super_weights("deepseek-r1") == ()


def test_sound_brute_force() -> None:
    """Of all tags and statuses, sound are the paper's and its code's undoubted and the follow-ups' effective ones."""
    some = coordinate("llama-7b", 2, 3968, 7003)
    tags = {row["tag"] for row in ROWS}
    sound = {(tag, status) for tag, status in product(tags, Status) if replace(some, tag=tag, status=status).sound}
    effective = {"critical", "contributing", "joint"}
    assert sound == set(product({"PAPER", "CODE"}, effective | {"inert", "unmeasured"})) | set(
        product({"FOLLOWUP"}, effective)
    )


def test_half_a_coordinate_is_never_sound() -> None:
    """Without row or column the soundest coordinate is sound no longer."""
    some = coordinate("llama-7b", 2, 3968, 7003)
    assert some.sound
    assert not any(half.sound for half in [replace(some, row=None), replace(some, column=None)])


def test_no_doubt_among_the_asserted() -> None:
    """No sound coordinate of any entry has a status of doubt."""
    assert not {c.status for e in published_index.entries() for c in e.coordinates if c.sound} & DOUBTED


NONE = {
    "allenai/OLMo-2-1124-7B": "OWEN",
    "arcinstitute/evo2_7b": "GS",
    "gpt2": "OWEN RINKA",
    "microsoft/phi-2": "OWEN",
    "facebook/opt-6.7b": "OWEN",
    "bigscience/bloom-7b1": "ARCTOS",
    "google/gemma-3-12b-pt": "OWEN ARCTOS",
    "google/gemma-2-9b": "HOC OWEN",
    "google/gemma-2-27b": "HOC",
    "microsoft/Phi-3-medium-4k-instruct": "HOC",
}


def test_none_is_a_status_with_a_source() -> None:
    """The models reported to have none are these, each with a source and a ground, and nothing asserted."""
    found = {e.model: e for e in published_index.entries() if e.status == "none"}
    assert {model: e.source for model, e in found.items()} == NONE
    assert all(e.note and e.super_weights == () for e in found.values())
    assert published_index.known_super_weights("olmo-2-7b") == ()


def test_contradicted_is_not_none() -> None:
    """Where one source finds a model insensitive and another does not, it has candidates instead."""
    assert {published_index.entry(name).status for name in ("gemma-2-2b", "llama-3.2-1b", "gemma-7b")} == {"candidates"}


def test_reports_and_assertions_exclude_each_other() -> None:
    """An entry has super weights exactly if it is known, and a note and source of its own exactly if it has none."""
    for e in published_index.entries():
        assert (e.status == "known") == bool(e.super_weights)
        assert (e.status == "none") == bool(e.note) == bool(e.source)
        assert (e.status == "candidates") <= bool(e.candidates)


# --- names


@pytest.mark.parametrize(("typed", "model"), TYPED.items())
def test_typed_names(typed: str, model: str) -> None:
    """What people type leads to the hub id they mean."""
    assert published_index.entry(typed).model == model


def test_every_alias_has_one_entry() -> None:
    """No alias belongs to two entries or is another entry's hub id, and ``aliases`` has them all."""
    counted = Counter(alias for e in published_index.entries() for alias in e.aliases)
    assert set(counted.values()) == {1}
    assert dict(published_index.aliases()) == {alias: e.model for e in published_index.entries() for alias in e.aliases}
    for e in published_index.entries():
        assert {published_index.entry(name).model for name in (e.model, e.model.rpartition("/")[2], *e.aliases)} == {
            e.model
        }


def test_aliases_are_spelled_in_one_way() -> None:
    """Aliases are in lower case, with hyphens, and every alias line of the file is of a model in the file."""
    assert all(re.fullmatch(r"[a-z0-9./-]+", alias) for alias in published_index.aliases())
    models = {row["model"] for row in ROWS}
    assert {line.split()[2].removesuffix(":") for line in HEAD if line.startswith("# alias ")} <= models


@given(st.data())
@settings(deadline=None)
def test_any_case_and_any_joint(data: st.DataObject) -> None:
    """Names may be typed in any case, with blanks or underscores for hyphens and blanks around them."""
    name = data.draw(st.sampled_from(NAMES))
    upper = data.draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    typed = "".join(c.upper() if up else c.lower() for c, up in zip(name, upper, strict=True))
    typed = data.draw(st.sampled_from(["", " ", "\t"])) + typed.replace("-", data.draw(st.sampled_from("-_ "))) + " "
    assert published_index.entry(typed) is published_index.entry(name)
    assert published_index.find(typed) is published_index.entry(name)


@given(st.text())
@settings(deadline=None)
def test_anything_is_found_or_refused(name: str) -> None:
    """Any text is either found by both lookups or refused by both, in words and never with a traceback of ours."""
    if published_index.find(name) is None:
        with pytest.raises(UnknownModelError, match="were asked for"):
            published_index.entry(name)
    else:
        assert published_index.entry(name) is published_index.find(name)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lama-7b", "llama-7b"),
        ("mistral-7", "mistral-7b"),
        ("NousResearch/Llama-2-7b-hf", "meta-llama/llama-2-7b-hf"),
        ("olmo1b", "olmo-1b"),
    ],
)
def test_unknown_names_the_closest(typed: str, meant: str) -> None:
    """An unknown name is refused with what was asked, the closest names of different models, and a way out."""
    with pytest.raises(UnknownModelError, match=re.escape(f"{typed!r} were asked for")) as caught:
        published_index.known_super_weights(typed)
    close = caught.value.found.partition("the closest are ")[2].split(", ")
    assert meant in close
    assert len({published_index.entry(name).model for name in close}) == len(close) <= 4
    assert "`swcheck index`" in caught.value.attempt
    assert isinstance(caught.value, LookupError)


def test_unknown_and_far() -> None:
    """A name near nothing is refused without a list, and ``find`` returns None for it."""
    with pytest.raises(UnknownModelError, match="none that is close") as caught:
        published_index.entry("./weights")
    assert "locate" in caught.value.attempt
    assert published_index.find("./weights") is None


@pytest.mark.parametrize("name", ["", "  ", "\n"])
def test_empty_name(name: str) -> None:
    """An empty name is called empty."""
    with pytest.raises(UnknownModelError, match="an empty name"):
        published_index.entry(name)
    assert published_index.find(name) is None


@pytest.mark.parametrize("name", ["tiny", "Tiny", "tiny_pair"])
def test_tiny_is_elsewhere(name: str) -> None:
    """The embedded model is not among the published ones, and the message says where it is."""
    with pytest.raises(UnknownModelError, match="embedded in swcheck") as caught:
        published_index.entry(name)
    assert f"--model={name.lower().replace('_', '-')}," in caught.value.attempt


def test_an_embedded_model_is_close_as_well() -> None:
    """Who mistypes the name of an embedded model is told of it."""
    assert published_index.closest("tiny-pare") == ("tiny-pair", "tiny")


# --- as others see it


def test_closest_is_public() -> None:
    """The names that the error offers can be had without the error."""
    assert published_index.closest("Lama 7B")[0] == "llama-7b"
    assert published_index.closest("./weights") == ()


def test_as_json_says_it_all() -> None:
    """An entry as JSON has its fields, plain values and the soundness of every coordinate."""
    for e in published_index.entries():
        told = json.loads(json.dumps(published_index.as_json(e)))
        assert [told[key] for key in ("model", "status", "note", "source")] == [e.model, e.status, e.note, e.source]
        assert [c["sound"] for c in told["coordinates"]] == [c.sound for c in e.coordinates]
        assert [c["row"] for c in told["coordinates"]] == [c.row for c in e.coordinates]


def test_as_text() -> None:
    """The asserted coordinates stand with effect and source; candidates are counted, or listed where asked."""
    brief, full = (published_index.as_text(published_index.entry("olmo-1b"), full=full) for full in (False, True))
    assert brief == [
        "allenai/OLMo-1B-0724-hf (olmo-1b-0724-hf, olmo-1b, olmo-1b-0724): known",
        (
            "  layer 1 [1764, 1710] = +0.6323: critical; x3667 alone; x3663 with its set; "
            "13.09 to 47951 with the second one (SUBR); PAPER CODE ARCTOS SUBR"
        ),
        (
            "  layer 2 [1764, 8041] = -0.5924: inert; x1 alone; KL 0.002 alone; "
            "rank 1 by magnitude; printed as layer 1 in the table; CODE ARCTOS"
        ),
        "  candidates, not asserted: 4",
    ]
    assert full[:3] == brief[:3]
    assert full[3] == "  candidates, not asserted:"
    assert full[4].startswith("    layer 1 [1764, 8041] = +0.0018: disputed; x1 alone; rank 13035937")
    assert full[8] == "  sources:"
    cited = [line.strip().partition(": ")[0] for line in full[9:]]
    assert cited == ["PAPER", "CODE", "ARCTOS", "SUBR", "FABIAN"]
    assert full[-1].endswith(published_index.sources()["FABIAN"])


def test_as_text_of_the_others() -> None:
    """A report of none gives its ground and source; what a coordinate does not say is a star."""
    assert published_index.as_text(published_index.entry("phi-2"), full=True) == [
        "microsoft/phi-2 (phi-2, phi2): none",
        "  massive activations zeroed 64.40 to 64.30; OWEN",
        "  sources:",
        f"    OWEN: {published_index.sources()['OWEN']}",
    ]
    assert str(published_index.entry("mixtral").candidates[0]) == "layer 1 expert 3 [*, 7310]"
    assert str(published_index.entry("ministral-3-3b").candidates[0]) == "layer 2 [*, 0]"
    assert str(published_index.entry("smollm2-135m").candidates[0]) == "layer 11 [507, *]"


# --- the file


def test_rows_with_row_and_column() -> None:
    """The file has all eighty published coordinates with both row and column, so many of each tag."""
    assert Counter(row["tag"] for row in ROWS if row["row"] and row["column"]) == {
        "FOLLOWUP": 26, "PAPER": 20, "ECHO": 11, "CODE": 7, "WEAK": 5, "FORK": 3, "FALSE-POSITIVE": 3,
        "PAPER-DISPUTED": 1, "PAPER-TEXT": 1, "INFERRED": 1, "RETRACTED": 1, "EXTRA": 1,
    }  # fmt: skip


def test_rows_without() -> None:
    """The other rows are columns, rows and experts without a scalar, and reports of none."""
    assert Counter(row["tag"] for row in ROWS if not (row["row"] and row["column"])) == {
        "COL-ONLY": 96, "EXPERT-ONLY": 25, "ROW-ONLY": 21, "NONE": 10,
    }  # fmt: skip


def test_rows_are_well_formed() -> None:
    """Every row has a hub id, the places that its tag promises, a known status, and sensible measurements."""
    promised = {"COL-ONLY": {"column"}, "ROW-ONLY": {"row"}, "EXPERT-ONLY": {"expert"}}
    for row in (row for row in ROWS if row["tag"] != "NONE"):
        places = {key for key in ("row", "column", "expert") if row[key]}
        expected = promised.get(row["tag"], {"row", "column"})
        assert re.fullmatch(r"([\w.-]+/)?[\w.-]+", row["model"]), row
        assert expected <= places <= expected | {"expert"}, row
        assert all(row[key].isdecimal() for key in ("layer", *places) if row[key] != "shared"), row
        assert "shared" not in {row["row"], row["column"]}, row
        assert row["status"] in set(Status), row
        assert (row["status"] == "unplaced") == (row["tag"] in promised), row
        assert all(float(row[key]) >= 0 for key in ("alone_ratio", "joint_ratio", "alone_kl") if row[key]), row
        assert not row["value"] or math.isfinite(float(row["value"])), row


def test_reports_of_none_are_well_formed() -> None:
    """A report of none has a model, a ground and a source, and no coordinate or measurement."""
    for row in (row for row in ROWS if row["tag"] == "NONE"):
        assert {key for key in row if row[key]} == {"model", "tag", "status", "note", "source"}, row
        assert row["status"] == "none", row


def test_cells_are_tidy() -> None:
    """Every row has every cell, and no cell has blanks around it."""
    assert all(cell is not None and cell == cell.strip() for row in ROWS for cell in row.values())
    assert {None} & {key for row in ROWS for key in row} == set()


@pytest.mark.parametrize("kind", ["tag", "source"])
def test_legend(kind: str) -> None:
    """Every tag and source key is explained once in the head of the file, and none is explained in vain."""
    explained = [line.split()[2].removesuffix(":") for line in HEAD if line.startswith(f"# {kind} ")]
    assert sorted(explained) == sorted({key for row in ROWS for key in row[kind].split()})
    assert all(row[kind] for row in ROWS)


def test_sources_of_notes() -> None:
    """Whoever is named in brackets in an effect or a note is among the row's sources; ``sources`` has them all."""
    for row in ROWS:
        named = set(re.findall(r"[A-Z][A-Z]+(?:-\d+)?", row["effect"] + row["note"])) & set(published_index.sources())
        assert named <= set(row["source"].split()), row
    assert "2411.07191" in published_index.sources()["PAPER"]


def test_no_row_twice() -> None:
    """No coordinate stands twice under one tag, and no model's rows are apart."""
    keys = [tuple(row[key] for key in ("model", "layer", "row", "column", "expert", "tag")) for row in ROWS]
    assert len(set(keys)) == len(keys)
    changes = sum(a["model"] != b["model"] for a, b in pairwise(ROWS))
    assert changes + 1 == len(published_index.entries())


def test_no_super_weight_twice() -> None:
    """No scalar of a model is asserted twice."""
    assert all(len(set(e.super_weights)) == len(e.super_weights) for e in published_index.entries())


def said_by_the_numbers(c: Coordinate) -> set[str]:
    """Return the statuses that the numbers of an undoubted coordinate allow."""
    if c.alone_ratio is not None and c.alone_ratio >= 1.1:
        return {"critical"} if c.alone_ratio >= 10 else {"contributing"}
    if c.joint_ratio is not None:
        return {"joint"} if c.joint_ratio >= 10 else {"inert"}
    if c.alone_ratio is not None:
        return {"inert"}
    if c.alone_kl is not None:
        return {"contributing"} if c.alone_kl >= 0.1 else {"inert"}
    return {"joint", "inert", "unmeasured"}


def test_status_agrees_with_the_numbers() -> None:
    """No undoubted coordinate has a status that the numbers beside it deny, or one that needs numbers and has none."""
    for c in (c for e in published_index.entries() for c in e.coordinates if c.status not in DOUBTED):
        assert c.status in said_by_the_numbers(c), c
        assert c.status not in {"joint", "inert"} or c.effect or c.alone_ratio or c.joint_ratio or c.alone_kl, c


def test_what_is_read_is_what_is_written() -> None:
    """Every row of the file is a coordinate or a report of the entry of its model, and there is nothing else."""
    entries = published_index.entries()
    assert sum(len(e.coordinates) for e in entries) + sum(bool(e.source) for e in entries) == len(ROWS)
    assert [(e.model, c.layer, c.source) for e in entries for c in e.coordinates] == [
        (row["model"], int(row["layer"]), row["source"]) for row in ROWS if row["tag"] != "NONE"
    ]


# --- what it costs


def test_import_is_light() -> None:
    """Importing the index imports no torch and reads no file."""
    code = "import sys, swcheck.loading.published_index as i; print('torch' in sys.modules, i.entries.cache_info().currsize)"
    root = Path(published_index.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0"]


def test_what_is_handed_out_cannot_be_changed() -> None:
    """Mappings are read-only and entries are frozen, so that a caller cannot change the index for the next one."""
    for mapping in (published_index.aliases(), published_index.sources()):
        with pytest.raises(TypeError):
            mapping["llama-7b"] = "elsewhere"  # type: ignore[index]
    with pytest.raises(AttributeError):
        published_index.entry("llama-7b").model = "elsewhere"  # type: ignore[misc]
    assert published_index.entries() is published_index.entries()
