"""Tries small models of every causal-LM type of transformers, and writes ``docs/families.md``.

``python -m tools.families_table`` takes about an hour of one core; with ``--only`` and types behind it, it renews what the
page says of these. What was tried is kept in ``ROWS`` by type and seed, so that it goes on where it was stopped; all types
come with one seed before any comes with the next. ``SEEDS`` random models of each type get super weights of every geometry;
each has to be located, and nothing besides. A copy of the planted model has to pass the gate. A copy with the planted scalar
zeroed, halved or moved to another row has to fail it, with the place of the super weight in its first line. The planted model
packed by a quantizer (``PACKED``, where the package is installed) has to pass it as well.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import nn

from swcheck import (
    OptionError,
    RobustnessError,
    SuperWeight,
    SwcheckError,
    assert_super_weights_preserved,
    locate,
    zeroed,
)
from swcheck.lens.architecture.anatomy import Expert, anatomy, checked_anatomy
from swcheck.superweights.locating.activation_rules import DEFAULT_RULES
from swcheck.superweights.locating.passes import Passes
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.subject import Subject
from swcheck.testing.planting import Planting, plant_super_weights, visited_experts
from tools.small_models import TYPES, small_model

PAGE: Final = Path(__file__).parents[1] / "docs" / "families.md"
ROWS: Final = PAGE.parents[1] / "build" / "families.jsonl"
SEEDS: Final = 5
IDS: Final = torch.arange(5, 29)[None]
APART: Final = ((13, 7), (19, 7), (11, 0), (19, 11), (17, 3))
"""Where two super weights write, the first and the second, that do not write at one token."""
TEXT: Final = torch.cat([IDS, torch.randint(3, 64, (13, IDS.shape[1]), generator=torch.Generator().manual_seed(1))])


@dataclass
class Row:
    """What was seen of one type."""

    name: str
    refusal: str = ""
    places: str = ""
    located: dict[str, list[bool]] = field(default_factory=dict)
    green: list[bool] = field(default_factory=list)
    red: dict[str, list[bool]] = field(default_factory=dict)
    packed: dict[str, str] = field(default_factory=dict)
    unplanted: dict[str, str] = field(default_factory=dict)
    """Why a geometry could not be planted, at the first place and token where it could not."""


def planted_at_some_token(
    model: nn.Module, plan: Sequence[Planting], tokens: Sequence[int] = (0, 7, 11, 13, 3, 17, 19, 21)
) -> tuple[SuperWeight, ...]:
    """Plant at the first of these tokens to which an inner neuron of this random model is local.

    Where there is none, raises the ``OptionError`` that is met most often, of those at tokens that reach the expert.
    """
    saved, errors = copy.deepcopy(model.state_dict()), []
    for token in tokens:
        try:
            return plant_super_weights(model, plan, IDS, position=token)
        except OptionError as error:
            errors.append(error)
            model.load_state_dict(saved)
    errors = [error for error in errors if not error.found.endswith("does not reach it")] or errors
    kinds = [re.sub(r"[\d.e+-]+", "", error.found) for error in errors]
    raise errors[kinds.index(Counter(kinds).most_common(1)[0][0])]


def one(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    return planted_at_some_token(model, [Planting(layer, 3, expert=expert)])


def negative(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    return planted_at_some_token(model, [Planting(layer, 3, expert=expert, size=-1000)])


def several_in_a_row(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    return planted_at_some_token(model, [Planting(layer, 3, expert=expert), Planting(layer, 3, expert=expert)])


def several_in_a_column(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    column = one(copy.deepcopy(model), layer, expert)[0].column
    return planted_at_some_token(model, [Planting(layer, row, column, expert) for row in (3, 9)])


def in_two_layers(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    """One in this layer and one in the next, where this model lets each be largest at its token, and at least a tenth of
    the other: a smaller value is no super activation.

    They write at one token; else the first one at a later token, which the second one's does not see. In a random model
    the first one reaches all later tokens a little, and what follows it then reads nearly the same everywhere. The second has
    to write without the first as well: else it is an echo.
    """
    for (first, second), size in [*product(((0, 0), (7, 7), (13, 13)), (1000, 60)), *product(APART, (1000, 60))]:
        later = visited_experts(model, layer + 1, IDS, second)
        if expert not in visited_experts(model, layer, IDS, first) or not later:
            continue
        planted = copy.deepcopy(model)
        with suppress(OptionError):
            one = Planting(layer, 3, expert=expert, size=size)
            other = Planting(layer + 1, 9, expert=expert if expert in later else later[0], size=4 * size)
            if first == second:
                wanted = plant_super_weights(planted, [one, other], IDS, position=first)
            else:
                wanted = plant_super_weights(planted, [one], IDS, position=first)
                wanted += plant_super_weights(planted, [other], IDS, position=second)
            sizes = [_size(planted, weight, token) for weight, token in zip(wanted, (first, second), strict=True)]
            are_large = min(sizes) >= DEFAULT_RULES.below_peak * max(sizes) > 0
            if are_large and _stands_alone(planted, *wanted, second):
                model.load_state_dict(planted.state_dict())
                return wanted
    raise OptionError(
        f"two layers from layer {layer}",
        "no tokens at which each is largest, and at least a tenth of the other",
        "another type",
    )


def _size(model: nn.Module, weight: SuperWeight, position: int) -> float:
    """Return the magnitude in the weight's channel at the token; 0 where it is larger at another token."""
    with torch.no_grad():
        found = Passes(model, checked_anatomy(model), IDS).first.residual[weight.layer, :, weight.row].abs()
    return float(found[position]) if found[position] >= found.max() else 0.0


