"""The memory of a subject: measured values by key, each with the traits of its measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar

Value = TypeVar("Value")

Key: TypeAlias = "str | tuple[Any, ...]"
"""The key of a measurement, alone or in a tuple with the inputs that the value was computed for."""


class Cost(Enum):
    """What has to be run to measure a value that is not remembered."""

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

    ``of_weights`` says that the value depends on the weights alone, not on the tokens that the subject is measured on.
    """

    cost: Cost
    in_baseline: InBaseline = InBaseline.EXACT
    of_weights: bool = False
    when_freed: WhenFreed = WhenFreed.KEEP


UNKNOWN: Final = Traits(Cost.WEIGHTS)
"""The traits of a value with an unknown key, which a baseline of another version may hold."""


class Memory:
    """Measured values by key. Each is computed once."""

    def __init__(self, values: Mapping[Key, Any] | None = None, traits: Mapping[str, Traits] | None = None) -> None:
        """Start with ``values``; ``traits`` gives the traits of their measurements, by the key without inputs."""
        self.values: dict[Key, Any] = dict(values or {})
        known_traits = traits or {}
        self._traits = {key: known_traits.get(name_of(key), UNKNOWN) for key in self.values}

    def recall(self, key: Key, traits: Traits, compute: Callable[[], Value]) -> Value:
        """Return the value under ``key``; compute and store it if there is none."""
        if key not in self.values:
            self.values[key] = compute()
            self._traits[key] = traits
        return self.values[key]  # type: ignore[no-any-return]

    def __contains__(self, key: Key) -> bool:
        return key in self.values

    def entries(self) -> Iterator[tuple[Key, Any, Traits]]:
        """Yield every key with its value and the traits of its measurement."""
        for key, value in self.values.items():
            yield key, value, self._traits.get(key, UNKNOWN)

    def of_weights(self) -> Memory:
        """Return a new memory with the values that do not depend on the tokens."""
        memory = Memory()
        for key, value, traits in self.entries():
            if traits.of_weights:
                memory.recall(key, traits, lambda value=value: value)  # type: ignore[misc]
        return memory

    def weights_freed(self) -> None:
        """Drop or copy every value that keeps the weights in memory."""
        for key, value, traits in list(self.entries()):
            if traits.when_freed is WhenFreed.FORGET:
                del self.values[key]
            elif traits.when_freed is WhenFreed.COPY and value is not None:
                self.values[key] = value.clone()

    def clear(self) -> None:
        """Forget everything."""
        self.values.clear()


def name_of(key: Key) -> str:
    """Return the key of a measurement without the inputs."""
    return key if isinstance(key, str) else str(key[0])
