"""Every exception swcheck raises.

A message says what was asked, what was found and what to try, each on a line of its own, and the exception keeps the
three as fields. Each has a built-in parent, so that a caller who knows nothing of swcheck can still catch it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swcheck.base.records import Verdict


class SwcheckError(Exception):
    """What every worded error of swcheck is; ``asked``, ``found`` and ``attempt`` (what to try) are its fields."""

    def __init__(self, asked: str, found: str, attempt: str = "") -> None:
        self.asked, self.found, self.attempt = asked, found, attempt
        tail = f"\n  try: {attempt}" if attempt else ""
        super().__init__(f"{asked}\n  found: {found}{tail}")

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[SwcheckError], tuple[str, str, str]]:
        return type(self), (self.asked, self.found, self.attempt)


class UnknownModelError(SwcheckError, LookupError):
    """No alias, path or hub id of this name leads to a model."""


class CheckpointError(SwcheckError, ValueError):
    """A directory is there, but it is no model that can be loaded: a file is missing, cut off or malformed."""


class UnsafeCheckpointError(SwcheckError, PermissionError):
    """Loading would run code that came with the checkpoint (a pickle, or remote code)."""


class ArchitectureError(SwcheckError, TypeError):
    """The model is no causal language model, or its down projections are not where the table of anatomy says."""


class CoordinateError(SwcheckError, IndexError):
    """A (layer, row, column) lies outside the model."""


class WrongModelError(SwcheckError, ValueError):
    """Coordinates or a candidate belong to another base model."""


class TextError(SwcheckError, ValueError):
    """The text, or the token ids made from it, cannot be measured on."""


class NotFiniteError(SwcheckError, ArithmeticError):
    """Weights, activations or logits hold NaN or infinity where a finite number is needed."""


class NotObservedError(SwcheckError, LookupError):
    """A value was asked for that no forward pass has shown yet."""


class EngineError(SwcheckError, LookupError):
    """An engine is unknown, broken, or does not know the scheme."""


class ExtraError(SwcheckError, ImportError):
    """What is asked needs a package of an extra (``pip install swcheck[EXTRA]``) that is not installed."""


class OptionError(SwcheckError, ValueError):
    """An option, an argument or a limit makes no sense."""


class UnrankedError(OptionError):
    """Magnitudes are to be ranked, but the weights are packed, or wait elsewhere for their turn."""


class RobustnessError(AssertionError):
    """The model is not robust, or nothing can be said about it; ``verdict`` holds the numbers."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict

    def __reduce__(self) -> tuple[type[RobustnessError], tuple[str, Verdict]]:
        return type(self), (str(self), self.verdict)


def brief_message(error: BaseException) -> str:
    """The first lines of an error, as one line of bounded length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = " ".join(lines[:2])
    return words if len(words) <= 200 else f"{words[:197]}..."
