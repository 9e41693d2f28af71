"""A callback for the trainer of transformers that watches super weights, logs what it reads, and warns or stops."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

from transformers import TrainerCallback

from swcheck.base.errors import OptionError
from swcheck.base.records import Limit, SuperWeight
from swcheck.gate.training.watch import Reading, SuperWeightWatch, limits

EVERY: Final = 50
"""The number of steps between two readings."""

PREFIX: Final = "super_weights/"


class SuperWeightCallback(TrainerCallback):  # type: ignore[misc]
    """Reads super weights every ``every`` steps and at both ends of a training, and logs ``super_weights/contribution``
    and ``super_weights/activation``: ratios to the model before the training.

    Outside of its limit a reading is a warning, once; with ``stop`` the training ends there. ``contribution`` and
    ``activation`` are (low, high), those of a fine-tuned candidate if left out. ``readings`` has each step with what was
    read. Use ``attach``: so the readings are in the trainer's own log, and TensorBoard and the like show them.
    """

    def __init__(
        self,
        *,
        every: int = EVERY,
        stop: bool = False,
        contribution: tuple[float, float] | None = None,
        activation: tuple[float, float] | None = None,
        super_weights: Sequence[SuperWeight] | None = None,
        tokenizer: Any = None,
        log: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        if every < 1:
            raise OptionError(f"every={every}", "no number of steps", f"every={EVERY}")
        given = (contribution, activation)
        self.limits = tuple(
            default if ends is None else Limit(*ends, source="given")
            for ends, default in zip(given, limits(), strict=True)
        )
        self.every, self.stop, self.log = every, stop, log
        self.readings: list[tuple[int, Reading]] = []
        self._super_weights, self._tokenizer = super_weights, tokenizer
        self._watch: SuperWeightWatch | None = None
        self._warned = False

    @classmethod
    def attach(cls, trainer: Any, **options: Any) -> SuperWeightCallback:
        """Add a callback with these options to a trainer, whose log it writes to, and return it."""
        callback = cls(**{"log": trainer.log, **options})
        trainer.add_callback(callback)
        return callback

    def on_train_begin(
        self, _args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **_others: Any
    ) -> None:
        """Locate the super weights, unless they were given, and take what they write now as x1."""
        tokenizer = self._tokenizer or processing_class
        self._watch = SuperWeightWatch(model, tokenizer=tokenizer, super_weights=self._super_weights)
        self._look(state, control)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Read every ``every`` steps."""
        if state.global_step % self.every == 0:
            self._look(state, control)

    def on_train_end(self, _args: Any, state: Any, control: Any, **_others: Any) -> None:
        """Read once more, unless the last step was read."""
        if not self.readings or self.readings[-1][0] != state.global_step:
            self._look(state, control)

    def _look(self, state: Any, control: Any) -> None:
        if self._watch is None:
            return
        reading = self._watch.read()
        self.readings.append((state.global_step, reading))
        if self.log is not None:
            values = {"contribution": reading.contribution, "activation": reading.activation}
            due = control.should_log  # a log of any kind takes the loss off the list, which is still to be logged
            self.log({f"{PREFIX}{name}": value for name, value in values.items()})
            control.should_log = due
        words = reading.faded(self.limits)
        if not words:
            return
        if not self._warned:
            self._warned = True
            stopped = "; the training is stopped" if self.stop else ""
            warnings.warn(f"step {state.global_step}: {words}{stopped}", stacklevel=2)
        control.should_training_stop = control.should_training_stop or self.stop
