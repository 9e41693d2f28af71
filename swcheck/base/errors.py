"""All exceptions that swcheck raises.

A message has three parts, each on its own line: what was asked, what was found, what to try. The exception keeps them
as fields. Each exception has a built-in parent (``ValueError``, ...), so that a caller can catch it without importing
swcheck.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swcheck.base.terminal.visible import visible, visible_line

if TYPE_CHECKING:
    from swcheck.base.records import Verdict


class SwcheckError(Exception):
    """The base class of all errors whose message has these three parts.

    Fields: ``asked`` (what was asked), ``found`` (what was found instead), ``attempt`` (what to try; may be empty). They
    have no control characters: they may quote files, and are shown in terminals.
    """

    def __init__(self, asked: str, found: str, attempt: str = "") -> None:
        asked, found, attempt = visible_line(asked), visible_line(found), visible(attempt)
        self.asked, self.found, self.attempt = asked, found, attempt
        tail = f"\n  try: {attempt}" if attempt else ""
        super().__init__(f"{asked}\n  found: {found}{tail}")

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[SwcheckError], tuple[str, str, str]]:
        return type(self), (self.asked, self.found, self.attempt)


class UnknownModelError(SwcheckError, LookupError):
    """The name of a model matches no alias, path or hub id."""


class CheckpointError(SwcheckError, ValueError):
    """The directory exists but holds no loadable model: a file is missing, cut off or malformed."""


class UnsafeCheckpointError(SwcheckError, PermissionError):
    """Loading would run code that comes with the checkpoint (a pickle, or remote code)."""


class ArchitectureError(SwcheckError, TypeError):
    """The model is no causal language model, or its no down projection is found in it."""


class CoordinateError(SwcheckError, IndexError):
    """A coordinate (layer, row, column) lies outside the model."""


class WrongModelError(SwcheckError, ValueError):
    """Coordinates, a baseline or a candidate belong to another base model."""


class TextError(SwcheckError, ValueError):
    """Nothing can be measured on this text, or on the token ids made from it."""


class NotFiniteError(SwcheckError, ArithmeticError):
    """Weights, activations or logits hold NaN or infinity where finite numbers are needed."""


class NotObservedError(SwcheckError, LookupError):
    """A value was requested that has not been measured, or that cannot be read from this model."""


class EngineError(SwcheckError, LookupError):
    """An engine is unknown or broken, does not know the scheme, or needs a package that is not installed."""


class ExtraError(SwcheckError, ImportError):
    """A request needs a package of an extra (``pip install swcheck[EXTRA]``) that is not installed."""


class OptionError(SwcheckError, ValueError):
    """An option, an argument or a limit is invalid."""


class UnrankedError(OptionError):
    """Weights cannot be ranked by magnitude, because they are packed or offloaded to another place."""


class RobustnessError(AssertionError):
    """A check failed, or was inconclusive. ``verdict`` holds the measured value, the limit and the outcome."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict

    def __reduce__(self) -> tuple[type[RobustnessError], tuple[str, Verdict]]:
        return type(self), (str(self), self.verdict)


def brief_message(error: BaseException) -> str:
    """Return the first two non-empty lines of an error's message, joined to one line of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = visible_line(" ".join(lines[:2]))
    return message if len(message) <= 200 else f"{message[:197]}..."
