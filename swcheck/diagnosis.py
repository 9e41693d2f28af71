"""Why a candidate is red: causes in a fixed order, each proven before it is printed.

A super weight, its activation or its block's neighbours are to blame only if giving back what was lost, through a hook,
brings at least half of the lost nats back. Else the order goes on, to what is usual: not the super weights, with the
first layer whose error away from the sink stands out, and the linear maps that answer fixed random inputs worst. What
was ruled out is kept, each with its number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import torch

from swcheck.case import Case, Detail, Finding, embedded, excluded, matrix
from swcheck.elsewhere import not_the_super_weights, of_layer
from swcheck.fate import fate_of
from swcheck.intervene import embedding_set, given_back, residual_set, set_to
from swcheck.limits import DEFAULTS
from swcheck.prompted import readings
from swcheck.ratios import LARGEST_EXPONENT, perplexity_of, ratio_of, times

if TYPE_CHECKING:
    from swcheck.intervene import Weight
    from swcheck.records import SuperActivation
    from swcheck.subject import Subject

PROVEN: Final = 0.5
"""The least share of the lost nats that has to return."""

WHOLE: Final = 1.10
"""A perplexity up to here, that of a plain 4-bit scheme, is no loss that explains a lost dependence."""

Step: TypeAlias = Callable[[Case], "Finding | Detail"]
"""One cause: found and proven, or the rows that say why it is ruled out."""


def explain(case: Case) -> Finding:
    """The first cause of the order that can be proven, what was ruled out before it in the rows under its proof."""
    ruled_out: Detail = ()
    for step in STEPS:
        answer = step(case)
        if isinstance(answer, Finding):
            return _told(case, answer, ruled_out)
        ruled_out = (*ruled_out, *answer)
    return _told(case, not_the_super_weights(case), ruled_out)


def _told(case: Case, finding: Finding, ruled_out: Detail) -> Finding:
    """The rows in the order they are read in: the proof, what it was tried on, what was ruled out, the table."""
    proof = tuple(row for row in finding.detail if row[0] == "proof")
    table = tuple(row for row in finding.detail if row[0] != "proof")
    return replace(finding, detail=(*proof, *case.tried_on, *ruled_out, *table))


def _reference(case: Case) -> Finding | Detail:
    """A reference that is worse than guessing can say nothing about a candidate."""
    value, guessing = perplexity_of(case.reference.intact()[0]), case.reference.vocabulary
    if not value <= guessing:
        words = f"its own perplexity is {value:.4g}, guessing has {guessing:,}"
        return Finding("the reference is sick", (("reference", words),), (), "check its dtype and weights", "reference")
    return (
        *excluded(f"a sick reference (perplexity {value:.4g}, guessing has {guessing:,})"),
        *excluded("another tokenizer or BOS policy (the same ids for two texts)"),
        *excluded(f"another base model or basis ({case.kin.words})"),
    )


def basis(case: Case) -> Finding | Detail:
    """An embedding in another basis than the layers behind it: the reference's embedding, given back."""
    kind = case.kin.kind
    if kind not in {"permuted", "rotated"}:
        return ()
    wanted = embedded(case)
    if isinstance(wanted, str):
        return (("not known", f"whether only its embedding is {kind}: {wanted}"),)
    share, words = case.returning(partial(embedding_set, wanted=wanted))
    if share >= PROVEN:
        proof = (("proof", f"the reference's embedding given back through a hook: {words}"),)
        advice = "permute or rotate the layers as well, or leave the embedding as it was"
        return Finding(f"basis: the embedding is {kind}, the layers behind it are not", proof, (), advice)
    return excluded(f"a {kind} embedding before other layers (the reference's given back: {words})")


def _contribution(case: Case) -> Finding | Detail:
    """What the super weights write, given back."""
    if not case.weights:
        basis = case.kin.words if case.kin.kind == "rotated" else "the reference has none"
        return excluded(f"the super weights: {basis}")
    share, words = _restored(case)
    if share >= PROVEN:
        names = ", ".join(f"layer {w.layer} [{w.row}, {w.column}]" for w in case.weights)
        proof = (("proof", f"restored through a hook: {words}"),)
        matrices = tuple(dict.fromkeys(case.down(weight) for weight in case.there))
        return Finding(f"what the super weights write {fate_of(case.written)} ({names})", proof, matrices)
    ratios = ", ".join(f"x{ratio:z.3f}" for ratio in case.written)
    return excluded(f"what the super weights write ({ratios}; restored through a hook: {words})")


def _restored(case: Case) -> tuple[float, str]:
    """The share of the loss that returns with what the super weights write given back, and the words for it."""

    def attempt() -> tuple[float, str]:
        prompt = case.reference.prompt_ids()
        due = case.reference.written(case.weights)
        written = case.candidate.contributions(case.there, prompt, case.reference.sinks(case.weights, prompt))
        values = case.candidate.weights(case.there), case.reference.weights(case.weights)
        targets = [
            replace(weight, value=_restoring(*four))
            for weight, *four in zip(case.there, *values, due, written, strict=True)
        ]
        return case.returning(partial(set_to, super_weights=targets))

    return case.once("restored", attempt)


