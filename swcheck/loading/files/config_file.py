"""Read ``config.json``: the fields that swcheck uses have the right type and size; all others are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from swcheck.base.reading import schema
from swcheck.base.reading.bounded import read_json

CONFIG: Final = "config.json"
LARGEST_CONFIG: Final = 2**24
"""The largest ``config.json`` that is read, in bytes: quantizers list modules in it, in published ones some megabytes."""
LONGEST_NAME: Final = 256
"""The longest name of a class, a type or a method, in characters."""
MOST_LABELS: Final = 100_000
"""The most labels of a classifier: transformers makes a dictionary of them. ImageNet-21k, the largest known, has 21,841."""

_NAME: Final = schema.nullable(schema.text(LONGEST_NAME))
_QUANTIZATION: Final = schema.nullable(schema.record({}, {"quant_method": _NAME}))
_DTYPE: Final = schema.nullable(
    schema.one_of(schema.text(LONGEST_NAME), schema.table(schema.anything), words="the name of a dtype")
)

_SCHEMA: Final = schema.record(
    {"model_type": schema.text(LONGEST_NAME)},
    {
        "architectures": schema.nullable(schema.items(schema.text(LONGEST_NAME), most=64)),
        "is_encoder_decoder": schema.nullable(schema.boolean),
        "auto_map": schema.nullable(schema.table(schema.anything)),
        "quantization_config": _QUANTIZATION,
        "compression_config": _QUANTIZATION,
        "dtype": _DTYPE,
        "torch_dtype": _DTYPE,
        "max_position_embeddings": schema.nullable(schema.whole()),
        "num_labels": schema.nullable(schema.whole(0, MOST_LABELS)),
        "text_config": schema.nullable(schema.table(schema.anything)),
    },
)


def read_config(directory: Path) -> dict[str, Any]:
    """Return the checked content of ``config.json``, which has a ``model_type``. Raises ``CheckpointError``."""
    file = directory / CONFIG
    value = read_json(file, LARGEST_CONFIG, str(file))
    found: dict[str, Any] = schema.checked(value, _SCHEMA, f"a config of transformers in {file}")
    return found
