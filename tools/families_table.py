"""Tries small models of every causal-LM type of transformers, and writes ``docs/families.md``.

``python -m tools.families_table`` takes about an hour of one core. What was tried is kept in ``ROWS`` by type and seed, so
that it goes on where it was stopped; all types come with one seed before any comes with the next. ``SEEDS`` random models
of each type get super weights of every geometry; each has to be located, and nothing besides. A copy of the planted model has to pass the gate. A copy with the planted scalar zeroed, halved or
moved to another row has to fail it, with the place of the super weight in its first line. The planted model packed by a
quantizer (``PACKED``, where the package is installed) has to pass it as well.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
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
from swcheck.superweights.locating.passes import Passes
from swcheck.superweights.subject.as_subject import as_subject
from swcheck.superweights.subject.subject import Subject
from swcheck.testing.planting import Planting, plant_super_weights, visited_experts
from tools.small_models import TYPES, small_model

PAGE: Final = Path(__file__).parents[1] / "docs" / "families.md"
ROWS: Final = PAGE.parents[1] / "build" / "families.jsonl"
SEEDS: Final = 5
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
    red: dict[str, list[bool]] = field(default_factory=dict)
    packed: dict[str, str] = field(default_factory=dict)


def planted_at_some_token(
    model: nn.Module, plan: Sequence[Planting], tokens: Sequence[int] = (0, 7, 11, 13)
) -> tuple[SuperWeight, ...]:
    """Plant at the first of these tokens to which an inner neuron of this random model is local. Raises ``OptionError``."""
    saved = copy.deepcopy(model.state_dict())
    for token in tokens[:-1]:
        with suppress(OptionError):
            return plant_super_weights(model, plan, IDS, position=token)
        model.load_state_dict(saved)
    return plant_super_weights(model, plan, IDS, position=tokens[-1])


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
    """One in this layer and one in the next, at the first token where this model lets both be largest at that token.

    In a random model the first one reaches all tokens a little, and what follows it then reads nearly the same everywhere.
    The second has to write without the first as well: else it is an echo.
    """
    for size in (1000, 60):
        for position in (0, 7, 13):
            later = visited_experts(model, layer + 1, IDS, position)
            if expert not in visited_experts(model, layer, IDS, position) or not later:
                continue
            planted = copy.deepcopy(model)
            plan = [
                Planting(layer, 3, expert=expert, size=size),
                Planting(layer + 1, 9, expert=expert if expert in later else later[0], size=4 * size),
            ]
            with suppress(OptionError):
                wanted = plant_super_weights(planted, plan, IDS, position=position)
                if all(_is_local(planted, one, position) for one in wanted) and _stands_alone(
                    planted, *wanted, position
                ):
                    model.load_state_dict(planted.state_dict())
                    return wanted
    raise OptionError(f"two layers from layer {layer}", "no token at which both are largest", "another type")


def _is_local(model: nn.Module, weight: SuperWeight, position: int) -> bool:
    """Return whether its channel is largest at the token."""
    with torch.no_grad():
        found = Passes(model, checked_anatomy(model), IDS).first.residual[weight.layer, :, weight.row].abs()
    here, others = found[position], torch.cat([found[:position], found[position + 1 :]])
    return bool(here >= others.max())


def _stands_alone(model: nn.Module, first: SuperWeight, second: SuperWeight, position: int) -> bool:
    """Return whether the second one still writes half of its activation, with its sign, with the first one zeroed."""
    body = checked_anatomy(model)
    with torch.no_grad():
        intact = Passes(model, body, IDS).first.residual[second.layer, position, second.row]
        with zeroed(model, [first]):
            alone = Passes(model, body, IDS).first.residual[second.layer, position, second.row]
    return bool(alone / intact >= 1 / 2)


def at_a_later_token(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    return planted_at_some_token(model, [Planting(layer, 3, expert=expert)], (7, 11, 13, 19))


def with_an_echo(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    """One, and a larger value in the same channel in the last layer, which is no super weight."""
    planted = one(model, layer, expert)
    _in_the_last_layer(model, 3000)
    return planted


def with_a_canceller(model: nn.Module, layer: int, expert: Expert) -> tuple[SuperWeight, ...]:
    """One, and in the last layer a weight that takes its activation away."""
    planted = one(model, layer, expert)
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
            packed = load(folder, quantization_config=settings, dtype=torch.float32)
            with torch.no_grad():
                packed(TEXT, use_cache=False)
        except Exception as error:
            return f"does not run ({type(error).__name__})"
    return _cause(packed.eval(), as_subject(planted, token_ids=TEXT)) or "green"


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

Made by `python -m tools.families_table`: {accepted} of {rows} types of transformers that can be built from a small
configuration are accepted. {seeds} random models of each got super weights of every geometry, in a dense map, in an
expert and in a shared expert where they have them: how often they were located, and nothing besides. Then the gate: a
copy is green; with the scalar zeroed, halved or moved to the next row it is red, with the place in its first line.

What a random model does not allow is not planted, and not counted:

- Few let a second super weight, in the next layer, be large at the same token and write the same without the first.
- Where a norm takes the whole stream (BART and its like, the first GPT, GIT, MiniMax) no value persists, or none is local
  to a token.
- Zamba and Zamba 2 mix the channels behind their shared map, so that no weight of it writes a channel of the stream.

A dash says that no model of the type could be planted so, or that no quantizer was installed. Packed is the gate of a
planted model whose linear maps are in 8 bits. "Does not run" is what the package, or transformers with it, says of so
small a model: widths that no kernel takes, a configuration that is not read back.
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
Of those that are not accepted, three are decoders with MLPs: CPM-Ant puts learned tokens of its own before the prompt, so
that positions are not the prompt's; HRM runs its two stacks of layers several times in a pass, so that a place in a layer
has several values; Reformer hands on two streams in two tensors, of which each is computed from the other. ProphetNet
predicts several tokens at a position and keeps a stream for each behind the prompt's.
"""
"""What the page says behind its tables."""