def _stands_alone(model: nn.Module, first: SuperWeight, second: SuperWeight, position: int) -> bool:
    """Return whether the second one still writes half of its activation with the first one zeroed.

    Its channel has to keep its sign where it is largest then.
    """
    body = checked_anatomy(model)
    with torch.no_grad():
        intact = Passes(model, body, IDS).first.residual[second.layer, position, second.row]
        with zeroed(model, [first]):
            alone = Passes(model, body, IDS).first.residual[second.layer, :, second.row]
    largest = alone[alone.abs().argmax()]
    return bool(alone[position] / intact >= 1 / 2 and largest * intact > 0)


def at_a_later_token(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    return planted_at_some_token(model, [Planting(layer, 3, expert=expert)], (7, 11, 13, 19, 3, 5, 16, 21))


def with_an_echo(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    """One, and a larger value in the same channel in the last layer, which is no super weight."""
    planted = one(model, layer, expert)
    _in_the_last_layer(model, planted[0], 3000)
    return planted


def with_a_canceller(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    """One, and in the last layer a weight that takes its activation away."""
    planted = one(model, layer, expert)
    _in_the_last_layer(model, planted[0], -1000)
    return planted


def _in_the_last_layer(model: nn.Module, planted: SuperWeight, size: float) -> None:
    """Plant there too. Where layers run in rounds, the channel of ``planted`` has to stay large at few tokens."""
    last = len(anatomy(model).layers) - 1
    experts = visited_experts(model, last, IDS, 0)
    if experts:
        plant_super_weights(model, [Planting(last, 3, expert=experts[0], size=size)], IDS)
    body = checked_anatomy(model)
    with torch.no_grad():
        found = Passes(model, body, IDS).first.residual[planted.layer, :, planted.row].abs()
    if body.structure.rounds > 1 and int((found >= found.max() / 2).sum()) > len(found) // 4:
        raise OptionError(f"plant into layer {last}", "it makes the other one large at many tokens", "another type")


GEOMETRIES: Final[dict[str, Callable[[nn.Module, int, Expert], tuple[SuperWeight, ...]]]] = {
    "one": one,
    "negative": negative,
    "row": several_in_a_row,
    "column": several_in_a_column,
    "two layers": in_two_layers,
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


def tried(name: str, seed: int) -> Row | None:
    """Return what was seen of one random model of a type; None where it cannot be built from its configuration."""
    row = Row(name)
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
    for number, (layer, expert) in enumerate(list(places_to_plant(model))):
        geometries = {name: make for name, make in GEOMETRIES.items() if number == 0 or make is not in_two_layers}
        _try_place(row, model, layer, expert, geometries, is_packed=seed == 0)
    return row


def together(rows: list[Row]) -> Row:
    """Return what was seen of several random models of one type."""
    first, *others = rows
    whole = Row(first.name, first.refusal, first.places, packed=dict(first.packed))
    for row in rows:
        whole.unplanted = {**row.unplanted, **whole.unplanted}
        whole.green += row.green
        for results, more in ((whole.located, row.located), (whole.red, row.red)):
            for name, values in more.items():
                results.setdefault(name, []).extend(values)
    for row in others:
        whole.packed = {**row.packed, **whole.packed}
    return whole


def _try_place(
    row: Row,
    model: nn.Module,
    layer: int,
    expert: Expert,
    geometries: dict[str, Callable[..., tuple[SuperWeight, ...]]],
    *,
    is_packed: bool,
) -> None:
    for geometry, make in geometries.items():
        planted = copy.deepcopy(model)
        try:
            wanted = make(planted, layer, expert)
        except OptionError as error:  # no neuron of this random model is local to the token, or nothing persists
            sys.stderr.write(f"  {row.name} {geometry} layer {layer} expert {expert}: {error}\n")
            row.unplanted.setdefault(geometry, error.found)
            if geometry == "one":
                for other in geometries:
                    row.unplanted.setdefault(other, error.found)
                return
            continue
        try:
            found = locate(planted, token_ids=IDS).super_weights
            row.located.setdefault(geometry, []).append(set(found) == set(wanted))
        except Exception as error:
            sys.stderr.write(f"  {row.name} {geometry} layer {layer} expert {expert}: {error}\n")
            row.located.setdefault(geometry, []).append(False)
            continue
        if geometry == "one":
            _try_gate(row, planted, wanted[0])
            if is_packed:
                _try_packed(row, planted)


def _try_gate(row: Row, planted: nn.Module, wanted: SuperWeight) -> None:
    """A copy is green; zeroed, halved and moved are red with the place."""
    reference = as_subject(planted, token_ids=TEXT)  # measured once
    row.green.append(_cause(copy.deepcopy(planted), reference) == "")
    for name, damage in DAMAGES.items():
        damaged = copy.deepcopy(planted)
        weight = anatomy(damaged).down_map(wanted).weight
        if weight is not None:
            damage(weight, wanted)
            row.red.setdefault(name, []).append(wanted.place in _cause(damaged, reference))


def _try_packed(row: Row, planted: nn.Module) -> None:
    """Packed by a quantizer the model is green."""
    for name, settings in PACKED.items():
        if name not in row.packed:
            row.packed[name] = _packed(planted, settings())


def _zero(weight: torch.Tensor, place: SuperWeight) -> None:
    weight[place.row, place.column] = 0


def _halve(weight: torch.Tensor, place: SuperWeight) -> None:
    weight[place.row, place.column] /= 2


def _move(weight: torch.Tensor, place: SuperWeight) -> None:
    other = (place.row + 1) % weight.shape[0]
    weight[[place.row, other], place.column] = weight[[other, place.row], place.column]


DAMAGES: Final = {"zeroed": _zero, "halved": _halve, "moved": _move}


def _torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _bitsandbytes() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=True)


PACKED: Final[dict[str, Callable[[], Any]]] = {
    name: make for name, make in (("torchao", _torchao), ("bitsandbytes", _bitsandbytes)) if find_spec(name)
}
"""Quantizers that are installed, each with its configuration of 8 bits."""


def _packed(planted: Any, settings: Any) -> str:
    """Return the verdict on the planted model packed by a quantizer: ``green``, or what the gate says."""
    with TemporaryDirectory() as folder:
        planted.save_pretrained(folder)
        try:
            load: Any = type(planted).from_pretrained
            packed, report = load(folder, quantization_config=settings, dtype=torch.float32, output_loading_info=True)
            with torch.no_grad():
                packed(TEXT, use_cache=False)
        except Exception as error:
            return f"does not run ({type(error).__name__})"
    verdict = _cause(packed.eval(), as_subject(planted, token_ids=TEXT))
    if verdict and report["missing_keys"]:
        return f"not read back (transformers draws {len(report['missing_keys'])} tensors anew)"
    return verdict or "green"


def _cause(candidate: nn.Module, reference: Subject) -> str:
    try:
        assert_super_weights_preserved(as_subject(candidate, token_ids=TEXT), reference)
    except (RobustnessError, SwcheckError) as error:
        return str(error).splitlines()[0]
    return ""


HEAD: Final = """\
# Model families

Perplexity and KL divergence are measured of any causal language model. Super weights are looked for in the down
projections of its MLPs and experts. These are found without knowing the family: a short forward pass is followed, and
a linear map that reads an activation function of another one's output is a down projection. The pass also checks that
each layer's output is a sum of its input and what its modules return.

A model may keep several residual streams beside each other, which each layer mixes by weights that the token chooses
(hyper-connections: DeepSeek V4, Hunyuan V4, Qwen 4; Gemma 3n). It is read in their mean. The pass then checks that each
token's streams are sums of its streams before and of what the modules return. Of BLT the local decoder is looked at, which
ends in the head; the stacks that feed it are not.

Layers that hand on several tensors (Reformer, whose attention adds to one and whose MLP to the other) are read in the one to
which the pass shows MLPs' outputs to be added. Layers that run in several rounds of one pass are read in their last round,
while the sums are checked in each, and a scalar that is zeroed is zeroed in all. Of HRM that is the high-level stack,
which ends in the head; the low-level one is not looked at. Reformer's LSH attention draws other hashes in each pass over
more tokens than a chunk has, unless the configuration has a `hash_seed`: set one, or two scores of one model differ.

Made by `python -m tools.families_table`: {accepted} of {rows} types of transformers that can be built from a small
configuration are accepted. {seeds} random models of each got super weights of every geometry, in a dense map, in an
expert and in a shared expert where they have them: how often they were located, and nothing besides. Then the gate: a
copy is green; with the scalar zeroed, halved or moved to the next row it is red, with the place in its first line.

What a random model does not allow is not planted, and not counted. A dash says that no model of the type could be planted
so, for the reason below the table. Where a norm takes the whole stream in each layer (BART and its like, the first GPT, GIT,
MiniMax), a channel is bounded by the root of the width: below a width of about 1,100 none can be 50 times the median. Zamba's
shared map writes into what the Mamba mixer reads, and no weight of it into one channel of the stream.

Packed is the gate of a planted model whose linear maps are in 8 bits. "Does not run" is what the package, or transformers
with it, says of so small a model: widths that no kernel takes, a configuration that is not read back.
"""
"""What the page says before its tables."""

UNBUILT: Final = {
    "gemma3n": "its image tower needs a package of its own (timm); `gemma3n_text` is its text part",
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"), "a drafter: it reads the hidden states of another model"
    ),
    **dict.fromkeys(
        ("musicgen", "musicgen_melody"), "writes sound, in several codebooks at once, for a text that an encoder reads"
    ),
}
"""Why a type is not built."""

TAIL: Final = """\
Of those that are not accepted, two are meant as decoders with MLPs. CPM-Ant lets every token see all others as transformers
computes it, its own learned tokens before the prompt among them. ProphetNet predicts several tokens at a position and keeps
a stream for each behind the prompt's.
"""
"""What the page says behind its tables."""


def score(results: list[bool]) -> str:
    """Return a cell: how many of how many."""
    return f"{sum(results)}/{len(results)}" if results else "-"


def packed_cell(verdicts: dict[str, str]) -> str:
    """Return a cell: what passes, and what of the rest."""
    return "<br>".join(f"{name}: {verdict}" for name, verdict in verdicts.items()) or "-"


@dataclass
class Tables:
    """The lines of the page's tables: cells behind the type, by type; a type may have several reasons for dashes."""

    accepted: dict[str, list[str]] = field(default_factory=dict)
    unplanted: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)
    unbuilt: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, row: Row | None) -> None:
        """Take what was seen of a type in place of what the page says; None for one that cannot be built."""
        for table in (self.accepted, self.unplanted, self.refused, self.unbuilt):
            table.pop(name, None)
        if row is None:
            self.unbuilt[name] = [UNBUILT.get(name, "its small configuration is refused")]
        elif row.refusal:
            self.refused[name] = [row.refusal]
        else:
            located = [score(row.located.get(geometry, [])) for geometry in ("none", *GEOMETRIES)]
            gated = [score(row.green), *(score(row.red.get(damage, [])) for damage in DAMAGES)]
            self.accepted[name] = [row.places, *located, *gated, packed_cell(row.packed)]
            self.unplanted[name] = reasons(row)


