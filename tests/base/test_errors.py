"""Every exception says what was asked, what was found and what to try, and can be caught by who knows no swcheck."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from swcheck.base import errors
from swcheck.base.errors import RobustnessError, SwcheckError
from swcheck.base.records import Outcome, Verdict

WORDED = [
    c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, SwcheckError) and c is not SwcheckError
]
PARENTS = {
    "ArchitectureError": TypeError,
    "CheckpointError": ValueError,
    "CoordinateError": IndexError,
    "EngineError": LookupError,
    "ExtraError": ImportError,
    "NotFiniteError": ArithmeticError,
    "NotObservedError": LookupError,
    "OptionError": ValueError,
    "TextError": ValueError,
    "UnknownModelError": LookupError,
    "UnrankedError": ValueError,
    "UnsafeCheckpointError": PermissionError,
    "WrongModelError": ValueError,
}

each = pytest.mark.parametrize("kind", WORDED, ids=lambda c: c.__name__)


@each
def test_words(kind):
    """The message has three lines, asked, found and try, and the exception keeps each as a field."""
    error = kind("layer 40", "32 layers", "count from 0")
    assert str(error) == "layer 40\n  found: 32 layers\n  try: count from 0"
    assert (error.asked, error.found, error.attempt) == ("layer 40", "32 layers", "count from 0")


@each
def test_nothing_to_try(kind):
    """Where there is nothing to try, the message does not say try."""
    assert str(kind("layer 40", "32 layers")) == "layer 40\n  found: 32 layers"


@each
def test_built_in_parent(kind):
    """Each worded error is also the built-in exception written down here."""
    with pytest.raises(PARENTS[kind.__name__]):
        raise kind("asked", "found")


@each
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_travels(kind, again):
    """A worded error arrives in another process with the same words and the same fields."""
    error = kind("asked", "found", "attempt")
    other = again(error)
    assert type(other) is kind
    assert (str(other), vars(other)) == (str(error), vars(error))


def test_a_red_verdict_is_an_assertion_error():
    """``RobustnessError`` is an ``AssertionError`` with a verdict, and no error of swcheck's own use."""
    verdict = Verdict("perplexity", "tiny", Outcome.FAILED, "too high")
    error = RobustnessError("perplexity x2", verdict)
    assert isinstance(error, AssertionError)
    assert not isinstance(error, SwcheckError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.verdict) == ("perplexity x2", verdict)
