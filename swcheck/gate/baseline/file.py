"""The baseline file: a reference's measurements as JSON that is small enough to be committed and reviewed.

It holds what a candidate is compared with: coordinates with values and contributions, activations, the nats of every
token in float16 (so that differences stay paired), the likeliest tokens at sampled positions, a sample of the embedding,
and the identity of weights, tokenizer and text. What explains a red verdict layer by layer and map by map is a count
sketch each. Whole matrices are left out: they are read from the reference's own files where those are on this machine.
Arrays are compressed; nothing in the file is code. How each value is kept is declared by its measurement.
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

SCHEMA: Final = 2
LARGEST: Final = 1_000_000
"""At most so many bytes: a baseline is committed and reviewed."""

KEPT_ROWS: Final = 32
FEWEST_ROWS: Final = 8
KEPT_VALUES: Final = 3 * 2**15
"""At most so many values of embedding rows are kept, and as many of the rows that hold super weights."""

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

_NAMES: Final = {kind: name for name, kind in RECORDS.items()}


def baseline_text(reference: Subject, facts: dict[str, Any]) -> str:
    """Return the text of the file. ``facts`` are identities and conditions, written as they are.

    Raises ``OptionError`` for more than ``LARGEST`` bytes.
    """
    memory = Memory() if reference.memory is None else reference.memory
    kept = {
        key: _shrunk(value, traits.in_baseline)
        for key, value, traits in memory.entries()
        if _fits(value, traits.in_baseline)
    }
    body = {
        "schema": SCHEMA,
        "model": reference.name,
        **facts,
        "super_weights": [weight.as_json() for weight in located(reference).super_weights],
        "measurements": [[_pack(key), _pack(value)] for key, value in _within_room(kept).items()],
    }
    text = json.dumps(body, indent=1, allow_nan=False) + "\n"
    if len(text) > LARGEST:
        raise OptionError(
            f"a baseline of {reference.name} of at most {LARGEST:,} bytes", f"{len(text):,}", "measure on fewer windows"
        )
    return text


def read_baseline(text: str, origin: str) -> tuple[Subject, dict[str, Any]]:
    """Return the reference as it was measured, without weights, and the file's facts. ``origin`` names the file.

    Raises ``CheckpointError`` for a file that is no baseline, or one of another schema.
    """
    values: dict[Key, Any] = {}
    try:
        body = json.loads(text)
        if not isinstance(body, dict) or "schema" not in body:
            raise ValueError("it names no schema")
        schema = body["schema"]
        if schema == SCHEMA:
            values = {_unpack(key): _unpack(value) for key, value in body.pop("measurements")}
            name = str(body["model"])
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
        raise CheckpointError(
            f"baseline {origin}",
            f"no baseline of swcheck, or a damaged one ({brief_message(error)})",
            "write it anew: --swcheck-update",
        ) from error
    if schema != SCHEMA:
        raise CheckpointError(
            f"baseline {origin}",
            f"another version of swcheck wrote it (schema {schema}, this is {SCHEMA})",
            "write it anew: --swcheck-update",
        )
    return Subject(name, memory=Memory(values, TRAITS)), body


def _fits(value: Any, how: InBaseline) -> bool:
    """Whether a value is for the file: its measurement says so, and it is small enough."""
    return how is not InBaseline.NO and not (isinstance(value, MapResponses) and not value.fits)


def _within_room(values: dict[Key, Any]) -> dict[Key, Any]:
    """The values in a fixed order, so that a diff shows only changes; matrix rows beyond ``KEPT_VALUES`` as None.

    A row that is None is treated as one of a packed matrix: the cause is told less exactly.
    """
    ordered, room = {key: values[key] for key in sorted(values, key=repr)}, KEPT_VALUES
    for key, value in ordered.items():
        if name_of(key) == "row" and value is not None:
            room -= len(value)
            ordered[key] = value if room >= 0 else None
    return ordered


def _shrunk(value: Any, how: InBaseline) -> Any:
    """A value as the file keeps it: some in float16, a sample of fewer embedding rows, no rounds of the search."""
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
    """Plain JSON for the few kinds of value a memo holds, each marked with its kind."""
    if isinstance(value, torch.Tensor):
        small = value.to(torch.int32) if value.dtype == torch.int64 else value
        planes = small.contiguous().flatten().view(torch.uint8).reshape(-1, small.element_size()).T  # like beside like
        raw = zlib.compress(planes.contiguous().numpy().tobytes(), 9)
        return {"tensor": str(small.dtype).removeprefix("torch."), "shape": list(value.shape), "data": base64.b85encode(raw).decode()}  # fmt: skip
    if is_dataclass(value) and type(value) in _NAMES:
        return {
            "record": _NAMES[type(value)],
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