def given_back_to(case: Case) -> Detail:
    """How much of the loss returns with what the super weights write given back; where they write it, with what a later
    layer has lost of it. A proof from half of the loss on.
    """
    layers = case.candidate.portrait().layers
    if not case.weights or any(weight.layer >= layers for weight in case.there):
        return ()
    if all(DEFAULTS["contribution"].holds(ratio) for ratio in case.written):
        found = _activation(case)
        rows = tuple(row for row in found.detail if row[0] == "proof") if isinstance(found, Finding) else found
    else:
        share, words = _restored(case)
        rows = (("proof" if share >= PROVEN else "given back", f"restored through a hook: {words}"),)
    return (*rows, *case.tried_on)


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
            rows += excluded(f"the super activation of channel {there.channel} ({lost})")
            continue
        layer, ratio = lost
        wanted = wanted_at(case, place, layer)
        if wanted is None:
            words = f"x{ratio:.2f} after layer {layer}; not given back: its tokens need the reference"
            rows += (
                ("not known", f"whether the lost super activation of channel {there.channel} is the cause ({words})"),
            )
            continue
        share, words = case.returning(partial(residual_set, layer=layer, channel=there.channel, wanted=wanted))
        told = f"x{ratio:.2f} after layer {layer}; restored through a hook: {words}"
        if share >= PROVEN:
            cause = f"layer {layer} loses the super activation of channel {there.channel} (x{ratio:.2f})"
            kept = all(DEFAULTS["contribution"].holds(share) for share in case.written)
            return Finding(
                f"{cause}{', what the super weights write is kept' if kept else ''}",
                (("proof", told), *rows),
                of_layer(case, layer),
            )
        rows += excluded(f"the super activation of channel {there.channel} ({told})")
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


def wanted_at(case: Case, place: SuperActivation, layer: int) -> torch.Tensor | None:
    """What the reference carries in this channel after a layer, at the sink of each window; NaN elsewhere.

    With BOS at position 0 that is one number by causality; else every window has to be looked at.
    """
    reference = case.reference
    if reference.has_bos and place.position == 0:
        wanted = torch.full((1, case.ids.shape[1]), math.nan)
        wanted[0, 0] = reference.profile(place, reference.prompt_ids())[layer]
        return wanted
    wanted = torch.full(tuple(case.ids.shape), math.nan)
    if not reference.at_a_fair_price:
        return None
    lengths = (case.ids.shape[1],) * len(case.ids)
    for number, reading in enumerate(readings(case.reference, replace(place, layer=layer), case.ids, lengths)):
        wanted[number, reading.position] = reading.value
    return wanted


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
        share, words = case.returning(partial(given_back, maps=maps, rows=rows))
        told.append(f"{what} given back: {words}")
        if share >= PROVEN:
            cause = f"block neighbours of the super weight pay ({name}, {what})"
            return Finding(cause, (("proof", f"{what} given back through a hook: {words}"),), matrices)
    return excluded(f"neighbours in the super weights' blocks ({'; '.join(told)})")


def _rows_of(case: Case) -> tuple[str, dict[str, torch.Tensor], dict[str, list[int]]]:
    """The reference's rows that hold super weights, by module."""
    maps: dict[str, torch.Tensor] = {}
    rows: dict[str, list[int]] = {}
    known = case.reference.at_hand or all(case.reference.remembers(("row", weight)) for weight in case.weights)
    found = [(weight, case.reference.row(weight)) for weight in case.weights] if known else []
    for weight, row in found:
        name = case.down(weight)
        if row is not None and weight.row not in rows.get(name, []):
            rows.setdefault(name, []).append(weight.row)
            maps[name] = torch.cat([*([maps[name]] if name in maps else []), row[None].to(maps.get(name, row).dtype)])
    return f"row {', '.join(str(row) for several in rows.values() for row in several)}", maps, rows


def _matrices_of(case: Case) -> tuple[dict[str, Weight], str]:
    """The reference's whole matrices that hold super weights, and why one of them is not known."""
    found: dict[str, Weight] = {}
    why = ""
    for name, layer in {case.down(weight): weight.layer for weight in case.weights}.items():
        whole = matrix(case, layer, name)
        if isinstance(whole, str):
            why = whole
        else:
            found[name] = whole
    return found, why


def _dependence(case: Case) -> Finding | Detail:
    """A candidate that has lost nothing else and lives on without them: its constant comes from elsewhere."""
    if case.share is None:
        return ()
    ratio = math.exp(min(LARGEST_EXPONENT, case.damaged - case.before))
    words = f"{case.share:.2f} of the reference's collapse, perplexity intact {times(ratio)}"
    if ratio <= WHOLE:
        advice = "its constant may come from elsewhere: relocate in the candidate"
        return Finding("the candidate does not hang on these weights any more", (("proof", words),), (), advice)
    return excluded(f"a constant from elsewhere ({words}: the intact model is worse already)")


STEPS: Final[tuple[Step, ...]] = (_reference, basis, _contribution, _activation, _neighbours, _dependence)
"""The order; what is not finite, another tokenizer and another base model were ruled out before a case is opened."""
