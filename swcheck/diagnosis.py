"""Why a candidate is red: causes in a fixed order, each proven before it is printed.

A super weight, its activation or its block's neighbours are to blame only if giving back what was lost, through a hook,
brings at least half of the lost nats back. Else the order goes on, to what is usual: not the super weights, with the
first layer whose error away from the sink stands out, and the linear maps that answer fixed random inputs worst. What
was ruled out is kept, each with its number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch.func import functional_call

from swcheck import causal
from swcheck.activations import LOADED_AGAIN
from swcheck.anatomy import device_of
from swcheck.coverage import map_errors, unknown_maps
from swcheck.intervene import embedding_set, given_back, residual_set, set_to
from swcheck.kinship import embedding_of
from swcheck.limits import DEFAULTS
from swcheck.measure import token_nats
from swcheck.observe import first_tensor, plain_weight
from swcheck.probes import answers_as
from swcheck.prompted import readings
from swcheck.ratios import ERRORS, LARGEST_EXPONENT, perplexity_of, ratio_of, times

if TYPE_CHECKING:
    from swcheck.kinship import Kinship
    from swcheck.records import SuperActivation, SuperWeight
    from swcheck.subject import Subject

PROVEN: Final = 0.5
"""The least share of the lost nats that has to return."""

NO_LOSS: Final = 1e-4
"""Fewer nats per token than this are no loss, a hundredth of the tightest limit: a share of them proves nothing."""

WHOLE: Final = 1.10
"""A perplexity up to here, that of a plain 4-bit scheme, is no loss that explains a lost dependence."""

WORST: Final = 5
ALIKE: Final = 0.1
"""Two weights within this share of each other count as the same one."""

ROUNDED: Final = 0.01
"""So far apart, by their norms, may the same weights be in two formats; bfloat16 rounds to 0.4 %."""

ENDS: Final = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "float16": 65504.0}
"""The largest finite number of the formats that weights are saturated in."""

Detail: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Finding:
    """A cause in words, the rows under it, and the matrices whose precision it hangs on, by their names in the model.

    ``blame`` is the candidate's, unless it is ``reference``.
    """

    cause: str
    detail: Detail
    matrices: tuple[str, ...] = ()
    advice: str = ""
    blame: str = "candidate"


@dataclass(frozen=True)
class Case:
    """A red candidate beside its reference; ``weights`` are the super weights, ``there`` the same in its coordinates.

    ``share`` is how much of the reference's collapse it still shows, where that is what is red.
    """

    candidate: Subject
    reference: Subject
    kin: Kinship
    weights: tuple[SuperWeight, ...] = ()
    there: tuple[SuperWeight, ...] = ()
    share: float | None = None

    @cached_property
    def ids(self) -> torch.Tensor:
        """What is scored to see how much returns: the windows of a causal check."""
        return causal.starts(self.reference)

    @cached_property
    def before(self) -> float:
        """The reference's nats per token there."""
        return float(causal.intact(self.reference).mean())

    @cached_property
    def damaged(self) -> float:
        """The candidate's."""
        return float(causal.against(self.candidate, self.reference).mean())

    def returning(self, restored: AbstractContextManager[None]) -> tuple[float, str]:
        """The share of the lost nats that comes back inside a block, and the words for it."""
        with restored:
            each = token_nats(self.candidate.live, self.ids)
        nats, lost = float(each.mean()), self.damaged - self.before
        left = math.exp(min(LARGEST_EXPONENT, nats - self.before)) if math.isfinite(nats) else math.inf
        if not lost > max(NO_LOSS, ERRORS * self.reference.noise()[0]):
            return 0.0, f"perplexity x{left:.3f}, no loss beyond the noise that could return"
        share = (self.damaged - nats) / lost if math.isfinite(nats) else 0.0
        return share, f"perplexity x{left:.3f}, {round(100 * share)}% of the loss returns"

    @cached_property
    def written(self) -> tuple[float, ...]:
        """What each super weight writes over what the reference's does."""
        prompt = self.reference.prompt_ids()
        ours = self.candidate.contributions(self.there, prompt, self.reference.sinks(self.weights, prompt))
        return tuple(
            ratio_of(one, other) for one, other in zip(ours, self.reference.written(self.weights), strict=True)
        )

    def down(self, weight: SuperWeight) -> str:
        """The name of the matrix that a super weight stands in."""
        return self.candidate.body.down_name(weight.layer)


