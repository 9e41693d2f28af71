"""The reference's own matrices, to be put in the place of a candidate's: from its model, or from its files.

Where the reference is not loaded, a matrix is read from its files whenever it is asked for and let go again, so that
several of them, and the candidate, are never in memory together.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from swcheck.coverage import unknown_maps
from swcheck.observe import plain_weight
from swcheck.probes import answers_as

if TYPE_CHECKING:
    import torch

    from swcheck.intervene import Weight
    from swcheck.subject import Subject


def lent(candidate: Subject, reference: Subject, name: str) -> Weight | str:
    """The plain weight ``(H, F)`` of the map that is called ``name`` in the candidate, or why there is none."""
    inner = name.removeprefix(f"{candidate.body.path}.")
    if reference.module is not None:
        return counterpart(reference, inner)
    weight = reference.stored(f"{name}.weight")
    if isinstance(weight, str):
        return weight
    if unknown_maps(reference):  # what it answered is not known: its files have to hold a plain one of this size
        sizes = sizes_of(candidate.live.get_submodule(name))
        fits, other = weight.is_floating_point() and tuple(weight.shape) == sizes, "keep it packed"
    else:
        bias = reference.stored(f"{name}.bias")
        fits = answers_as(weight, None if isinstance(bias, str) else bias, inner, reference.echoes())
        other = "hold another matrix than was measured, or keep it packed"
    return partial(_read, reference, name) if fits else f"the reference's files {other}"


def counterpart(reference: Subject, inner: str) -> torch.Tensor | str:
    """The plain weight ``(H, F)`` of a map of the reference's layers (``1.mlp.down_proj``), from its model; or why not."""
    (layer, _, path), layers = inner.partition("."), reference.body.layers
    try:
        weight = plain_weight(layers[int(layer)].get_submodule(path))
    except (AttributeError, IndexError, ValueError):
        return f"the reference has no layers.{inner}"
    return f"the reference keeps layers.{inner} packed" if weight is None else weight


def sizes_of(module: Any) -> tuple[int, ...]:
    """The outputs and inputs of a linear map, 0 where it does not say; AutoRound's packed ones spell it in one word."""
    return tuple(
        int(getattr(module, f"{side}_features", getattr(module, f"{side}features", 0))) for side in ("out", "in")
    )


def _read(reference: Subject, name: str) -> torch.Tensor:
    weight = reference.stored(f"{name}.weight")
    if isinstance(weight, str):  # it was there a moment ago
        raise FileNotFoundError(weight)
    return weight
