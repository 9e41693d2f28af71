"""Packs measured values as JSON, and unpacks them: numbers, texts, tuples, tensors and a few records.

A tensor is compressed; how many bytes it has is known before it is unpacked. Nothing in a file is code.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import fields, is_dataclass
from typing import Any, Final

import torch

from swcheck.base.reading import schema
from swcheck.base.reading.schema import MismatchError
from swcheck.base.records import Prompt, SuperActivation, SuperWeight
from swcheck.gate.relation.candidate_kind import WeightSample
from swcheck.lens.kl_divergence import Predictions
from swcheck.lens.map_responses import MapResponses
from swcheck.superweights.locating.located import Located
from swcheck.superweights.measurements.model_sample import ModelSample
from swcheck.superweights.measurements.prompt_readings import Reading
from swcheck.superweights.measurements.residual_stream import ResidualSketch

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
"""The records that a baseline may hold, by the names they have in the file (since schema 2)."""

_RECORD_NAMES: Final = {kind: name for name, kind in RECORDS.items()}

DTYPES: Final = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.bool, torch.uint8, torch.int32, torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
"""The dtypes that a file may hold."""
_READ_AS: Final = {torch.int32: torch.int64, torch.float16: torch.float32}
"""Whole numbers are written in 32 bits and read as 64, halves are read as float32."""

MOST_BYTES: Final = 2**26
"""The most bytes that all tensors of a file may have: fifty times what the largest one needs."""

_TENSOR: Final = schema.record(
    {"tensor": schema.text(20), "shape": schema.items(schema.whole(), most=8), "data": schema.text(2**23)}
)
_RECORD: Final = schema.record({"record": schema.text(40), "fields": schema.table(schema.anything)})
_TUPLE: Final = schema.record({"tuple": schema.items(schema.anything)})
_FLOATS: Final = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def pack(value: Any) -> Any:
    """Return a remembered value as plain JSON: tensors, records, tuples and non-finite floats become marked objects.

    Raises ``TypeError`` for a value of any other type.
    """
    if isinstance(value, torch.Tensor):
        small = value.to(torch.int32) if value.dtype == torch.int64 else value
        planes = small.contiguous().flatten().view(torch.uint8).reshape(-1, small.element_size()).T  # grouped by byte
        raw = zlib.compress(planes.contiguous().numpy().tobytes(), 9)
        return {"tensor": str(small.dtype).removeprefix("torch."), "shape": list(value.shape), "data": base64.b85encode(raw).decode()}  # fmt: skip
    if is_dataclass(value) and type(value) in _RECORD_NAMES:
        return {
            "record": _RECORD_NAMES[type(value)],
            "fields": {f.name: pack(getattr(value, f.name)) for f in fields(value)},
        }
    if isinstance(value, (tuple, list)):
        return {"tuple": [pack(part) for part in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a {type(value).__name__} has no place in a baseline")


class Unpacker:
    """Unpacks the values of one file, whose tensors have at most ``MOST_BYTES`` bytes together."""

    def __init__(self) -> None:
        self.bytes_left = MOST_BYTES

    def unpack(self, value: Any, place: str) -> Any:
        """Return what ``pack`` was given. Raises ``MismatchError``, which names ``place``, for anything else."""
        if isinstance(value, list):
            raise MismatchError(place, "a packed value", value)
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return self._tensor(value, place)
        if "record" in value:
            return self._record(value, place)
        if "float" in value and isinstance(value["float"], str) and value["float"] in _FLOATS:
            return _FLOATS[value["float"]]
        _TUPLE(value, place)
        return tuple(self.unpack(part, f"{place}[{number}]") for number, part in enumerate(value["tuple"]))

    def _record(self, value: dict[str, Any], place: str) -> Any:
        _RECORD(value, place)
        kind = RECORDS.get(value["record"])
        if kind is None:
            raise MismatchError(place, f"one of {', '.join(RECORDS)}", value["record"])
        parts = {name: self.unpack(part, f"{place}.{name}") for name, part in value["fields"].items()}
        try:
            return kind(**parts)
        except TypeError as error:
            raise MismatchError(place, f"a {value['record']}", sorted(parts)) from error

    def _tensor(self, value: dict[str, Any], place: str) -> torch.Tensor:
        _TENSOR(value, place)
        dtype, shape = DTYPES.get(value["tensor"]), value["shape"]
        if dtype is None:
            raise MismatchError(place, f"one of {', '.join(DTYPES)}", value["tensor"])
        size = math.prod(shape) * dtype.itemsize
        if size > self.bytes_left:
            raise MismatchError(place, f"small enough: {MOST_BYTES:,} bytes for all tensors", f"of shape {shape}")
        self.bytes_left -= size
        raw = bytearray(_inflated(value["data"], size, place))
        if not raw:
            return torch.zeros(shape, dtype=_READ_AS.get(dtype, dtype))
        planes = torch.frombuffer(raw, dtype=torch.uint8).reshape(dtype.itemsize, -1)
        tensor = planes.T.contiguous().flatten().view(dtype).reshape(shape)
        return tensor.to(_READ_AS.get(dtype, dtype))


def _inflated(data: str, size: int, place: str) -> bytes:
    """Return the ``size`` bytes that ``data`` holds compressed; not one more is ever unpacked."""
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(base64.b85decode(data), size + 1)
    except (ValueError, zlib.error) as error:
        raise MismatchError(place, "compressed bytes in base85", data) from error
    if len(raw) != size or not stream.eof:
        raise MismatchError(place, f"exactly {size:,} bytes, as its shape says", data)
    return raw