Step: TypeAlias = Callable[[Case], "Finding | Detail"]
"""One cause: found and proven, or the rows that say why it is ruled out."""


def explain(case: Case) -> Finding:
    """The first cause of the order that can be proven, what was ruled out before it in the rows under its proof."""
    ruled_out: Detail = ()
    for step in STEPS:
        answer = step(case)
        if isinstance(answer, Finding):
            return _told(answer, ruled_out)
        ruled_out = (*ruled_out, *answer)
    return _told(_not_the_super_weights(case), ruled_out)


def _told(finding: Finding, ruled_out: Detail) -> Finding:
    """The rows in the order they are read in: the proof, what was ruled out, the table."""
    proof = tuple(row for row in finding.detail if row[0] == "proof")
    table = tuple(row for row in finding.detail if row[0] != "proof")
    return replace(finding, detail=(*proof, *ruled_out, *table))


def _ruled_out(words: str) -> Detail:
    return (("ruled out", words),)


def _reference(case: Case) -> Finding | Detail:
    """A reference that is worse than guessing can say nothing about a candidate."""
    value, guessing = perplexity_of(case.reference.intact()[0]), case.reference.vocabulary
    if not value <= guessing:
        words = f"its own perplexity is {value:.4g}, guessing has {guessing:,}"
        return Finding("the reference is sick", (("reference", words),), (), "check its dtype and weights", "reference")
    return (
        *_ruled_out(f"a sick reference (perplexity {value:.4g}, guessing has {guessing:,})"),
        *_ruled_out("another tokenizer or BOS policy (the same ids for two texts)"),
        *_ruled_out(f"another base model or basis ({case.kin.words})"),
    )


def basis(case: Case) -> Finding | Detail:
    """An embedding in another basis than the layers behind it: the reference's embedding, given back."""
    kind = case.kin.kind
    if kind not in {"permuted", "rotated"}:
        return ()
    wanted = _embedded(case)
    if isinstance(wanted, str):
        return (("not known", f"whether only its embedding is {kind}: {wanted}"),)
    share, words = case.returning(embedding_set(case.candidate.live, wanted))
    if share >= PROVEN:
        proof = (("proof", f"the reference's embedding given back through a hook: {words}"),)
        advice = "permute or rotate the layers as well, or leave the embedding as it was"
        return Finding(f"basis: the embedding is {kind}, the layers behind it are not", proof, (), advice)
    return _ruled_out(f"a {kind} embedding before other layers (the reference's given back: {words})")


