"""Finds the module at which a forward pass stops being finite. B batch, T tokens."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from swcheck.lens.architecture.anatomy import bare_anatomy
from swcheck.lens.architecture.storage import evaluating, first_tensor, is_plain
from swcheck.loading.parallel.shards import whole

if TYPE_CHECKING:
    from torch import nn


ROW_BLOCK: Final = 4096
"""This many rows of a parameter are examined at a time."""

ROWS_NAMED: Final = 8
"""At most this many rows of one parameter are named."""


@dataclass(frozen=True)
class NonFinite:
    """The first module of a pass that returns NaN or infinity for finite inputs, or has them among its weights.

    ``module`` is its qualified name. ``stored`` says whether a weight or buffer of it holds NaN or infinity already.
    ``dtype`` is the dtype of that tensor, else of the output, and ``largest`` is the largest finite number of that
    dtype. ``overflow`` says that a number was too large for the dtype: computed from finite ones, or stored as
    infinity (not as NaN).
    """

    module: str
    stored: bool
    overflow: bool
    dtype: str
    largest: float


def first_non_finite(model: nn.Module, token_ids: torch.Tensor) -> NonFinite | None:
    """Return where a pass over ``token_ids``, int64 ``(B, T)``, stops being finite; None where it stays finite.

    It is the first module to finish whose output is not finite while its inputs and weights are, or whose weights are
    not. An inner module finishes before the one around it: a sum of finite parts that overflows is therefore found in
    the layer that computes the sum. Masks do not count as inputs, because they may hold infinity by design.
    """
    found: list[NonFinite] = []

    def check_output(name: str, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        if found or _is_finite(output):
            return
        bad = next((t for t in map(whole, (*module.parameters(), *module.buffers())) if not _is_finite(t)), None)
        if bad is None:
            if _is_finite([*args, *(value for key, value in options.items() if "mask" not in key)]):
                dtype = first_tensor(output).dtype
                found.append(NonFinite(name, False, True, str(dtype).removeprefix("torch."), torch.finfo(dtype).max))
            return
        stored_in = str(bad.dtype).removeprefix("torch.")
        found.append(NonFinite(name, True, not bool(bad.float().isnan().any()), stored_in, torch.finfo(bad.dtype).max))

    with ExitStack() as hooks, evaluating(model):
        for name, module in model.named_modules():
            hook = module.register_forward_hook(partial(check_output, name), with_kwargs=True)
            hooks.callback(hook.remove)
        model(token_ids, use_cache=False)
    return found[0] if found else None


class NonFiniteRows:
    """The first rows of each plain float parameter of a model that holds NaN or infinity, found part by part.

    No pass shows those of an embedding or a head whose tokens no text uses.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._layers = model, bare_anatomy(model).layers
        self._rows: dict[int, tuple[int, ...]] = {}

    def visit(self, layer: int) -> None:
        """Look at the parameters of one layer."""
        self._look(self._layers[layer])

    def found(self) -> dict[str, tuple[int, ...]]:
        """Return the rows by the name of the parameter; what was not visited is looked at now."""
        with evaluating(self._model):
            self._look(self._model)
        named = ((name, self._rows.get(id(parameter), ())) for name, parameter in self._model.named_parameters())
        return {name: rows for name, rows in named if rows}

    def _look(self, module: nn.Module) -> None:
        for parameter in module.parameters():
            if id(parameter) not in self._rows and is_plain(parameter) and parameter.dim():
                values = whole(parameter)
                bad = [row for start in range(0, len(values), ROW_BLOCK) for row in _bad_rows(values, start)]
                self._rows[id(parameter)] = tuple(bad[:ROWS_NAMED])


def non_finite_rows(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return by name the first rows of each plain float parameter that holds NaN or infinity; empty where all are finite."""
    return NonFiniteRows(model).found()


def _bad_rows(parameter: torch.Tensor, start: int) -> list[int]:
    block = parameter.detach()[start : start + ROW_BLOCK]
    if bool(torch.isfinite(block.sum(dtype=torch.float32))):  # cheap, and NaN or infinity is never summed away
        return []
    finite = torch.isfinite(block.float()).flatten(1).all(1) if block.dim() > 1 else torch.isfinite(block.float())
    return [start + int(row) for row in (~finite).nonzero().flatten()]


def _is_finite(value: Any) -> bool:
    """Return whether all floats of a tensor, or of the tensors in a tuple or list, are finite; True for the rest."""
    if isinstance(value, (tuple, list)):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, torch.Tensor) or not value.is_floating_point() or bool(torch.isfinite(value.float()).all())  # fmt: skip
