"""Where a candidate is damaged that has not lost its super weights: the layer, and the matrices that answer worst."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from swcheck.case import Case, Detail, Finding
from swcheck.coverage import map_errors, unknown_maps
from swcheck.intervene import given_back
from swcheck.lent import lent

if TYPE_CHECKING:
    from swcheck.subject import Subject

WORST: Final = 5


def not_the_super_weights(case: Case) -> Finding:
    """What is said where nothing that the super weights lost explains the loss: the layer, the matrices, what returns."""
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
    found = {name: lent(case.candidate, case.reference, name) for name in names}
    maps = {name: weight for name, weight in found.items() if not isinstance(weight, str)}
    if not maps:
        return ()
    words = case.returning(partial(given_back, maps=maps, rows={}))[1]
    what = "this matrix" if len(maps) == 1 else f"these {len(maps)} matrices"
    return (("given back", f"{what} through a hook: {words}"),)


def of_layer(case: Case, layer: int) -> tuple[str, ...]:
    """The matrices of one layer that answer worst, those that write into the residual stream where it is not known."""
    path = case.candidate.body.path
    if unknown_maps(case.reference) or case.kin.kind in {"permuted", "rotated"}:
        return (case.candidate.down_name(layer),)
    errors = [
        (name, error) for name, error in map_errors(case.candidate, case.reference) if name.startswith(f"{layer}.")
    ]
    return tuple(f"{path}.{name}" for name, error in errors if error >= errors[0][1] / 2)


def first_bad_layer(candidate: Subject, reference: Subject, channels: Sequence[int] = ()) -> tuple[int, float]:
    """The layer after which the relative error of the residual stream, the sink left out, has risen most.

    ``channels`` says where each of the reference's channels has gone.
    """
    errors = candidate.stream_errors(reference, channels)
    rises = [now - before for before, now in zip([0.0, *errors], errors, strict=False)]
    layer = max(range(len(rises)), key=lambda number: rises[number])
    return layer, errors[layer]
