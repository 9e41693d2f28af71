"""A schema for JSON values: functions that check a value's type and range, and say where it is wrong.

Each function here returns a ``Check``, which takes a value and the name of its place and raises ``MismatchError`` unless
the value fits. ``checked`` turns that into an error for people. Fields that a schema does not name are left alone, since
the files of other tools have many.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeAlias

from swcheck.base.errors import CheckpointError
from swcheck.base.json_text import NOT_FINITE

Check: TypeAlias = Callable[[Any, str], None]

LARGEST: Final = 2**63 - 1
"""The largest whole number that tensors and file offsets have."""


class MismatchError(ValueError):
    """A value does not fit its schema: ``place: expected, not found``."""

    def __init__(self, place: str, expected: str, value: Any) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        super().__init__(f"{place or 'the whole'} is {shown}, not {expected}")


def checked(value: Any, check: Check, asked: str, attempt: str = "repair the file, or fetch it again") -> Any:
    """Return ``value`` if it fits. Raises ``CheckpointError``, with ``asked`` as what was asked for."""
    try:
        check(value, "")
    except MismatchError as error:
        raise CheckpointError(asked, str(error), attempt) from error
    return value


def whole(low: int = 0, high: int = LARGEST) -> Check:
    """Return the check for a whole number from ``low`` to ``high``."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise MismatchError(place, f"a whole number from {low:,} to {high:,}", value)

    return check


def real(low: float = -math.inf, high: float = math.inf) -> Check:
    """Return the check for a number from ``low`` to ``high``; NaN never fits, nor a whole number that no float can hold."""

    def check(value: Any, place: str) -> None:
        too_large = type(value) is int and abs(value) > sys.float_info.max
        if type(value) not in {int, float} or too_large or not low <= value <= high:
            raise MismatchError(place, f"a number from {low:g} to {high:g}", value)

    return check


def text(longest: int) -> Check:
    """Return the check for a text of at most ``longest`` characters."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or len(value) > longest:
            raise MismatchError(place, f"a text of at most {longest:,} characters", value)

    return check


def choice(values: Collection[str]) -> Check:
    """Return the check for one of these texts."""

    def check(value: Any, place: str) -> None:
        if not isinstance(value, str) or value not in values:
            raise MismatchError(place, f"one of {', '.join(values)}", value)

    return check


def boolean(value: Any, place: str) -> None:
    """Check that a value is true or false."""
    if not isinstance(value, bool):
        raise MismatchError(place, "true or false", value)


def one_of(*checks: Check, words: str) -> Check:
    """Return the check for a value that fits one of ``checks``; ``words`` name them together."""

    def fits(check: Check, value: Any, place: str) -> bool:
        try:
            check(value, place)
        except MismatchError:
            return False
        return True

    def check_any(value: Any, place: str) -> None:
        if not any(fits(check, value, place) for check in checks):
            raise MismatchError(place, words, value)

    return check_any


NUMBER: Final = one_of(real(), choice(NOT_FINITE), words="a number")
"""The check for a number as our own files have it: one that is not finite by its name."""


def nullable(check: Check) -> Check:
    """Return the check for null, or a value that fits ``check``."""

    def check_or_none(value: Any, place: str) -> None:
        if value is not None:
            check(value, place)

    return check_or_none


def items(check: Check, *, most: int = LARGEST, fewest: int = 0) -> Check:
    """Return the check for a list of ``fewest`` to ``most`` values that fit ``check``."""

    def check_list(value: Any, place: str) -> None:
        if not isinstance(value, list) or not fewest <= len(value) <= most:
            count = f"{fewest:,}" if most == fewest else f"{fewest:,} to {most:,}"
            raise MismatchError(place, f"a list of {count} values", value)
        for number, item in enumerate(value):
            check(item, f"{place}[{number}]")

    return check_list


def table(check: Check, *, fewest: int = 0) -> Check:
    """Return the check for an object with at least ``fewest`` keys, all of whose values fit ``check``."""

    def check_values(value: Any, place: str) -> None:
        if not isinstance(value, dict) or len(value) < fewest:
            raise MismatchError(place, "an object" + f" with at least {fewest} key" * (fewest > 0), value)
        for key, item in value.items():
            check(item, _inside(place, key))

    return check_values


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Return the check for an object with all ``required`` fields, and maybe ``optional`` ones; others are left alone."""
    possible = optional or {}

    def check_fields(value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise MismatchError(place, "an object", value)
        for name in required:
            if name not in value:
                raise MismatchError(place, f"an object with {name}", sorted(value))
        for name, check in {**required, **possible}.items():
            if name in value:
                check(value[name], _inside(place, name))

    return check_fields


def anything(_value: Any, _place: str) -> None:
    """Accept every value."""


def _inside(place: str, key: str) -> str:
    short = key if len(key) <= 100 else f"{key[:97]}..."
    return f"{place}.{short}" if place else short
