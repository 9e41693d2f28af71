"""The published numbers: complete, unique, with sources; and how measurements are held against them."""

from __future__ import annotations

from collections import Counter

import pytest

from swcheck.loading import published_index
from swcheck.study import paper
from swcheck.study.common.record import Measurement as Row
from swcheck.study.common.record import Study
from swcheck.study.paper import Cell, compare, published
from swcheck.study.zeroshot.harness import PAPER_TASKS

ALL = paper.all_published()
INTACT, ZEROED = "intact", "super weights zeroed"
RESTORED = "super weights zeroed, super activation restored"


def taken(name, rows):
    return Study(name, "llama-7b", tuple(rows))


def one(model, study, condition, quantity, item="", x="", source=""):
    (found,) = [
        p
        for p in published(model, study)
        if (p.condition, p.quantity, p.item, p.x) == (condition, quantity, item, x) and p.source.startswith(source)
    ]
    return found


def test_nothing_stands_twice():
    """No source gives one cell twice; every table and figure is whole."""
    keys = Counter((p.hub, p.study, p.condition, p.quantity, p.item, p.x, p.source) for p in ALL)
    assert [key for key, count in keys.items() if count > 1] == []
    places = Counter(p.source for p in ALL)
    assert places["PAPER Table 1"] == 4 * 10 + 1
    assert places["PAPER Table 2"] == 21
    assert places["PAPER Table 3"] == 3 * 2 * 5
    assert places["PAPER Table 4"] == 3 * 2 * 4
    assert (places["PAPER Table 5"], places["PAPER Table 6"], places["PAPER Table 7"]) == (8, 12, 8)
    assert places["CODE figures.ipynb, figure 6"] == 11 + 10 + 10 + 10
    assert places["CODE figures.ipynb, figure 7"] == 2 * 2 * 4
    assert len(ALL) == sum(places.values())


def test_sources_and_models_are_named():
    """Every source is one that the index knows, every study one of the seven, every model under one hub id."""
    assert {p.source.split()[0] for p in ALL} <= set(published_index.sources())
    assert set(Counter(p.study for p in ALL)) == {
        "prune", "activations", "stopwords", "scaling", "weights", "w8a8", "where",
    }  # fmt: skip
    assert len({(p.model, p.hub) for p in ALL}) == len({p.hub for p in ALL})
    assert all(published_index.find(p.hub) for p in ALL if p.model != "tower-plus-9b")
    assert {p.unit for p in ALL} == {"", "%", "nats"}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("llama-7b", "prune", ZEROED, "perplexity", "wikitext-2", "", "PAPER"), 1211.11),
        (("llama-7b", "prune", ZEROED, "accuracy", "lambada_openai"), 0.52),
        (("llama-7b", "prune", "other largest weights zeroed", "accuracy", "average"), 69.22),
        (("huggyllama/llama-7b", "activations", INTACT, "largest down_proj output", "", "30"), -1474.0),
        (("llama-7b", "activations", ZEROED, "largest hidden state", "", "29"), 358.0),
        (("Mistral-7B-v0.1", "stopwords", ZEROED, "next-token probability", " the"), 0.0019),
        (("mistral-7b", "scaling", "super weights scaled", "accuracy", "average", "0.5"), 72.931),
        (("olmo-1b", "scaling", "super weights scaled", "perplexity ratio", "wikitext-2", "0"), 3667),
        (("llama-7b", "weights", "4 bit, clipped and kept", "accuracy", "average", "1024"), 45.40),
        (("olmo-7b", "w8a8", "W8A8, super activation restored", "perplexity", "wikitext-2"), 7.80),
        (("phi-3-mini", "where", INTACT, "layer of a super weight", "[1693, 2723]"), 4),
        (("llama-3-8b", "prune", ZEROED, "perplexity", "wikitext-2"), float("inf")),
    ],
)  # fmt: skip
def test_what_the_source_says(where, value):
    """Taken by hand from the paper and from the data behind its figures."""
    assert one(*where).value == value


def test_the_averages_are_those_of_their_rows():
    """The rows of table 1 average to what they say, to the last digit: so do those of the two suspect cells."""
    for condition in (INTACT, ZEROED, "other largest weights zeroed", RESTORED):
        tasks = [
            one("llama-7b", "prune", condition, "accuracy", task, "", "PAPER Table 1").value for task in PAPER_TASKS
        ]
        average = one("llama-7b", "prune", condition, "accuracy", "average", "", "PAPER Table 1").value
        assert sum(tasks) / len(tasks) == pytest.approx(average, abs=0.02)


