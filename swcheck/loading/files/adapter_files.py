"""Read what peft loads of an adapter: its config, typed, and the header of its weights.

The config is believed by peft: it makes matrices as large as it says, looks for modules with its patterns, and for some
kinds reads other files or imports packages that it names. So an engine calls ``read_adapter`` first, and
``check_adapter_patterns`` when it knows the names of the modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import CheckpointError, UnsafeCheckpointError
from swcheck.base.isolation import bounded
from swcheck.base.reading import schema
from swcheck.base.reading.bounded import read_json
from swcheck.loading.files.safetensors_header import read_header

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
LARGEST_CONFIG: Final = 2**22
"""The largest config that is read, in bytes: one that lists every module of a large model has some 100 kB."""
LONGEST_PATTERN: Final = 10_000
PATTERN_SECONDS: Final = 5.0
PATTERN_MEMORY: Final = 2**28

KINDS: Final = frozenset({
    "ADALORA", "BOFT", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR",
    "LORA", "MISS", "OFT", "RANDLORA", "ROAD", "SHIRA", "VBLORA", "VERA", "WAVEFT",
})  # fmt: skip
"""The kinds that change the weights of modules. The others prepend tokens, or load models and files that the config names."""

OTHER_FILES: Final = ("megatron_config", "arrow_config")
"""Fields that make peft import a package, or load more adapters, by a name in the config."""

_TEXT: Final = schema.nullable(schema.text(LONGEST_PATTERN))
_TEXTS: Final = schema.items(schema.text(LONGEST_PATTERN), most=100_000)
_PATTERNS: Final = schema.nullable(
    schema.one_of(schema.text(LONGEST_PATTERN), _TEXTS, words="a text or a list of texts")
)
_WIDTH: Final = schema.nullable(schema.whole(1))
_WIDTHS: Final = schema.nullable(schema.table(schema.whole(1)))
_SCHEMA: Final = schema.record(
    {"peft_type": schema.text(64)},
    {
        "base_model_name_or_path": _TEXT,
        "target_modules": _PATTERNS,
        "exclude_modules": _PATTERNS,
        "modules_to_save": _PATTERNS,
        "layers_pattern": _PATTERNS,
        "r": _WIDTH,
        "rank_pattern": _WIDTHS,
        "alpha_pattern": schema.nullable(schema.table(schema.real())),
        "lora_alpha": schema.nullable(schema.real()),
        "lora_dropout": schema.nullable(schema.real(0, 1)),
        "fan_in_fan_out": schema.nullable(schema.boolean),
    },
)
RANKS: Final = ("r", "rank", "init_r", "target_r", "num_vectors", "vector_length", "oft_block_size", "boft_block_size")


@dataclass(frozen=True)
class AdapterFiles:
    """The checked config of an adapter, and the names of its stored tensors."""

    config: Mapping[str, Any]
    tensors: frozenset[str]


def read_adapter(folder: Path) -> AdapterFiles:
    """Return what the files of an adapter say, whose weights are safetensors.

    Raises ``CheckpointError`` for a config or weights that are missing, malformed or do not belong together, and
    ``UnsafeCheckpointError`` for a kind of adapter that reads or runs more than its two files.
    """
    file = folder / ADAPTER_CONFIG
    asked, attempt = f"an adapter of peft in {folder}", "save the adapter again"
    config: dict[str, Any] = schema.checked(read_json(file, LARGEST_CONFIG, str(file)), _SCHEMA, asked, attempt)
    kind = config["peft_type"]
    if kind.upper() not in KINDS:
        found = f"the kind {kind}, which may prepend tokens, or load what its config names"
        raise UnsafeCheckpointError(asked, found, "merge it into its base model, and give that directory")
    for name in OTHER_FILES:
        if config.get(name):
            found = f"{name}, which makes peft load more than the adapter's own two files"
            raise UnsafeCheckpointError(asked, found, f"take {name} out of {ADAPTER_CONFIG}")
    tensors = read_header(folder / ADAPTER_WEIGHTS).tensors
    _check_ranks(config, max((side for tensor in tensors.values() for side in tensor.shape), default=0), asked)
    return AdapterFiles(config, frozenset(tensors))


def _check_ranks(config: Mapping[str, Any], largest: int, asked: str) -> None:
    """Raise ``CheckpointError`` for ranks beyond the ``largest`` side of the stored tensors: peft would take the memory for them."""
    given = {name: config[name] for name in RANKS if isinstance(config.get(name), (int, float))}
    given |= {f"rank_pattern.{key}": value for key, value in (config.get("rank_pattern") or {}).items()}
    for name, value in given.items():
        if not value <= largest:
            found = f"{name[:200]} is {value!r:.40}, and the largest side of its tensors is {largest:,}"
            raise CheckpointError(asked, found, "give the weights that belong to this config")


def check_adapter_patterns(config: Mapping[str, Any], names: Iterable[str], asked: str) -> None:
    """Raise ``CheckpointError`` unless the patterns in a config are regular expressions that are matched in time.

    ``names`` are those of the modules. A pattern such as ``(a+)+b`` takes centuries for some names.
    """
    modules = list(names)
    for pattern in _patterns(config):
        try:
            with bounded(PATTERN_SECONDS, PATTERN_MEMORY):
                compiled = re.compile(pattern)
                for name in modules:
                    compiled.fullmatch(name)
        except (re.error, OverflowError, RecursionError, MemoryError, TimeoutError) as error:
            found = f"the pattern {pattern[:100]!r}: {error or type(error).__name__}"
            raise CheckpointError(asked, found, "name the modules in a list") from error


def _patterns(config: Mapping[str, Any]) -> list[str]:
    """Return all texts in a config that peft matches names of modules with, as it writes them."""
    found = [config[name] for name in ("target_modules", "exclude_modules") if isinstance(config.get(name), str)]
    for name in ("rank_pattern", "alpha_pattern"):
        found += [rf"(.*\.)?({key})$" for key in config.get(name) or ()]
    for name in ("modules_to_save", "layers_pattern"):
        given = config.get(name) or ()
        found += [rf"(^|.*\.){one}($|\..*)" for one in ([given] if isinstance(given, str) else given)]
    return found