def reasons(row: Row) -> list[tuple[str, str]]:
    """Return which geometries were never planted, and why: those of one reason together."""
    found: dict[str, list[str]] = {}
    for geometry in GEOMETRIES:
        if not row.located.get(geometry):
            found.setdefault(row.unplanted.get(geometry, "not tried"), []).append(geometry)
    return [("all" if len(names) == len(GEOMETRIES) else ", ".join(names), why) for why, names in found.items()]


def page(tables: Tables) -> str:
    """Return the page."""
    head = [
        "type",
        "down projections",
        "none",
        *GEOMETRIES,
        "copy green",
        *(f"{name} red" for name in DAMAGES),
        "packed",
    ]
    counts = sorted({int(cells[1].rpartition("/")[2]) for cells in tables.accepted.values()})
    seeds = " to ".join(str(count) for count in (counts if len(counts) == 1 else (counts[0], counts[-1])))
    accepted, built = len(tables.accepted), len(tables.accepted) + len(tables.refused)
    lines = [*HEAD.format(accepted=accepted, rows=built, seeds=seeds).splitlines(), "", *_table(head, tables.accepted)]
    together: dict[tuple[str, str], list[str]] = {}
    for name in sorted(tables.unplanted):
        for reason in tables.unplanted[name]:
            together.setdefault(reason, []).append(name)
    lines += ["", "Not planted:", "", "| geometry | type | why |", "| --- | --- | --- |"]
    lines += [f"| {geometry} | {', '.join(names)} | {why} |" for (geometry, why), names in together.items()]
    lines += ["", "Not accepted:", "", *_table(["type", "why"], tables.refused)]
    lines += ["", "Not built:", "", *_table(["type", "why"], tables.unbuilt)]
    return "\n".join([*lines, "", *TAIL.splitlines(), ""])


