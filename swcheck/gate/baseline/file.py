"""Writes and reads the baseline file: a reference's measurements as JSON, small enough to be committed and reviewed.

It has what a candidate is compared with: coordinates with values and contributions, activations, the nats of every
token in float16 (so that differences are paired), the likeliest tokens at sampled positions, a sample of the embedding,
and the identity of weights, tokenizer and text. For the diagnosis of a red verdict it has a count sketch of each
layer's residual stream and of each linear map's responses. Whole matrices are not in it; they are read from the
reference's own files if those are on this machine. Arrays are compressed, and nothing in the file is code. Each
measurement declares how its value is kept.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final

import torch

from swcheck.base.errors import CheckpointError, OptionError, brief_message
from swcheck.base.records import Prompt, SuperActivation, SuperWeight
from swcheck.gate.relation.candidate_kind import WeightSample
from swcheck.lens.kl_divergence import Predictions
from swcheck.lens.map_responses import MapResponses
from swcheck.superweights.locating.located import Located
from swcheck.superweights.measurements.contributions import located
from swcheck.superweights.measurements.model_sample import ModelSample
from swcheck.superweights.measurements.prompt_readings import Reading
from swcheck.superweights.measurements.residual_stream import ResidualSketch
from swcheck.superweights.subject.measurement import TRAITS
from swcheck.superweights.subject.memory import InBaseline, Key, Memory, name_of
from swcheck.superweights.subject.subject import Subject

SCHEMA: Final = 3
READABLE: Final = {2, 3}
"""Schema 2 has no experts in its coordinates."""
LARGEST_FILE: Final = 1_000_000
"""The largest size of the file in bytes, since it is committed and reviewed."""

KEPT_ROWS: Final = 32
FEWEST_ROWS: Final = 8
"""The most and the fewest embedding rows that are kept."""

KEPT_VALUES: Final = 3 * 2**15
"""The most values that are kept of embedding rows, and separately of the matrix rows that hold super weights."""

RECORDS: Final[dict[str, type]] = {
    "SuperWeight": SuperWeight,
    "SuperActivation": SuperActivation,
    "Prompt": Prompt,
    "Reading": Reading,
    "Located": Located,
    "Predictions": Predictions,
    "Portrait": ModelSample,
    "Sketch": WeightSample,
    "Echoes": MapResponses,
    "Stream": ResidualSketch,
}
"""The records that a baseline may hold, by the names they have in the file (schema 2)."""

_RECORD_NAMES: Final = {kind: name for name, kind in RECORDS.items()}


def baseline_text(reference: Subject, facts: dict[str, Any]) -> str:
    """Return the text of the file. ``facts`` are the identities and versions, which are written unchanged.

    Raises ``OptionError`` if it is longer than ``LARGEST_FILE`` bytes.
    """
    memory = Memory() if reference.memory is None else reference.memory
    kept = {
        key: _shrunk(value, traits.in_baseline)
        for key, value, traits in memory.entries()
        if _is_written(value, traits.in_baseline)
    }
    body = {
        "schema": SCHEMA,
        "model": reference.name,
        **facts,
        "super_weights": [weight.as_json() for weight in located(reference).super_weights],
        "measurements": [[_pack(key), _pack(value)] for key, value in _ordered_and_cut(kept).items()],
    }
    text = json.dumps(body, indent=1, allow_nan=False) + "\n"
    if len(text) > LARGEST_FILE:
        raise OptionError(
            f"a baseline of {reference.name} of at most {LARGEST_FILE:,} bytes",
            f"{len(text):,}",
            "measure on fewer windows",
        )
    return text


def read_baseline(text: str, origin: str) -> tuple[Subject, dict[str, Any]]:
    """Return the reference with its measurements and without weights, and the file's facts. ``origin`` names the file.

    Raises ``CheckpointError`` for a file that is no baseline, or one of another schema.
    """
    values: dict[Key, Any] = {}
    try:
        body = json.loads(text)
        if not isinstance(body, dict) or "schema" not in body:
            raise ValueError("it names no schema")
        schema = body["schema"]
        if schema in READABLE:
            values = {_unpack(key): _unpack(value) for key, value in body.pop("measurements")}
            name = str(body["model"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
        raise CheckpointError(
            f"baseline {origin}",
            f"no baseline of swcheck, or a damaged one ({brief_message(error)})",
            "write it anew: --swcheck-update",
        ) from error
    if schema not in READABLE:
        raise CheckpointError(
            f"baseline {origin}",
            f"another version of swcheck wrote it (schema {schema}, this is {SCHEMA})",
            "write it anew: --swcheck-update",
        )
    return Subject(name, memory=Memory(values, TRAITS)), body


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
    if isinstance(value, Located):
        return replace(value, rounds=(), effect=None)
    return _halved(value) if how is InBaseline.HALF else value


def _halved(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.half()
    if isinstance(value, Predictions):
        return replace(value, logs=value.logs.half())
    return tuple(_halved(part) for part in value) if isinstance(value, tuple) else value


def _pack(value: Any) -> Any:
    """Return a remembered value as plain JSON: tensors, records, tuples and non-finite floats become marked objects."""
    if isinstance(value, torch.Tensor):
        small = value.to(torch.int32) if value.dtype == torch.int64 else value
        planes = small.contiguous().flatten().view(torch.uint8).reshape(-1, small.element_size()).T  # grouped by byte
        raw = zlib.compress(planes.contiguous().numpy().tobytes(), 9)
        return {"tensor": str(small.dtype).removeprefix("torch."), "shape": list(value.shape), "data": base64.b85encode(raw).decode()}  # fmt: skip
    if is_dataclass(value) and type(value) in _RECORD_NAMES:
        return {
            "record": _RECORD_NAMES[type(value)],
            "fields": {f.name: _pack(getattr(value, f.name)) for f in fields(value)},
        }
    if isinstance(value, (tuple, list)):
        return {"tuple": [_pack(part) for part in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} has no place in a baseline")


def _unpack(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        dtype = getattr(torch, value["tensor"])
        raw = bytearray(zlib.decompress(base64.b85decode(value["data"])))
        planes = torch.frombuffer(raw, dtype=torch.uint8).reshape(dtype.itemsize, -1) if raw else torch.zeros(0)
        tensor = planes.T.contiguous().flatten().view(dtype).reshape(value["shape"])
        return tensor.long() if dtype == torch.int32 else (tensor.float() if dtype == torch.float16 else tensor)
    if "record" in value:
        kind: Any = RECORDS[value["record"]]
        return kind(**{name: _unpack(part) for name, part in value["fields"].items()})
    if "float" in value:
        return float(value["float"])
    return tuple(_unpack(part) for part in value["tuple"])