def _embedded(case: Case) -> torch.Tensor | str:
    """What the reference's embedding gives for ``case.ids``, from its files where it is not loaded; words if unknown."""
    reference, known = case.reference, case.reference.portrait()
    if reference.remembers("embedded") or reference.module is not None:
        return causal.embedded(reference)
    module = embedding_of(case.candidate.live)
    names = [name for name, part in case.candidate.live.named_modules() if part is module]
    if module is None or not names or known.rows is None:
        return "an embedding keeps its table packed"
    table = reference.stored(f"{names[0]}.weight")
    if isinstance(table, str):
        return table
    fits = table.ndim == 2 and table.is_floating_point() and len(table) > int(known.indices.max())
    if not fits or not _same_values(table[known.indices], known.rows):
        return "the reference's files hold another embedding than the baseline"
    with torch.no_grad():  # by the candidate's own module: some scale what they look up
        here = {"weight": table.to(device_of(module))}
        return first_tensor(functional_call(module, here, (case.ids.to(device_of(module)),))).cpu()


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two readings of the same weights agree, but for their rounding to two bytes."""
    return one.shape == other.shape and bool((one.float() - other.float()).norm() <= ROUNDED * other.float().norm())


def _contribution(case: Case) -> Finding | Detail:
    """What the super weights write, given back."""
    if not case.weights:
        basis = case.kin.words if case.kin.kind == "rotated" else "the reference has none"
        return _ruled_out(f"the super weights: {basis}")
    prompt = case.reference.prompt_ids()
    due = case.reference.written(case.weights)
    written = case.candidate.contributions(case.there, prompt, case.reference.sinks(case.weights, prompt))
    numbers = zip(case.candidate.weights(case.there), case.reference.weights(case.weights), due, written, strict=True)
    targets = [replace(weight, value=_restoring(*four)) for weight, four in zip(case.there, numbers, strict=True)]
    share, words = case.returning(set_to(case.candidate.live, targets))
    if share >= PROVEN:
        names = ", ".join(f"layer {w.layer} [{w.row}, {w.column}]" for w in case.weights)
        proof = (("proof", f"restored through a hook: {words}"),)
        matrices = tuple(dict.fromkeys(case.down(weight) for weight in case.there))
        return Finding(f"what the super weights write {_fate(case.written)} ({names})", proof, matrices)
    ratios = ", ".join(f"x{ratio:z.3f}" for ratio in case.written)
    return _ruled_out(f"what the super weights write ({ratios}; restored through a hook: {words})")


def _fate(ratios: Sequence[float]) -> str:
    """What became of what the super weights write, by its ratios to the reference's: the gravest that is true of one."""
    if any(ratio <= -DEFAULTS["contribution"].low for ratio in ratios):  # type: ignore[operator]
        return "has its sign flipped"
    grown = all(not ratio < 1 for ratio in ratios)
    return "is too large" if grown and any(not DEFAULTS["contribution"].holds(ratio) for ratio in ratios) else "is lost"


def _restoring(value: float, expected: float, due: float, written: float) -> float:
    """The weight that writes ``due`` at the input that now gives ``written``; the reference's own where that is 0."""
    if abs(written) < 1e-3 * abs(due) or value == 0:
        return expected
    return value * due / written


def _activation(case: Case) -> Finding | Detail:
    """What the super weights write may be kept and lost by a later layer: the first that does not carry it on."""
    rows: Detail = ()
    for place in case.reference.places(case.weights) if case.weights else ():
        there = replace(place, channel=case.kin.channels[place.channel]) if case.kin.channels else place
        lost = losing_layer(case.candidate, case.reference, place, there)
        if isinstance(lost, str):
            rows += _ruled_out(f"the super activation of channel {there.channel} ({lost})")
            continue
        layer, ratio = lost
        wanted = _wanted(case, place, layer)
        if wanted is None:
            words = f"x{ratio:.2f} after layer {layer}; not given back: its tokens need the reference"
            rows += (
                ("not known", f"whether the lost super activation of channel {there.channel} is the cause ({words})"),
            )
            continue
        share, words = case.returning(residual_set(case.candidate.live, layer, there.channel, wanted))
        told = f"x{ratio:.2f} after layer {layer}; restored through a hook: {words}"
        if share >= PROVEN:
            cause = f"layer {layer} loses the super activation of channel {there.channel} (x{ratio:.2f})"
            kept = all(DEFAULTS["contribution"].holds(share) for share in case.written)
            return Finding(
                f"{cause}{', what the super weights write is kept' if kept else ''}",
                (("proof", told), *rows),
                of_layer(case, layer),
            )
        rows += _ruled_out(f"the super activation of channel {there.channel} ({told})")
    return rows


def losing_layer(
    candidate: Subject, reference: Subject, place: SuperActivation, there: SuperActivation
) -> tuple[int, float] | str:
    """The first layer from the onset on after which a super activation is out of its limits, and its ratio there.

    Words with the range of its ratios where none is.
    """
    prompt = reference.prompt_ids()
    pairs = list(zip(candidate.profile(there, prompt), reference.profile(place, prompt), strict=False))
    ratios = {layer: ratio_of(*pairs[layer]) for layer in range(place.layer, min(place.last + 1, len(pairs)))}
    for layer, ratio in ratios.items():
        if not DEFAULTS["activation"].holds(ratio):
            return layer, ratio
    if not ratios:
        return "its layers are gone"
    return f"x{min(ratios.values()):.3f} to x{max(ratios.values()):.3f} after layers {min(ratios)} to {max(ratios)}"