def _table(head: list[str], rows: dict[str, list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([name, *rows[name]] for name in sorted(rows))]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def tables_of(text: str) -> Tables:
    """Return the tables of a page."""
    found, title = Tables(), "Accepted:"
    for line in text.splitlines():
        title = line if line.startswith("Not ") and line.endswith(":") else title
        first, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or first in {"type", "geometry", "---"}:
            continue
        if title == "Not planted:":
            for name in cells[0].split(", "):
                found.unplanted.setdefault(name, []).append((first, cells[1]))
        else:
            tables = {"Accepted:": found.accepted, "Not accepted:": found.refused, "Not built:": found.unbuilt}
            tables[title][first] = cells
    return found


def kept_rows() -> dict[tuple[str, int], Row | None]:
    """Return what an earlier run tried, by type and seed; None for a type that cannot be built."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    kept = (json.loads(line) for line in lines)
    return {(name, seed): None if row is None else Row(**row) for name, seed, row in kept}


def show(row: Row | None) -> None:
    """Print what was seen of one random model."""
    if row is not None:
        scores = " ".join(f"{key} {score(value)}" for key, value in row.located.items())
        seen = f"{scores} green {score(row.green)} red {row.red} {row.packed}"
        sys.stdout.write(f"{row.name} {row.refusal or seen}\n")
        sys.stdout.flush()


def renew(names: Sequence[str]) -> None:
    """Try types with every seed, and write what was seen of them into the page."""
    kept = kept_rows()
    ROWS.parent.mkdir(exist_ok=True)
    for seed, name in product(range(SEEDS), names):
        earlier = kept.get((name, 0), Row(name))
        if (name, seed) in kept or earlier is None or (seed and earlier.refusal):
            continue
        row = kept[name, seed] = tried(name, seed)
        show(row)
        with ROWS.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, seed, row and asdict(row)]) + "\n")
    tables = Tables() if set(names) == set(TYPES) else tables_of(PAGE.read_text(encoding="utf-8"))
    for name in names:
        seen = [row for (other, _), row in kept.items() if other == name and row is not None]
        tables.add(name, together(seen) if seen else None)
    PAGE.write_text(page(tables), encoding="utf-8")
    others = [line for line in ROWS.read_text(encoding="utf-8").splitlines() if json.loads(line)[0] not in names]
    ROWS.write_text("".join(f"{line}\n" for line in others), encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Try the named types with one seed and print them; all of them, or those behind ``--only``, write the page."""
    warnings.filterwarnings("ignore")
    if not arguments or arguments[0] == "--only":
        renew(arguments[1:] or TYPES)
        return
    for name in arguments:
        show(tried(name, 0))


if __name__ == "__main__":
    main(sys.argv[1:])
