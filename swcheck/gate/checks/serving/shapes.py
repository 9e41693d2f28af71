"""Scores the same tokens in other shapes: lengths around the blocks of kernels, a padded batch, chunks, types of cache.

Under causal masking each gives what the whole window has at the same places. What departs from it beyond the rounding is
the doing of kernels, unless the reference departs there as well. B windows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from swcheck.base.errors import SwcheckError
from swcheck.base.terminal.progress import with_bar
from swcheck.gate.checks.serving.ways import COARSE_NOISE, NOISE, Way, ways_of
from swcheck.lens.architecture.storage import has_plain_weight, input_width, is_plain
from swcheck.loading.streaming.pager import pager_of
from swcheck.superweights.measurements.inputs import windows
from swcheck.superweights.measurements.scores import intact_scores, scores_against
from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost, InBaseline

if TYPE_CHECKING:
    import torch
    from torch import nn

    from swcheck.superweights.subject.subject import Subject


@dataclass(frozen=True)
class Departure:
    """What a shape costs against whole windows: ``nats`` per token, the mean over the first ``tokens`` of window ``row``.

    ``nats`` is infinite where one of them is not finite, or where the shape ended in an error; ``reason`` says in which.
    It is 0 where a package or a runtime says that it does not have this type of cache, or this setting.
    """

    shape: str
    nats: float
    tokens: int = 0
    row: int = 0
    reason: str = ""
    noise: float = NOISE

    @property
    def departs(self) -> bool:
        """Whether it is beyond the noise of its shape."""
        return abs(self.nats) > self.noise


@dataclass(frozen=True)
class Sweep:
    """The departures of all shapes, and the ``faults`` among them: beyond the noise, and not the reference's, worst first.

    ``shared`` are shapes beyond the noise that the reference shows too; ``lacking`` says what was not scored, and why.
    """

    found: Sequence[Departure]
    faults: Sequence[Departure] = ()
    shared: Sequence[Departure] = ()
    lacking: Sequence[str] = ()

    @property
    def worst(self) -> Departure | None:
        """The fault that loses most."""
        return next((one for one in self.faults if one.nats > 0), None)

    @property
    def best(self) -> Departure | None:
        """The fault that loses least against whole windows, which lose more: then these are computed wrongly."""
        return next((one for one in self.faults if one.nats < 0), None)

    @property
    def facts(self) -> dict[str, Any]:
        """What stands in a verdict's facts."""
        return {
            "scored": {one.shape: one.nats for one in self.found if not one.reason},
            "faults": [one.shape for one in self.faults],
            "shared": [one.shape for one in self.shared],
            "lacking": list(self.lacking),
        }

    @property
    def words(self) -> str:
        """Words for the end of a summary."""
        scored = [abs(one.nats) for one in self.found if not one.reason and one not in self.shared]
        words = f"; {len(scored)} other shapes within {max(scored):.1g} nats" if scored and not self.faults else ""
        words += f"; {self.shared[0].shape} {self.shared[0].nats:+.2g} nats, as the reference" if self.shared else ""
        return words + (f"; not in other shapes: {', '.join(self.lacking)}" if self.lacking else "")


def is_swept(subject: Subject) -> bool:
    """Return whether a candidate is scored in other shapes: where it is asked for, and where its kernels are not torch's."""
    return subject.sweep_shapes or subject.is_runtime or has_own_kernels(subject)


@measurement("own kernels", Cost.WEIGHTS, in_baseline=InBaseline.NO)
def has_own_kernels(subject: Subject) -> bool:
    """Return whether a linear map of a torch module is not torch's own, or some weight is kept in less than two bytes."""
    model = subject.module
    packed = any(not is_plain(one) or one.itemsize < 2 for one in model.parameters())
    return packed or any(
        input_width(one) is not None and not has_plain_weight(one) and not any(map(input_width, one.children()))
        for one in model.modules()
    )  # what wraps a linear map, as an adapter does, computes with that


@measurement("shapes", Cost.DIAGNOSIS, in_baseline=InBaseline.NO)
def sweep(candidate: Subject, reference: Subject) -> Sweep:
    """Return what the candidate's shapes cost, and which of them is a fault of its kernels."""
    ids, whole = windows(reference), scores_against(candidate, reference)[0]
    if not candidate.is_runtime and is_read_anew(candidate.module):
        return Sweep((), lacking=("its weights are read again for each",))
    ways, lacking = ways_of(candidate, ids, with_cache=reference.is_measurable)
    named = with_bar(list(ways.items()), "scoring other shapes", len(ways))
    is_coarse = candidate.scheme is not None and candidate.scheme.rounds_inputs
    found = [_departure(name, _coarse(way) if is_coarse else way, whole) for name, way in named]
    lacking += [_why(one) for one in found if one.reason and not one.nats]
    faults: list[Departure] = []
    shared: list[Departure] = []
    for one in sorted(found, key=lambda one: -round(abs(one.nats), 3)):  # of equal ones the plain one
        if not one.departs:
            continue
        theirs = _same_of_reference(one, reference)
        more = one.nats if theirs is None else one.nats - theirs.nats
        if abs(more) > one.noise and not (one.reason and theirs is None):
            faults.append(one)
        elif one.reason:
            lacking.append(_why(one))
        else:
            shared.append(one)
    return Sweep(found, faults, shared, lacking)


def _coarse(way: Way) -> Way:
    return replace(way, noise=max(way.noise, COARSE_NOISE))


def _why(one: Departure) -> str:
    return f"{one.shape} ({one.reason})"


def is_read_anew(model: nn.Module) -> bool:
    """Return whether weights come from a disk or from main memory in each pass: many short passes would be slow."""
    return pager_of(model) is not None or any(one.is_meta for one in model.parameters())


def _same_of_reference(one: Departure, reference: Subject) -> Departure | None:
    """Return what the same shape costs the reference; None where that is not known."""
    if not reference.is_measurable or is_read_anew(reference.module):
        return None
    return departure_in(reference, one.shape)


@measurement("one shape", Cost.PROMPT, in_baseline=InBaseline.NO)
def departure_in(subject: Subject, shape: str) -> Departure | None:
    """Return what one shape costs a subject on its own windows; None for a shape that it does not have."""
    ways, _ = ways_of(subject, windows(subject), with_cache=True)
    return _departure(shape, ways[shape], intact_scores(subject)[0]) if shape in ways else None


def _departure(name: str, way: Way, whole: torch.Tensor) -> Departure:
    """Return what a shape costs against the nats of whole windows, ``(B, T - 1)``."""
    try:
        nats = way.score()
    except SwcheckError as error:
        if not way.may_lack:
            raise
        return Departure(name, 0.0, reason=f"{error.found}"[:120])
    except Exception as error:  # kernels, and the model's own code, raise whatever they like for a shape
        return Departure(name, math.inf, reason=f"{type(error).__name__}: {' '.join(str(error).split())}"[:120])
    change = nats - whole[way.row, : len(nats)]
    more = float((change if way.places is None else change[list(way.places)]).mean())
    return Departure(name, more if math.isfinite(more) else math.inf, len(nats), way.row, noise=way.noise)