def test_suspects_are_marked():
    """The two cells of table 1 that repeat the intact row, and the misprinted layer, are marked; nothing else is."""
    marked = [p for p in ALL if p.suspect]
    copied = [p for p in marked if p.study == "prune"]

    assert {(p.model, p.condition, p.item, p.value) for p in copied} == {
        ("llama-7b", RESTORED, "hellaswag", 56.93),
        ("llama-7b", RESTORED, "winogrande", 70.01),
    }
    for cell in copied:
        assert cell.value == one("llama-7b", "prune", INTACT, "accuracy", cell.item).value
    assert {(p.model, p.item) for p in marked if p.study == "where"} == {("olmo-1b", "[1764, 8041]")}
    assert all(p.note for p in marked)


def test_what_is_published_of_a_model():
    """A model is known by alias and hub id in any case; one that nobody wrote about has nothing."""
    assert published("Llama-7B") == published("huggyllama/LLAMA-7b") == published("llama-7b")
    assert {p.study for p in published("llama-7b", "scaling")} == {"scaling"}
    assert published("tiny") == ()


def test_compare():
    """A measured number stands beside the published one of the same cell, in the same unit, and nothing beside a suspect."""
    numbers = published("llama-7b", "prune")
    rows = [Row("accuracy", 0.198, ZEROED, task="arc_challenge"), Row("accuracy", 0.5, RESTORED, task="hellaswag"),
            Row("perplexity ratio", 200.0, ZEROED), Row("perplexity", 1000.0, ZEROED)]  # fmt: skip

    cells = {(c.published.quantity, c.published.item, c.published.condition, c.published.source): c
             for c in compare([taken("prune", rows)], numbers)}  # fmt: skip

    assert len(cells) == len(numbers)
    arc = cells["accuracy", "arc_challenge", ZEROED, "PAPER Table 1"]
    assert (arc.measured, arc.ratio) == (0.198, pytest.approx(1.0))
    assert cells["accuracy", "hellaswag", RESTORED, "PAPER Table 1"] == Cell(
        one("llama-7b", "prune", RESTORED, "accuracy", "hellaswag"), None, "not compared"
    )
    assert cells["accuracy", "hellaswag", ZEROED, "PAPER Table 1"].reason == "not measured"
    assert cells["perplexity ratio", "wikitext-2", ZEROED, "PAPER Table 1"].measured == 200.0
    assert "another text" in cells["perplexity", "wikitext-2", ZEROED, "PAPER Table 1"].reason
    assert all(c.measured is None for c in compare([], numbers))


def test_a_perplexity_is_compared_on_its_own_text():
    """Perplexities of one text stand beside those published on it, and not beside those of another."""
    study = taken("prune", [Row("perplexity", 1000.0, ZEROED)])
    cells = [c for c in compare([study], published("llama-7b", "prune"), corpus="wikitext-2") if c.measured]
    assert {(c.published.item, c.published.source) for c in cells} == {
        ("wikitext-2", "PAPER Table 1"), ("wikitext-2", "ARCTOS"),
    }  # fmt: skip


def test_an_average_needs_its_seven_tasks():
    """Seven tasks give the average, six give none, and their names are said."""
    rows = [
        Row("accuracy", 0.1 * place, "super weights scaled", x=0.5, task=task) for place, task in enumerate(PAPER_TASKS)
    ]
    chosen = [p for p in published("llama-7b", "scaling") if p.x == "0.5"]

    (whole,) = compare([taken("scaling", rows)], chosen)
    (part,) = compare([taken("scaling", rows[1:])], chosen)
    assert whole.measured == pytest.approx(0.3)
    assert part.reason == "an average of seven tasks; arc_challenge not measured"


def test_a_range_holds_for_all_of_it():
    """Hidden states 5 to 29 are one published value: the mean of those layers stands beside it, one layer lower."""
    rows = [Row("largest hidden state", float(layer), layer=layer) for layer in range(32)]
    (cell,) = [
        c for c in compare([taken("activations", rows)], published("llama-7b", "activations"))
        if c.published.condition == INTACT and c.published.x == "5-29"
    ]  # fmt: skip
    assert cell.measured == sum(range(4, 29)) / 25
    assert cell.reason == "mean of 25 of 25"


def test_as_text():
    """Each cell is a row that shows both numbers, the source, and the mark of a suspect."""
    head, *rows = paper.table_rows(compare([], published("llama-7b", "prune")))
    assert {len(row) for row in rows} == {len(head)}
    suspects = [row for row in rows if "suspect; not compared" in row[-1]]
    assert [row[3] for row in suspects] == ["hellaswag", "winogrande"]
    assert rows[0][5:7] == ["41.81 %", "-"]
