"""Writes and reads the baseline file: a reference's measurements as JSON, small enough to be committed and reviewed.

It has what a candidate is compared with: coordinates with values and contributions, activations, the nats of every
token in float16 (so that differences are paired), the likeliest tokens at sampled positions, a sample of the embedding,
and the identity of weights, tokenizer and text. For the diagnosis of a red verdict it has a count sketch of each
layer's residual stream and of each linear map's responses. Whole matrices are not in it; they are read from the
reference's own files if those are on this machine. Each measurement declares how its value is kept. ``document`` is the
outer form of the file, ``packing`` that of a value, and ``value_types`` what is checked when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch

import swcheck.gate.baseline.measure  # noqa: F401 - declares every measurement that a baseline keeps
from swcheck.base.errors import OptionError, brief_message
from swcheck.base.reading.schema import MismatchError
from swcheck.gate.baseline.document import LARGEST_FILE, damaged, read_document, sealed
from swcheck.gate.baseline.packing import Unpacker, pack
from swcheck.gate.baseline.value_types import check_key, check_value, check_windows, is_known
from swcheck.lens.kl_divergence import Predictions
from swcheck.lens.map_responses import MapResponses
from swcheck.superweights.locating.located import Located
from swcheck.superweights.measurements.located import located
from swcheck.superweights.measurements.model_sample import ModelSample
from swcheck.superweights.subject.measurement import TRAITS
from swcheck.superweights.subject.memory import InBaseline, Key, Memory, name_of
from swcheck.superweights.subject.subject import Subject

KEPT_ROWS: Final = 32
FEWEST_ROWS: Final = 8
"""The most and the fewest embedding rows that are kept."""

KEPT_VALUES: Final = 3 * 2**15
"""The most values that are kept of embedding rows, and separately of the matrix rows that hold super weights."""


def baseline_text(reference: Subject, facts: dict[str, Any]) -> str:
    """Return the text of the file. ``facts`` are the identities and versions, which are written unchanged.

    Raises ``OptionError`` if it is longer than ``LARGEST_FILE`` bytes.
    """
    return _text(reference, facts, _shrunk, LARGEST_FILE)


def exact_text(reference: Subject, facts: dict[str, Any], most: int) -> str:
    """Return the text of a file whose numbers are those that were measured, for a cache that nobody reviews.

    Raises ``OptionError`` if it is longer than ``most`` bytes.
    """
    return _text(reference, facts, lambda value, _how: _without_rounds(value), most)


def _text(reference: Subject, facts: dict[str, Any], shrunk: Callable[[Any, InBaseline], Any], most: int) -> str:
    memory = Memory() if reference.memory is None else reference.memory
    kept = {
        key: shrunk(value, traits.in_baseline)
        for key, value, traits in memory.entries()
        if _is_written(value, traits.in_baseline)
    }
    body = {
        "model": reference.name,
        **facts,
        "super_weights": [weight.as_json() for weight in located(reference).super_weights],
        "measurements": [[pack(key), pack(value)] for key, value in _ordered_and_cut(kept).items()],
    }
    text = json.dumps(sealed(body), indent=1, allow_nan=False) + "\n"
    if len(text) > most:
        raise OptionError(
            f"a baseline of {reference.name} of at most {most:,} bytes",
            f"{len(text):,}",
            "measure on fewer windows",
        )
    return text


def read_baseline(text: str | bytes, origin: str) -> tuple[Subject, dict[str, Any]]:
    """Return the reference with its measurements and without weights, and the file's facts. ``origin`` names the file.

    Every value has the type and shape that its measurement returns; measurements that this version does not know are
    left out. Raises ``CheckpointError`` for a file that is no baseline, is not what was written, or has another schema.
    """
    body = read_document(text, origin)
    try:
        values = _unpacked(body.pop("measurements"))
    except (MismatchError, RecursionError) as error:
        raise damaged(origin, brief_message(error)) from error
    return Subject(body["model"], memory=Memory(values, TRAITS)), body


def _unpacked(entries: list[list[Any]]) -> dict[Key, Any]:
    values: dict[Key, Any] = {}
    unpacker = Unpacker()
    for number, (packed_key, packed_value) in enumerate(entries):
        place = f"measurements[{number}]"
        key = unpacker.unpack(packed_key, place)
        check_key(key, place)
        if key in values:
            raise MismatchError(place, "there once", key)
        if is_known(key):
            values[key] = unpacker.unpack(packed_value, f"{place}, {name_of(key)},")
            check_value(key, values[key], f"{place}, {name_of(key)},")
    check_windows(values, "measurements")
    return values


def _is_written(value: Any, how: InBaseline) -> bool:
    """Return whether a value is written: its measurement declares that, and it is small enough."""
    return how is not InBaseline.NO and not (isinstance(value, MapResponses) and not value.fits_in_baseline)


def _ordered_and_cut(values: dict[Key, Any]) -> dict[Key, Any]:
    """Return the values in a fixed order, so that a diff shows only changes; rows beyond ``KEPT_VALUES`` are None.

    A row that is None counts as one of a packed matrix; the cause of a red verdict is then described less exactly.
    """
    ordered, free_values = {key: values[key] for key in sorted(values, key=repr)}, KEPT_VALUES
    for key, value in ordered.items():
        if name_of(key) == "row" and value is not None:
            free_values -= len(value)
            ordered[key] = value if free_values >= 0 else None
    return ordered


def _shrunk(value: Any, how: InBaseline) -> Any:
    """Return a value as it is written: some in float16, fewer embedding rows, no rounds of the search."""
    if isinstance(value, ModelSample) and value.rows is not None:
        count = max(FEWEST_ROWS, min(KEPT_ROWS, KEPT_VALUES // value.rows.shape[1]))
        step = -(-len(value.rows) // count)
        return replace(value, indices=value.indices[::step], rows=value.rows[::step].half())
    return _halved(value) if how is InBaseline.HALF else _without_rounds(value)


def _without_rounds(value: Any) -> Any:
    return replace(value, rounds=(), effect=None) if isinstance(value, Located) else value


def _halved(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.half()
    if isinstance(value, Predictions):
        return replace(value, logs=value.logs.half())
    return tuple(_halved(part) for part in value) if isinstance(value, tuple) else value
