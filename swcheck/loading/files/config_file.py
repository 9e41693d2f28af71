"""Read ``config.json``: the fields that swcheck uses have the right type and size; all others are left alone.

A config says how large a model is, and transformers believes it. ``check_counts`` holds it against the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import CheckpointError
from swcheck.base.reading import schema
from swcheck.base.reading.bounded import read_json
from swcheck.loading.files.safetensors_header import StoredTensor

CONFIG: Final = "config.json"
LARGEST_CONFIG: Final = 2**24
"""The largest ``config.json`` that is read, in bytes: quantizers list modules in it, in published ones some megabytes."""
LAYER_COUNTS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
EXPERT_COUNTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""The fields of the families of transformers that say how many layers and experts a model has."""
MORE_LAYERS: Final = 64
MORE_EXPERTS: Final = 1024
"""So many are built whatever the files hold, which takes a second: a config keeps defaults of parts that it does not use."""

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


def check_counts(config: Mapping[str, Any], tensors: Sequence[StoredTensor], file: Path) -> None:
    """Raise ``CheckpointError`` if a config asks for more layers or experts than the files can hold.

    Transformers makes lists, and modules, of as many before it looks into the files.
    """
    stacked = max((tensor.shape[0] for tensor in tensors if len(tensor.shape) > 2), default=0)
    most_layers, most_experts = max(MORE_LAYERS, len(tensors)), max(MORE_EXPERTS, len(tensors), stacked)
    for part in (config, config.get("text_config") or {}):
        for names, most in ((LAYER_COUNTS, most_layers), (EXPERT_COUNTS, most_experts)):
            for name in names:
                count = part.get(name)
                if isinstance(count, (int, float)) and not count <= most:
                    found = f"{name} is {count!r:.40}, and the files hold {len(tensors):,} tensors"
                    attempt = "check that weights and config.json belong together"
                    raise CheckpointError(f"a config of the weights beside {file}", found, attempt)