def lost_in(case: Case) -> int | None:
    """The first layer that loses a super activation, by the profiles on the default prompt; None where none does."""
    for place in case.reference.places(case.weights):
        there = replace(place, channel=case.kin.channels[place.channel]) if case.kin.channels else place
        lost = losing_layer(case.candidate, case.reference, place, there)
        if not isinstance(lost, str):
            return lost[0]
    return None


def _wanted(case: Case, place: SuperActivation, layer: int) -> torch.Tensor | None:
    """What the reference carries in this channel after a layer, at the sink of each window; NaN elsewhere.

    With BOS at position 0 that is one number by causality; without, every window has to be looked at.
    """
    wanted = torch.full((1 if case.reference.has_bos else len(case.ids), case.ids.shape[1]), math.nan)
    if case.reference.has_bos and place.position == 0:
        wanted[0, 0] = case.reference.profile(place, case.reference.prompt_ids())[layer]
        return wanted
    reference = case.reference
    if reference.module is None and (reference.again is None or reference.parameters > LOADED_AGAIN):
        return None
    lengths = (case.ids.shape[1],) * len(case.ids)
    for number, reading in enumerate(readings(case.reference, replace(place, layer=layer), case.ids, lengths)):
        wanted[number if len(wanted) > 1 else 0, reading.position] = reading.value
    return wanted


def of_layer(case: Case, layer: int) -> tuple[str, ...]:
    """The matrices of one layer that answer worst, those that write into the residual stream where it is not known."""
    path = case.candidate.body.path
    if unknown_maps(case.reference) or case.kin.kind in {"permuted", "rotated"}:
        return (case.candidate.body.down_name(layer),)
    errors = [
        (name, error) for name, error in map_errors(case.candidate, case.reference) if name.startswith(f"{layer}.")
    ]
    return tuple(f"{path}.{name}" for name, error in errors if error >= errors[0][1] / 2)


def _neighbours(case: Case) -> Finding | Detail:
    """The rest of the super weights' rows, then of their matrices: rounded on a grid that the outlier made coarse."""
    if not case.weights:
        return ()
    if case.kin.channels or [w.column for w in case.weights] != [w.column for w in case.there]:
        return (("not known", "whether their blocks' neighbours pay: channels or neurons are permuted"),)
    name = ", ".join(dict.fromkeys(f"layer {weight.layer}" for weight in case.weights))
    matrices = tuple(dict.fromkeys(case.down(weight) for weight in case.there))
    told = []
    whole, unknown = _matrices_of(case)
    for what, maps, rows, why in (
        (*_rows_of(case), "the reference is not here or keeps it packed"),
        ("its whole matrix", whole, {}, unknown),
    ):
        if len(maps) < len(matrices):
            told.append(f"{what}: not known, {why}")
            continue
        share, words = case.returning(given_back(case.candidate.live, maps, rows))
        told.append(f"{what} given back: {words}")
        if share >= PROVEN:
            cause = f"block neighbours of the super weight pay ({name}, {what})"
            return Finding(cause, (("proof", f"{what} given back through a hook: {words}"),), matrices)
    return _ruled_out(f"neighbours in the super weights' blocks ({'; '.join(told)})")


def _rows_of(case: Case) -> tuple[str, dict[str, torch.Tensor], dict[str, list[int]]]:
    """The reference's rows that hold super weights, by module."""
    maps: dict[str, torch.Tensor] = {}
    rows: dict[str, list[int]] = {}
    known = case.reference.at_hand or all(case.reference.remembers(("row", weight)) for weight in case.weights)
    for weight in case.weights if known else ():
        row, name = case.reference.row(weight), case.down(weight)
        if row is not None and weight.row not in rows.get(name, []):
            rows.setdefault(name, []).append(weight.row)
            maps[name] = torch.cat([*([maps[name]] if name in maps else []), row[None].to(maps.get(name, row).dtype)])
    return f"row {', '.join(str(row) for found in rows.values() for row in found)}", maps, rows


