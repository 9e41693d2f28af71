"""The page of families is renewed as a whole or by the type."""

from __future__ import annotations

import pytest

from tools import families_table
from tools.families_table import DAMAGES, GEOMETRIES, PAGE, Row, main, page, tables_of


def planted(name, geometries=GEOMETRIES, why="nothing is local"):
    """What is seen of a type in which these geometries can be planted."""
    return Row(
        name,
        places="`mlp`",
        located={"none": [True] * 5, **{geometry: [True] * 5 for geometry in geometries}},
        green=[True] * 5,
        red={damage: [True] * 5 for damage in DAMAGES},
        packed={"torchao": "green"},
        unplanted={geometry: why for geometry in GEOMETRIES if geometry not in geometries},
    )


def test_the_page_is_read_back():
    """What the committed page says of each type is what is written again."""
    text = PAGE.read_text(encoding="utf-8")
    tables = tables_of(text)
    assert page(tables) == text
    assert {name for name, cells in tables.accepted.items() if "-" in cells} == {
        name for name, reasons in tables.unplanted.items() if reasons
    }


def test_one_type_is_renewed_and_the_others_stay(monkeypatch, tmp_path):
    """With ``--only`` a type moves between the tables, or changes its cells, and no other line changes."""
    monkeypatch.setattr(families_table, "PAGE", tmp_path / "families.md")
    monkeypatch.setattr(families_table, "ROWS", tmp_path / "build" / "rows.jsonl")
    tables = families_table.Tables()
    for row in (planted("one"), planted("two", ["one"]), Row("three", refusal="an encoder")):
        tables.add(row.name, row)
    families_table.PAGE.write_text(page(tables), encoding="utf-8")
    seen = {"two": planted("two", ["one", "row"], "bounded"), "three": None}
    monkeypatch.setattr(families_table, "tried", lambda name, _seed: seen[name])
    main(["--only", "two", "three"])
    tables.add("two", planted("two", ["one", "row"], "bounded"))
    tables.add("three", None)
    changed = families_table.PAGE.read_text(encoding="utf-8")
    assert tables_of(changed).unplanted["two"] == [
        ("negative, column, two layers, later token, echo, canceller", "bounded")
    ]
    assert "| one | `mlp` | 5/5 |" in changed
    assert "| three | its small configuration is refused |" in changed
    assert families_table.ROWS.read_text(encoding="utf-8") == ""


@pytest.mark.parametrize("name", ["two", "three"])
def test_a_dash_has_its_reason(name):
    """Every geometry that could not be planted stands in the table of reasons, those of one reason together."""
    tables = families_table.Tables()
    tables.add(name, planted(name, [], "bounded"))
    tables.add("other", planted("other", [], "bounded"))
    assert f"| all | {min(name, 'other')}, {max(name, 'other')} | bounded |" in page(tables)