def score(results: list[bool]) -> str:
    """Return a cell: how many of how many."""
    return f"{sum(results)}/{len(results)}" if results else "-"


def packed_cell(verdicts: dict[str, str]) -> str:
    """Return a cell: what passes, and what of the rest."""
    return "<br>".join(f"{name}: {verdict}" for name, verdict in verdicts.items()) or "-"


def page(rows: list[Row], unbuilt: list[str]) -> str:
    """Return the page."""
    accepted = [row for row in rows if not row.refusal]
    head = [
        "type",
        "down projections",
        "none",
        *GEOMETRIES,
        "copy green",
        *(f"{name} red" for name in DAMAGES),
        "packed",
    ]
    counts = [len(row.located["none"]) for row in accepted]
    seeds = f"{max(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    lines = [*HEAD.format(accepted=len(accepted), rows=len(rows), seeds=seeds).splitlines(), ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in accepted:
        cells = [score(row.located.get(name, [])) for name in ("none", *GEOMETRIES)]
        cells += [score(row.green), *(score(row.red.get(name, [])) for name in DAMAGES), packed_cell(row.packed)]
        lines.append("| " + " | ".join([row.name, row.places, *cells]) + " |")
    lines += ["", "Not accepted:", "", "| type | why |", "| --- | --- |"]
    lines += [f"| {row.name} | {row.refusal} |" for row in rows if row.refusal]
    lines += ["", "Not built:", "", "| type | why |", "| --- | --- |"]
    lines += [f"| {name} | {UNBUILT.get(name, 'its small configuration is refused')} |" for name in unbuilt]
    lines += ["", *TAIL.splitlines(), ""]
    return "\n".join(lines)


def kept_rows() -> dict[tuple[str, int], Row | None]:
    """Return what an earlier run tried, by type and seed; None for a type that cannot be built."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    kept = (json.loads(line) for line in lines)
    return {(name, seed): None if row is None else Row(**row) for name, seed, row in kept}


def rows_of(kept: dict[tuple[str, int], Row | None]) -> tuple[list[Row], list[str]]:
    """Return what was seen of each type, and the types that could not be built."""
    by_type = {name: [row for (other, _), row in kept.items() if other == name] for name in TYPES}
    rows = [together(seen) for found in by_type.values() if (seen := [row for row in found if row is not None])]
    return rows, [name for name, found in by_type.items() if found and all(row is None for row in found)]


def show(row: Row | None) -> None:
    """Print what was seen of one random model."""
    if row is not None:
        scores = " ".join(f"{key} {score(value)}" for key, value in row.located.items())
        seen = f"{scores} green {score(row.green)} red {row.red} {row.packed}"
        sys.stdout.write(f"{row.name} {row.refusal or seen}\n")
        sys.stdout.flush()


def main(names: list[str]) -> None:
    """Try the named types with one seed and print them; all of them, and write the page, where none is named."""
    warnings.filterwarnings("ignore")
    for name in names:
        show(tried(name, 0))
    if names:
        return
    kept = kept_rows()
    ROWS.parent.mkdir(exist_ok=True)
    for seed in range(SEEDS):
        for name in TYPES:
            earlier = kept.get((name, 0), Row(name))
            if (name, seed) in kept or earlier is None or (seed and earlier.refusal):
                continue
            row = kept[name, seed] = tried(name, seed)
            show(row)
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, seed, row and asdict(row)]) + "\n")
    PAGE.write_text(page(*rows_of(kept)), encoding="utf-8")
    ROWS.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