def _matrices_of(case: Case) -> tuple[dict[str, torch.Tensor], str]:
    """The reference's whole matrices that hold super weights, and why one of them is not known."""
    found: dict[str, torch.Tensor] = {}
    why = ""
    for name, layer in {case.down(weight): weight.layer for weight in case.weights}.items():
        matrix = _matrix(case, layer, name)
        if isinstance(matrix, str):
            why = matrix
        else:
            found[name] = matrix
    return found, why


def _matrix(case: Case, layer: int, name: str) -> torch.Tensor | str:
    """The reference's down projection of a layer, from its files where it is not here; or why not."""
    reference = case.reference
    if reference.module is not None or reference.remembers(("matrix", layer)):
        matrix = reference.matrix(layer)
        return "the reference keeps it packed" if matrix is None else matrix
    return _filed(case, name)


def _filed(case: Case, name: str) -> torch.Tensor | str:
    """A matrix of the reference as its files have it, if it answers as the reference did; or why not.

    Mapped from the file, so that it takes no memory of its own.
    """
    unknown = unknown_maps(case.reference)
    if unknown:
        return unknown
    weight, bias = (case.reference.stored(f"{name}.{part}") for part in ("weight", "bias"))
    if isinstance(weight, str):
        return weight
    inner = name.removeprefix(f"{case.candidate.body.path}.")
    if not answers_as(weight, None if isinstance(bias, str) else bias, inner, case.reference.echoes()):
        return "the reference's files hold another matrix than was measured, or keep it packed"
    return weight


def _dependence(case: Case) -> Finding | Detail:
    """A candidate that has lost nothing else and lives on without them: its constant comes from elsewhere."""
    if case.share is None:
        return ()
    ratio = math.exp(min(LARGEST_EXPONENT, case.damaged - case.before))
    words = f"{case.share:.2f} of the reference's collapse, perplexity intact {times(ratio)}"
    if ratio <= WHOLE:
        advice = "its constant may come from elsewhere: relocate in the candidate"
        return Finding("the candidate does not hang on these weights any more", (("proof", words),), (), advice)
    return _ruled_out(f"a constant from elsewhere ({words}: the intact model is worse already)")


STEPS: Final[tuple[Step, ...]] = (_reference, basis, _contribution, _activation, _neighbours, _dependence)
"""The order; what is not finite, another tokenizer and another base model were ruled out before a case is opened."""


def _not_the_super_weights(case: Case) -> Finding:
    cause, candidate, reference = "not the super weights", case.candidate, case.reference
    depths = candidate.portrait().layers, reference.portrait().layers
    if depths[0] != depths[1]:
        words = f"{depths[0]} layers, where the reference has {depths[1]}: compared layer by layer they mean nothing"
        return Finding(
            f"{cause}, but another depth",
            (("depth", words),),
            (),
            "heal a pruned depth by training, or raise the limit",
        )
    if case.kin.kind == "rotated":
        words = f"which layer and matrices: {case.kin.words}"
        return Finding(cause, (("not known", words),), (), "gate it before it is rotated")
    layer, rise = first_bad_layer(candidate, reference, case.kin.channels)
    cause += f", but the rest of the model (most in layer {layer})"
    detail: Detail = (("layers", f"the error away from the sink rises most in layer {layer} (to {rise:.1%})"),)
    if case.kin.kind == "permuted":
        words = "which matrices: channels are permuted"
        return Finding(cause, (*detail, ("not known", words)), (), "gate it before they are permuted")
    unknown = unknown_maps(reference)
    if unknown:
        advice = "run the gate once with the reference instead of its baseline"
        return Finding(cause, (*detail, ("not known", f"which matrices: {unknown}")), (), advice)
    worst = [(name, error) for name, error in map_errors(case.candidate, case.reference) if error > 0][:WORST]
    names = tuple(f"{candidate.body.path}.{name}" for name, _ in worst)
    detail += tuple((f"layers.{name}", f"answers {error:.1%} off") for name, error in worst)
    detail += _given_back(case, names) if names else ()
    return Finding(cause, detail, names, "" if names else "compare it layer by layer")


