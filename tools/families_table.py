"""Tries small models of every causal-LM type of transformers, and writes ``docs/families.md``.

``python -m tools.families_table`` takes about an hour; what was tried is kept in ``ROWS``, so that it goes on where it was stopped. ``SEEDS`` random models of each type get super weights
of every geometry; each has to be located, and nothing besides. A copy of the planted model has to pass the gate, and a
copy with the planted scalar zeroed has to fail it with that cause.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import nn

from swcheck import OptionError, RobustnessError, SuperWeight, SwcheckError, assert_super_weights_preserved, locate
from swcheck.lens.architecture.anatomy import Expert, anatomy, checked_anatomy
from swcheck.testing.planting import Planting, plant_super_weights, visited_experts
from tools.small_models import TYPES, small_model

PAGE: Final = Path(__file__).parents[1] / "docs" / "families.md"
ROWS: Final = PAGE.parents[1] / "build" / "families.jsonl"
SEEDS: Final = 6
IDS: Final = torch.arange(5, 29)[None]
TEXT: Final = torch.cat([IDS, torch.randint(3, 64, (13, IDS.shape[1]), generator=torch.Generator().manual_seed(1))])


@dataclass
class Row:
    """What was seen of one type."""

    name: str
    refusal: str = ""
    places: str = ""
    located: dict[str, list[bool]] = field(default_factory=dict)
    green: list[bool] = field(default_factory=list)
    red: list[bool] = field(default_factory=list)


def one(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    return plant_super_weights(model, [Planting(layer, 3, expert=expert)], IDS)


def negative(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    return plant_super_weights(model, [Planting(layer, 3, expert=expert, size=-1000)], IDS)


def several_in_a_row(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    return plant_super_weights(model, [Planting(layer, 3, expert=expert), Planting(layer, 3, expert=expert)], IDS)


def several_in_a_column(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    column = plant_super_weights(copy.deepcopy(model), [Planting(layer, 3, expert=expert)], IDS)[0].column
    return plant_super_weights(model, [Planting(layer, row, column, expert) for row in (3, 9)], IDS)


def at_a_later_token(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    position = next((token for token in (7, 11, 13) if expert in visited_experts(model, layer, IDS, token)), 0)
    return plant_super_weights(model, [Planting(layer, 3, expert=expert)], IDS, position=position)


def with_an_echo(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    """One, and a larger value in the same channel in the last layer, which is no super weight."""
    planted = plant_super_weights(model, [Planting(layer, 3, expert=expert)], IDS)
    _in_the_last_layer(model, 3000)
    return planted


def with_a_canceller(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    """One, and in the last layer a weight that takes its activation away."""
    planted = plant_super_weights(model, [Planting(layer, 3, expert=expert)], IDS)
    _in_the_last_layer(model, -1000)
    return planted


def _in_the_last_layer(model: nn.Module, size: float) -> None:
    last = len(anatomy(model).layers) - 1
    experts = visited_experts(model, last, IDS, 0)
    if experts:
        plant_super_weights(model, [Planting(last, 3, expert=experts[0], size=size)], IDS)


GEOMETRIES: Final[dict[str, Callable[[nn.Module, int, Expert], tuple[SuperWeight, ...]]]] = {
    "one": one,
    "negative": negative,
    "row": several_in_a_row,
    "column": several_in_a_column,
    "later token": at_a_later_token,
    "echo": with_an_echo,
    "canceller": with_a_canceller,
}


def places_to_plant(model: nn.Module) -> Iterator[tuple[int, Expert]]:
    """Yield one place of each kind: the dense map of an early layer, an expert that is visited there, a shared one."""
    seen: set[str] = set()
    for layer in (1, 2, 3, 0):
        for expert in visited_experts(model, layer, IDS, 0):
            kind = "expert" if isinstance(expert, int) else str(expert)
            if kind not in seen:
                seen.add(kind)
                yield layer, expert


def tried(name: str, seeds: int) -> Row | None:
    """Return what was seen of one type; None where its model cannot be built from its default configuration."""
    row = Row(name)
    for seed in range(seeds):
        try:
            model = small_model(name, seed)
        except Exception:
            return None
        try:
            body = checked_anatomy(model)
        except SwcheckError as error:
            row.refusal = error.found
            return row
        paths = dict.fromkeys(place.path for places in body.structure.places for place in places)
        row.places = ", ".join(f"`{path}`" for path in paths)
        row.located.setdefault("none", []).append(not locate(model, token_ids=IDS).super_weights)
        for layer, expert in list(places_to_plant(model)):
            _try_place(row, model, layer, expert)
    return row


def _try_place(row: Row, model: nn.Module, layer: int, expert: Expert) -> None:
    for geometry, make in GEOMETRIES.items():
        planted = copy.deepcopy(model)
        try:
            wanted = make(planted, layer, expert)
        except OptionError as error:  # no neuron of this random model is local to the token, or nothing persists
            sys.stderr.write(f"  {row.name} {geometry} layer {layer} expert {expert}: {error}\n")
            continue
        try:
            found = locate(planted, token_ids=IDS).super_weights
            row.located.setdefault(geometry, []).append(set(found) == set(wanted))
        except Exception as error:
            sys.stderr.write(f"  {row.name} {geometry} layer {layer} expert {expert}: {error}\n")
            row.located.setdefault(geometry, []).append(False)
            continue
        if geometry == "one":
            row.green.append(_cause(copy.deepcopy(planted), planted) == "")
            damaged = copy.deepcopy(planted)
            weight = anatomy(damaged).down_map(wanted[0]).weight
            if weight is not None:
                weight[wanted[0].row, wanted[0].column] = 0
            row.red.append(wanted[0].place in _cause(damaged, planted))


def _cause(candidate: nn.Module, reference: nn.Module) -> str:
    try:
        assert_super_weights_preserved(candidate, reference, token_ids=TEXT)
    except RobustnessError as error:
        return str(error).splitlines()[0]
    return ""


def score(results: list[bool]) -> str:
    """Return a cell: how many of how many."""
    return f"{sum(results)}/{len(results)}" if results else "-"


def page(rows: list[Row], unbuilt: list[str]) -> str:
    """Return the page."""
    accepted = [row for row in rows if not row.refusal]
    head = ["type", "down projections", "none", *GEOMETRIES, "copy green", "zeroed red"]
    lines = [
        "# Model families",
        "",
        "Perplexity and KL divergence are measured of any causal language model. Super weights are looked for in the down",
        "projections of its MLPs and experts. These are found without knowing the family: a short forward pass is followed, and",
        "a linear map that reads an activation function of another one's output is a down projection. The pass also checks that",
        "each layer's output is a sum of its input and what its modules return.",
        "",
        f"Made by `python -m tools.families_table`: {len(accepted)} of {len(rows)} types of transformers that can be built from",
        f"a small configuration are accepted. {SEEDS} random models of each got super weights of every geometry, in a dense map,",
        "in an expert and in a shared expert where they have them: how often they were located, and nothing besides.",
        "",
        "Some models could not be planted, and are not counted: no inner neuron of theirs is local to a token, or the channel does",
        "not persist, since a norm takes the whole stream (BART and its like, the first GPT, MVP, Marian, MiniMax, GIT) or the",
        "channels are mixed behind the map (Zamba 2).",
        "",
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
    ]
    for row in accepted:
        cells = [score(row.located.get(name, [])) for name in ("none", *GEOMETRIES)]
        lines.append("| " + " | ".join([row.name, row.places, *cells, score(row.green), score(row.red)]) + " |")
    lines += ["", "Not accepted:", "", "| type | why |", "| --- | --- |"]
    lines += [f"| {row.name} | {row.refusal} |" for row in rows if row.refusal]
    lines += ["", f"Not built from a small default configuration, so not tried: {', '.join(unbuilt)}.", ""]
    return "\n".join(lines)


def kept_rows() -> dict[str, Row | None]:
    """Return what an earlier run tried, by type; None for a type that cannot be built."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    kept = (json.loads(line) for line in lines)
    return {name: None if row is None else Row(**row) for name, row in kept}


def main(names: list[str]) -> None:
    """Try the named types and print them; all of them, and write the page, where none is named."""
    warnings.filterwarnings("ignore")
    rows = {} if names else kept_rows()
    ROWS.parent.mkdir(exist_ok=True)
    for name in names or TYPES:
        if name in rows:
            continue
        row = rows[name] = tried(name, 1 if names else SEEDS)
        if row is not None:
            scores = " ".join(f"{key} {score(value)}" for key, value in row.located.items())
            sys.stdout.write(f"{name} {row.refusal or f'{scores} green {score(row.green)} red {score(row.red)}'}\n")
            sys.stdout.flush()
        if not names:
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, row and asdict(row)]) + "\n")
    if not names:
        unbuilt = [name for name, row in rows.items() if row is None]
        PAGE.write_text(page([row for row in rows.values() if row is not None], unbuilt), encoding="utf-8")
        ROWS.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
