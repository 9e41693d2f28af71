"""A red candidate beside its reference: how much of what it lost returns in a block, and what there is to give back.

Tensors of a reference that is not loaded come from its baseline or from its own files, where these are here and hold
what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch.func import functional_call

from swcheck import causal
from swcheck.anatomy import device_of
from swcheck.coverage import unknown_maps
from swcheck.kinship import embedding_of
from swcheck.lent import lent
from swcheck.measure import token_nats
from swcheck.observe import first_tensor
from swcheck.ratios import ERRORS, LARGEST_EXPONENT, ratio_of, times

if TYPE_CHECKING:
    from torch import nn

    from swcheck.intervene import Weight
    from swcheck.kinship import Kinship
    from swcheck.records import SuperWeight
    from swcheck.subject import Subject

NO_LOSS: Final = 1e-4
"""Fewer nats per token than this are no loss, a hundredth of the tightest limit: a share of them proves nothing."""

ROUNDED: Final = 0.01
"""So far apart, by their norms, may the same weights be in two formats; bfloat16 rounds to 0.4 %."""

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

    def returning(self, restored: Callable[[nn.Module], AbstractContextManager[None]]) -> tuple[float, str]:
        """The share of the lost nats that comes back inside a block on the candidate's module, and the words for it."""
        ids, lost = self.ids, self.damaged - self.before  # before the block: what is not known yet loads other weights
        model = self.candidate.live
        with restored(model):
            each = token_nats(model, ids)
        nats = float(each.mean())
        left = math.exp(min(LARGEST_EXPONENT, nats - self.before)) if math.isfinite(nats) else math.inf
        if not lost > max(NO_LOSS, ERRORS * self.reference.noise()[0]):
            return 0.0, f"perplexity x{left:.3f}, no loss beyond the noise that could return"
        share = (self.damaged - nats) / lost if math.isfinite(nats) else 0.0
        return share, f"perplexity x{left:.3f}, {round(100 * share)}% of the loss returns"

    def once(self, what: str, attempt: Callable[[], tuple[float, str]]) -> tuple[float, str]:
        """What an attempt to give something back brought, tried once for all checks of the candidate."""
        _ = self.damaged  # what it is held against, and what ``tried_on`` tells
        return self.candidate.beside(self.reference, (what, self.weights, self.there), attempt)

    @property
    def tried_on(self) -> Detail:
        """A row that says what was scored for it, with what perplexity, if anything was given back."""
        if "damaged" not in vars(self):
            return ()
        windows, length = self.ids.shape
        ratio = times(math.exp(min(LARGEST_EXPONENT, self.damaged - self.before)))
        beginning = f"the first {length} tokens of {windows} window{'s' * (windows > 1)}"
        return (("tried on", f"{beginning}, where the candidate has perplexity {ratio}"),)

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
        return self.candidate.down_name(weight.layer)


def excluded(words: str) -> Detail:
    """The row that says what is not the cause."""
    return (("ruled out", words),)


def embedded(case: Case) -> torch.Tensor | str:
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


def matrix(case: Case, layer: int, name: str) -> Weight | str:
    """The reference's down projection of a layer, from its files where it is not here; or why not."""
    reference = case.reference
    if reference.module is not None or reference.remembers(("matrix", layer)):
        matrix = reference.matrix(layer)
        return "the reference keeps it packed" if matrix is None else matrix
    return unknown_maps(reference) or lent(case.candidate, reference, name)


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
