"""Measurements: functions of a subject whose values are remembered.

To add one, write a function whose first parameter is the subject and decorate it:

    @measurement("noise", Cost.PROMPT)
    def noise_floor(subject: Subject) -> tuple[float, float]: ...

The decorator declares the key under which the value is remembered and kept in a baseline file, its cost, and how it is
treated when the weights are freed or a baseline is written. Where the value is not computed by such a function, declare
a ``Slot`` and fill it with ``recall``.

Nothing is remembered of a subject that code outside may have changed, nor of a comparison with such a reference.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, get_args, get_type_hints

import torch

from swcheck.superweights.subject.memory import Cost, InBaseline, Key, Traits, WhenFreed
from swcheck.superweights.subject.subject import Subject

P = ParamSpec("P")
R = TypeVar("R")

TRAITS: Final[dict[str, Traits]] = {}
"""The traits of the measurements of all modules imported so far, by key; they apply to values read from a baseline."""


SLOTS: Final[dict[str, Slot[Any]]] = {}
"""The measurements of all modules imported so far, by key; where several share one, they return the same type."""


class Slot(Generic[R]):
    """A place in the memory of every subject: a key, and the traits of the values under it.

    A value is stored under its inputs. Of token ids shape and content count; of another subject, such as a reference,
    its ``serial`` counts.
    """

    def __init__(
        self,
        key: str,
        cost: Cost,
        *,
        in_baseline: InBaseline = InBaseline.EXACT,
        of_weights: bool = False,
        when_freed: WhenFreed = WhenFreed.KEEP,
    ) -> None:
        """Declare a slot; ``Traits`` explains the parameters."""
        self.key, self.traits = key, Traits(cost, in_baseline, of_weights, when_freed)
        TRAITS[key], SLOTS[key] = self.traits, self

    @property
    def value_type(self) -> Any:
        """The type of the values, as ``Slot[TYPE]`` declares it."""
        return get_args(self.__orig_class__)[0]  # type: ignore[attr-defined]

    def recall(self, subject: Subject, inputs: tuple[Any, ...], compute: Callable[[], R]) -> R:
        """Return the value that is remembered for ``inputs``; else call ``compute`` and remember what it returns."""
        has_changeable_input = any(isinstance(one, Subject) and one.memory is None for one in inputs)
        if subject.memory is None or has_changeable_input:
            return compute()
        return subject.memory.recall(self._key_for(inputs), self.traits, compute)

    def knows(self, subject: Subject, *inputs: Any) -> bool:
        """Return whether a value for these inputs is remembered."""
        return subject.memory is not None and self._key_for(inputs) in subject.memory

    def _key_for(self, inputs: tuple[Any, ...]) -> Key:
        """Return the key of these inputs. None at their end is left out, so that a new optional input changes no key."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        return (self.key, *map(_as_key, inputs)) if inputs else self.key


class Measurement(Slot[R], Generic[P, R]):
    """A function of a subject that is computed once for the same inputs."""

    def __init__(self, compute: Callable[Concatenate[Subject, P], R], key: str, cost: Cost, **traits: Any) -> None:
        super().__init__(key, cost, **traits)
        self.compute, self._signature = compute, inspect.signature(compute)
        update_wrapper(self, compute)

    @property
    def value_type(self) -> Any:
        """The type of the values, which is the annotated return type."""
        return get_type_hints(self.compute)["return"]

    def __call__(self, subject: Subject, *inputs: P.args, **named: P.kwargs) -> R:
        """Return the remembered value, or compute it."""
        bound = self._signature.bind(subject, *inputs, **named)
        bound.apply_defaults()
        all_inputs = tuple(bound.arguments.values())[1:]
        return self.recall(subject, all_inputs, partial(self.compute, subject, *inputs, **named))


def measurement(
    key: str,
    cost: Cost,
    *,
    in_baseline: InBaseline = InBaseline.EXACT,
    of_weights: bool = False,
    when_freed: WhenFreed = WhenFreed.KEEP,
) -> Callable[[Callable[Concatenate[Subject, P], R]], Measurement[P, R]]:
    """Make the decorated function a ``Measurement``; ``Traits`` explains the parameters."""

    def decorate(compute: Callable[Concatenate[Subject, P], R]) -> Measurement[P, R]:
        return Measurement(compute, key, cost, in_baseline=in_baseline, of_weights=of_weights, when_freed=when_freed)

    return decorate


def _as_key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (*value.shape, hash(tuple(value.flatten().tolist())))
    if isinstance(value, Subject):
        return value.serial
    return tuple(value) if isinstance(value, list) else value
