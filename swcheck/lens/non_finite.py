"""Where a forward pass stops being finite."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from swcheck.lens.likelihood import evaluating
from swcheck.lens.observe import first_tensor

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NonFinite:
    """The first module of a pass that makes NaN or infinity out of finite inputs.

    ``stored`` says whether its own weights hold them already; ``dtype`` is what these are stored in, else what the
    module computes in, and ``largest`` its largest finite number. ``overflow`` says whether a number was too large for
    it: made of finite ones, or stored as infinity.
    """

    module: str
    stored: bool
    overflow: bool
    dtype: str
    largest: float


def first_non_finite(model: nn.Module, token_ids: torch.Tensor) -> NonFinite | None:
    """Where a pass over ``token_ids`` ``(B, T)`` stops being finite; None where it does not.

    A module counts whose inputs are finite and whose output is not; an inner one finishes before the one around it, so
    that a sum of finite parts that overflows is blamed on the layer that makes it. Masks are no inputs.
    """
    found: list[NonFinite] = []

    def look(name: str, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        if found or _finite(output):
            return
        bad = next((t for t in (*module.parameters(), *module.buffers()) if not _finite(t)), None)
        if bad is None:
            if _finite([*args, *(value for key, value in options.items() if "mask" not in key)]):
                dtype = first_tensor(output).dtype
                found.append(NonFinite(name, False, True, str(dtype).removeprefix("torch."), torch.finfo(dtype).max))
            return
        kind = str(bad.dtype).removeprefix("torch.")
        found.append(NonFinite(name, True, not bool(bad.float().isnan().any()), kind, torch.finfo(bad.dtype).max))

    with ExitStack() as hooks, evaluating(model):
        for name, module in model.named_modules():
            hook = module.register_forward_hook(partial(look, name), with_kwargs=True)
            hooks.callback(hook.remove)
        model(token_ids, use_cache=False)
    return found[0] if found else None


def _finite(thing: Any) -> bool:
    """Whether all floats of a tensor, or of the tensors in a tuple or list, are finite."""
    if isinstance(thing, (tuple, list)):
        return all(_finite(part) for part in thing)
    return not isinstance(thing, torch.Tensor) or not thing.is_floating_point() or bool(torch.isfinite(thing.float()).all())  # fmt: skip