def _given_back(case: Case, names: Sequence[str]) -> Detail:
    """What returns with the worst maps replaced by the reference's, as far as it is here or its files are."""
    path, body = case.candidate.body.path, case.reference.body if case.reference.module is not None else None
    maps = {}
    for name in names:
        layer, _, inner = name.removeprefix(f"{path}.").partition(".")
        weight = _filed(case, name) if body is None else plain_weight(body.layers[int(layer)].get_submodule(inner))
        if isinstance(weight, torch.Tensor):
            maps[name] = weight
    if not maps:
        return ()
    words = case.returning(given_back(case.candidate.live, maps, {}))[1]
    what = "this matrix" if len(maps) == 1 else f"these {len(maps)} matrices"
    return (("given back", f"{what} through a hook: {words}"),)


def prepare(reference: Subject) -> None:
    """Measure what explains a red candidate, while the reference's weights are here."""
    prompt = reference.prompt_ids()
    reference.stream(prompt)
    reference.echoes()
    causal.embedded(reference)
    weights = reference.located().super_weights
    for place in reference.places(weights) if weights else ():
        reference.profile(place, prompt)
    for weight, sink in zip(weights, reference.sinks(weights, prompt) if weights else (), strict=True):
        reference.row(weight)
        reference.matrix(weight.layer)
        reference.columns(weight, prompt, sink)


def first_bad_layer(candidate: Subject, reference: Subject, channels: Sequence[int] = ()) -> tuple[int, float]:
    """The layer after which the relative error of the residual stream, the sink left out, has risen most.

    ``channels`` says where each of the reference's channels has gone.
    """
    errors = candidate.stream_errors(reference, channels)
    rises = [now - before for before, now in zip([0.0, *errors], errors, strict=False)]
    layer = max(range(len(rises)), key=lambda number: rises[number])
    return layer, errors[layer]


def weight_cause(candidate: Subject, reference: Subject, weight: SuperWeight, ratio: float) -> str:
    """What became of a super weight that writes ``ratio`` of what it should."""
    place = f"super weight at layer {weight.layer} [{weight.row}, {weight.column}]"
    if not math.isfinite(ratio):
        return f"{place} is not finite"
    moved = _moved_to(candidate, reference, weight)
    if abs(ratio) < 0.25 and moved is not None:
        return f"{place} moved to column {moved}"
    if abs(ratio) < 0.02:
        how = {True: "rounded away", False: "zeroed", None: "gone"}[_on_a_grid(candidate, reference, weight)]
        return f"{place} {how} (x{abs(ratio):.2f})"
    if ratio < 0:
        return f"{place} has its sign flipped (x{ratio:.2f})"
    if ratio < 1:
        end = _end_of_range(candidate, weight)
        how = "clipped or rounded down" if _on_a_grid(candidate, reference, weight) else "weakened"
        return f"{place} {f'cut at the end of the range of {end}' if end else how} (x{ratio:.2f})"
    return f"{place} amplified (x{ratio:.2f})"


def _end_of_range(candidate: Subject, weight: SuperWeight) -> str | None:
    """The format whose largest number now stands there: larger ones were saturated."""
    value = abs(candidate.weights((weight,))[0]) if weight.layer < len(candidate.body.layers) else 0.0
    return next((f"{name} ({end:,.0f})" for name, end in ENDS.items() if value == end), None)


def _moved_to(candidate: Subject, reference: Subject, weight: SuperWeight) -> int | None:
    """The column that now holds what stood at ``weight``, where it did not before."""
    before, after = reference.row(weight), candidate.row(weight)
    if before is None or after is None or not before[weight.column]:
        return None
    value = before[weight.column]
    new = ((after / value - 1).abs() < ALIKE) & ((before / value - 1).abs() >= ALIKE)
    return int(new.nonzero()[0]) if new.any() else None


def _on_a_grid(candidate: Subject, reference: Subject, weight: SuperWeight) -> bool | None:
    """Whether the candidate's row knows few values where the reference's knows many, as a rounded one does.

    None where one of the rows is not known, unless the candidate's own scheme says that it is rounded.
    """
    before, after = reference.row(weight), candidate.row(weight)
    if before is None or after is None:
        return True if candidate.scheme is not None and candidate.scheme.weight_bits < 16 else None
    return len(torch.unique(after)) * 2 <= len(torch.unique(before))
