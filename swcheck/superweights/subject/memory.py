"""What is remembered of a subject: measured values by key, each with the traits of its measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar

Value = TypeVar("Value")

Key: TypeAlias = "str | tuple[Any, ...]"
"""The key of a measurement alone, or in a tuple with the inputs that it was taken for."""


class Cost(Enum):
    """What it takes to measure a value that is not remembered."""

    TOKENIZER = "calls of the tokenizer"
    WEIGHTS = "reading some weights or the configuration, no forward pass"
    LINEAR_MAPS = "one call of every linear map of the layers"
    PROMPT = "a forward pass over one prompt, or the beginning of one"
    PROMPTS = "forward passes over all prompts, up to one layer"
    LOCATE = "a forward pass over one prompt, and a shorter one for each round of the search"
    WINDOWS = "a forward pass over all windows"
    WINDOW_STARTS = "a forward pass over the first quarter of all windows"
    DIAGNOSIS = "several forward passes over the starts of the windows"
    FIX = "quantizing the reference once more, and a forward pass over all windows"


class InBaseline(Enum):
    """How a baseline file keeps a value."""

    EXACT = "as it is"
    HALF = "floating tensors in float16"
    NO = "not at all"


class WhenFreed(Enum):
    """What happens to a value when the weights of its subject are freed."""

    KEEP = "it is kept"
    COPY = "it is copied: it may be a view of the weights, which would keep their whole file mapped"
    FORGET = "it is forgotten: it is of use beside the weights only"


@dataclass(frozen=True)
class Traits:
    """How the values of a measurement are treated.

    ``of_weights`` says that the value does not depend on the tokens that the subject is measured on.
    """

    cost: Cost
    in_baseline: InBaseline = InBaseline.EXACT
    of_weights: bool = False
    when_freed: WhenFreed = WhenFreed.KEEP


UNKNOWN: Final = Traits(Cost.WEIGHTS)
"""The traits of a value that was read from a baseline of another version."""


class Memory:
    """Measured values by key. Each is computed once."""

    def __init__(self, values: Mapping[Key, Any] | None = None, traits: Mapping[str, Traits] | None = None) -> None:
        """Begin with ``values``; ``traits`` are those of their measurements, by the key without inputs."""
        self.values: dict[Key, Any] = dict(values or {})
        known = traits or {}
        self._traits = {key: known.get(name_of(key), UNKNOWN) for key in self.values}

    def recall(self, key: Key, traits: Traits, compute: Callable[[], Value]) -> Value:
        """Return the value under ``key``; compute it if there is none."""
        if key not in self.values:
            self.values[key] = compute()
            self._traits[key] = traits
        return self.values[key]  # type: ignore[no-any-return]

    def __contains__(self, key: Key) -> bool:
        return key in self.values

    def entries(self) -> Iterator[tuple[Key, Any, Traits]]:
        """Every key with its value and the traits of its measurement."""
        for key, value in self.values.items():
            yield key, value, self._traits.get(key, UNKNOWN)

    def of_weights(self) -> Memory:
        """A memory of the values that do not depend on the tokens."""
        chosen = Memory()
        for key, value, traits in self.entries():
            if traits.of_weights:
                chosen.recall(key, traits, lambda value=value: value)  # type: ignore[misc]
        return chosen

    def weights_freed(self) -> None:
        """Let go of everything that keeps the weights in memory."""
        for key, value, traits in list(self.entries()):
            if traits.when_freed is WhenFreed.FORGET:
                del self.values[key]
            elif traits.when_freed is WhenFreed.COPY and value is not None:
                self.values[key] = value.clone()

    def clear(self) -> None:
        """Forget everything."""
        self.values.clear()


def name_of(key: Key) -> str:
    """The key of a measurement without the inputs."""
    return key if isinstance(key, str) else str(key[0])
