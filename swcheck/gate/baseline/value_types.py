"""Holds the values of a baseline against what their measurements return: types, shapes, and what belongs together.

The types are the annotations of the measurements and of the records; the shapes are listed here. A whole number that is
measured is never negative. B windows, T tokens, N entries, K values of each, H residual width, F inner width, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import torch

from swcheck.base.reading.schema import LARGEST, MismatchError
from swcheck.gate.baseline.packing import RECORDS
from swcheck.superweights.subject.measurement import SLOTS
from swcheck.superweights.subject.memory import InBaseline, Key, name_of

FIELD_SHAPES: Final[Mapping[str, Mapping[str, str]]] = {
    "Located": {"super_weights": "N", "written": "N"},
    "Predictions": {"positions": "int N", "tokens": "int NK", "logs": "float NK"},
    "Portrait": {"indices": "int N", "rows": "float NH"},
    "Sketch": {"names": "N", "shapes": "N", "runs": "N"},
    "Echoes": {"names": "N", "widths": "int N", "norms": "float N", "values": "float NK", "drawn": "float D"},
    "Stream": {"away": "bool LT", "norms": "float L", "values": "float LK"},
}
"""The kind and the sides of every tensor of a record, and the length of tuples beside them; the same letter is one number."""

VALUE_SHAPES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("windows", "between", "checked", "prompt", "padded"), "int BT"),
    **dict.fromkeys(("intact", "causal", "matched", "largest", "experts"), "float BT"),
    "row": "float F",
    "greedy": "int SBT",
}
"""The kind and the sides of a measurement that is a tensor, or of the first part of one that is a tuple."""

_RECORD_NAMES: Final = {kind: name for name, kind in RECORDS.items()}


def is_known(key: Key) -> bool:
    """Return whether this version has a measurement of this name that a baseline keeps."""
    slot = SLOTS.get(name_of(key))
    return slot is not None and slot.traits.in_baseline is not InBaseline.NO


def check_key(key: Any, place: str) -> None:
    """Raise ``MismatchError`` unless a key is a name, alone or with inputs that are plain values or records of them."""
    name = key[0] if isinstance(key, tuple) and key else key
    if not isinstance(name, str):
        raise MismatchError(place, "the name of a measurement", name)
    if isinstance(key, tuple):
        _check_input(key, place)


def _check_input(value: Any, place: str) -> None:
    if isinstance(value, tuple):
        for number, part in enumerate(value):
            _check_input(part, f"{place}[{number}]")
    elif type(value) in _RECORD_NAMES:
        check_type(value, type(value), place)
        for part in vars(value).values():
            _check_input(part, place)
    elif isinstance(value, torch.Tensor):
        raise MismatchError(place, "a plain value", "a tensor")


def check_value(key: Key, value: Any, place: str) -> None:
    """Raise ``MismatchError`` unless ``value`` is what the measurement of ``key`` returns."""
    name = name_of(key)
    check_type(value, SLOTS[name].value_type, place)
    first = value[0] if isinstance(value, tuple) and value else value
    if isinstance(first, torch.Tensor) and name in VALUE_SHAPES:
        _check_sides(first, VALUE_SHAPES[name], {}, place)


def check_windows(values: Mapping[Key, Any], place: str) -> None:
    """Raise ``MismatchError`` unless the scores in a baseline are those of its windows."""
    windows, intact = values.get("windows"), values.get("intact")
    if windows is None or intact is None:
        return
    nats, predictions = intact
    if nats.shape != (len(windows), windows.shape[1] - 1):
        raise MismatchError(place, f"nats of windows {tuple(windows.shape)}", f"nats {tuple(nats.shape)}")
    if len(predictions.positions) and int(predictions.positions.max()) >= nats.numel():
        raise MismatchError(place, f"positions in {nats.numel()} predictions", int(predictions.positions.max()))


def check_type(value: Any, hint: Any, place: str) -> None:
    """Raise ``MismatchError`` unless ``value`` has the annotated type ``hint``, records and tuples with all their parts."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        _check_any(value, parts, place)
    elif origin is tuple:
        _check_tuple(value, parts, place)
    elif hint is float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise MismatchError(place, "a number", value)
    elif hint is int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
            raise MismatchError(place, "a whole number", value)
    elif not isinstance(value, hint):
        raise MismatchError(place, hint.__name__, value)
    elif is_dataclass(hint):
        _check_record(value, place)
    elif isinstance(value, torch.Tensor) and not value.is_floating_point() and value.numel() and int(value.min()) < 0:
        raise MismatchError(place, "without negative numbers", int(value.min()))


def _check_any(value: Any, hints: tuple[Any, ...], place: str) -> None:
    errors = []
    for hint in hints:
        try:
            check_type(value, hint, place)
        except MismatchError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def _check_tuple(value: Any, hints: tuple[Any, ...], place: str) -> None:
    repeated = len(hints) == 2 and hints[1] is Ellipsis
    if not isinstance(value, tuple) or not (repeated or len(value) == len(hints)):
        raise MismatchError(place, "a tuple" if repeated else f"a tuple of {len(hints)}", value)
    for number, part in enumerate(value):
        check_type(part, hints[0] if repeated else hints[number], f"{place}[{number}]")


def _check_record(value: Any, place: str) -> None:
    kind: Any = type(value)
    for name, hint in _field_types(kind).items():
        check_type(getattr(value, name), hint, f"{place}.{name}")
    sides: dict[str, int] = {}
    for name, words in FIELD_SHAPES.get(_RECORD_NAMES.get(type(value), ""), {}).items():
        part = getattr(value, name)
        if part is not None:
            _check_sides(part, words, sides, f"{place}.{name}")


@cache
def _field_types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_sides(value: Any, words: str, known: dict[str, int], place: str) -> None:
    """Check the kind and the sides of a tensor, or the length of a tuple. ``known`` has the sides by letter so far."""
    kind, _, letters = words.rpartition(" ")
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else (len(value),)
    if kind and kind != _kind_of(value):
        raise MismatchError(place, f"of {kind}", f"of {_kind_of(value)}")
    if len(shape) != len(letters) or any(
        known.setdefault(letter, side) != side for letter, side in zip(letters, shape, strict=True)
    ):
        expected = ", ".join(f"{letter} = {known[letter]}" if letter in known else letter for letter in letters)
        raise MismatchError(place, f"of shape ({expected})", f"of shape {shape}")


def _kind_of(tensor: torch.Tensor) -> str:
    return "float" if tensor.is_floating_point() else "bool" if tensor.dtype == torch.bool else "int"
