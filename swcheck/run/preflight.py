"""What will go wrong, seen from a config and the headers of safetensors files alone, before anything is loaded.

A quantizer that meets a width which its groups do not divide says so after its calibration, and one that knows linear
layers alone skips fused experts without a word. A config without weights will do as well.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from swcheck.base.errors import CheckpointError, SwcheckError
from swcheck.base.formatting import format_size
from swcheck.base.reading.bounded import read_json
from swcheck.loading import engines
from swcheck.loading.files.checkpoint_size import BYTES
from swcheck.loading.files.config_file import LARGEST_CONFIG, read_config
from swcheck.loading.scheme_from_config import is_installed
from swcheck.run.outline import Outline, built_shapes, outline_of
from swcheck.run.settings import Settings

GROUP: Final = re.compile(r"(?:^|[^a-z])(?:group(?:[_-]?size)?|block|gs|g)[=_-]?(\d+)", re.IGNORECASE)
FORMATS: Final[Mapping[str, int]] = {
    r"(?:^|\W)(?:i?q[2-6]_k|iq\w+)": 256,
    r"(?:^|\W)q[4-8]_[01]": 32,
    "nvfp4": 16,
    "mxfp4|mxfp8": 32,
}
"""Formats whose groups have a size of their own, as patterns: the super-blocks of k-quants, the blocks of fp4."""

LAYER: Final = re.compile(r"\.\d+\.")
OUTSIDE: Final = ("embed", "wte", "wpe", "lm_head", "shared.weight", "norm", "router", "gate.weight")
"""Matrices with such names are usually not quantized."""

EXPERT: Final = re.compile(r"\.experts\.\d+\.")
TRANSPOSED: Final = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""The types whose matrices transformers keeps as ``Conv1D``, with a row for each input channel."""

OVERFLOWING: Final[Mapping[str, str]] = dict.fromkeys(
    ("gemma3", "gemma3_text"), "Gemma 3 overflows it (transformers issue 36822)"
)
"""The types whose activations are known to be too large for float16."""

WIDER: Final = "bfloat16 or float32"
CACHE_PACKAGES: Final = {"quanto": ("optimum.quanto", "optimum-quanto"), "hqq": ("hqq", "hqq")}
"""The backends of transformers' quantized cache: the module and the package of each."""

LARGEST_HALF: Final = 65_504
MOST_NAMED: Final = 4


@dataclass(frozen=True)
class Remark:
    """One thing that was seen: ``blocks`` if a quantizer will fail over it, or skip weights without a word."""

    what: str
    words: str
    attempt: str = ""
    blocks: bool = True

    def __str__(self) -> str:
        return f"{self.what}: {self.words}" + (f"; {self.attempt}" if self.attempt else "")


def group_size(scheme: str) -> int | None:
    """Return the number of weights that share a scale, as a scheme says it; None if it does not."""
    found = GROUP.search(scheme)
    if found:
        return int(found[1]) or None
    return next((size for words, size in FORMATS.items() if re.search(words, scheme.lower())), None)


def remarks(directory: Path, scheme: str = "", dtype: str | None = None, known: float | None = None) -> list[Remark]:
    """Return what can be seen of a checkpoint in ``directory``, to be quantized by ``scheme`` or loaded as ``dtype``.

    ``known`` is the magnitude of its largest super activation, where that was measured before. Raises ``CheckpointError``
    for a file that is no safetensors, or a directory of which nothing can be seen.
    """
    seen = outline_of(directory)
    size = group_size(scheme)
    return [
        *(_widths(seen, size) if size else ()),
        *((*_experts(seen, directory), *_transposed(seen)) if scheme else ()),
        *_kv_cache(seen, directory),
        *_range(seen, dtype, known),
        *_memory(seen, dtype),
    ]


def _widths(seen: Outline, size: int) -> Iterator[Remark]:
    """Yield a remark for each width (input channels) of a layer's matrices that groups of ``size`` do not divide."""
    by_width: dict[int, list[str]] = {}
    inputs = 0 if seen.config.get("model_type") in TRANSPOSED else 1
    for name, shape in seen.shapes.items():
        if _is_layers_matrix(name, shape) and shape[inputs] % size:
            by_width.setdefault(shape[inputs], []).append(name)
    for width, names in by_width.items():
        best = next(group for group in (128, 64, 32, 16, 8, 4, 2, 1) if group < size and width % group == 0)
        words = f"{width:,} input channels are no multiple of {size}: {_named(names)}"
        yield Remark("group size", words, f"groups of {best}, or leave these matrices out")


def _is_layers_matrix(name: str, shape: Sequence[int]) -> bool:
    return len(shape) == 2 and bool(LAYER.search(name)) and not any(word in name.lower() for word in OUTSIDE)


def _experts(seen: Outline, directory: Path) -> Iterator[Remark]:
    """Yield a remark on experts that are one tensor a layer: in the files, or in the model that transformers makes of them."""
    shapes = seen.shapes
    if any(EXPERT.search(name) for name in shapes):  # apart in the files
        shapes = {}
        with suppress(CheckpointError):
            shapes = built_shapes(directory)
    fused = [name for name, shape in shapes.items() if len(shape) == 3 and "expert" in name.lower()]
    if fused:
        share = sum(math.prod(shapes[name]) for name in fused) / sum(map(math.prod, shapes.values()))
        place = "" if shapes is seen.shapes else " once transformers has loaded them"
        words = f"{share:.0%} of the parameters are experts in one tensor a layer{place}, no nn.Linear: {_named(fused)}"
        yield Remark(
            "fused experts", words, "a quantizer that replaces nn.Linear skips them; check that yours unpacks them"
        )


def _transposed(seen: Outline) -> Iterator[Remark]:
    names = [name for name, shape in seen.shapes.items() if _is_layers_matrix(name, shape)]
    if names and seen.config.get("model_type") in TRANSPOSED:
        attempt = "a quantizer that replaces nn.Linear skips them; check that yours knows Conv1D"
        yield Remark("transposed layers", f"its matrices are Conv1D, no nn.Linear: {_named(names)}", attempt)


def _kv_cache(seen: Outline, directory: Path) -> Iterator[Remark]:
    """Yield a remark on a quantized cache that its config asks for and that is not applied here."""
    quantization = seen.config.get("quantization_config")
    scheme = quantization.get("kv_cache_scheme") if isinstance(quantization, Mapping) else None
    if isinstance(scheme, Mapping):
        words = f"its config asks for {scheme.get('num_bits', '?')} bits ({scheme.get('type', 'of no named type')})"
        what = "a runtime that lacks it, as transformers, keeps the cache whole without a word"
        yield Remark("KV cache", f"{words}; {what}", "judge it in the runtime that it ships in")
    generation: Any = {}
    with suppress(CheckpointError):
        file = directory / "generation_config.json"
        generation = read_json(file, LARGEST_CONFIG, str(file))
    if not isinstance(generation, Mapping) or generation.get("cache_implementation") != "quantized":
        return
    options = generation.get("cache_config")
    backend = str(options.get("backend", "quanto") if isinstance(options, Mapping) else "quanto").lower()
    module, package = CACHE_PACKAGES.get(backend, ("", ""))
    if not module or not is_installed(module):
        words = f"its generation config asks for a cache by {backend}"
        attempt = f"pip install {package}" if module else f"transformers has {' and '.join(CACHE_PACKAGES)}"
        yield Remark("KV cache", f"{words}, which {'is not installed' if module else 'transformers lacks'}", attempt)


def _range(seen: Outline, dtype: str | None, known: float | None) -> Iterator[Remark]:
    """Yield a remark on float16, where a super activation may be larger than its largest number."""
    if (dtype or seen.dtype) != "float16":
        return
    end = f"float16 ends at {LARGEST_HALF:,}"
    if known is not None:
        if known > LARGEST_HALF:
            yield Remark("range", f"{end}, and a super activation of this model is {known:,.0f}", WIDER)
    elif seen.config.get("model_type") in OVERFLOWING:
        yield Remark("range", f"{end}, and {OVERFLOWING[str(seen.config['model_type'])]}", WIDER)
    elif seen.dtype == "bfloat16":
        words = f"{end}, and this checkpoint was made in bfloat16, which does not"
        yield Remark("range", words, "look at the super activation first: swcheck locate", blocks=False)


def _memory(seen: Outline, dtype: str | None) -> Iterator[Remark]:
    memory, needed = machine_memory(), seen.parameters * BYTES.get(dtype or seen.dtype, 4)
    if memory is not None and needed > memory:
        words = f"{format_size(needed)} of weights, and this machine has {format_size(memory)}"
        yield Remark("memory", words, "they are read from their files again in every pass", blocks=False)


def known_activation(settings: Settings, spec: str) -> float | None:
    """Return the magnitude of a model's largest super activation, if a baseline or an earlier run has it; else None."""
    from swcheck.run.baselines import reference_from_baseline
    from swcheck.run.reference_cache import ReferenceCache

    if settings.uses_baselines:
        memory = reference_from_baseline(settings, spec).memory
    else:
        kept = ReferenceCache(replace(settings, dtype=None), spec).read()
        memory = None if kept is None else kept[0]
    found = None if memory is None else memory.values.get("located")
    return max((abs(one.value) for one in found.activations), default=None) if found is not None else None


def gate_lines(settings: Settings) -> list[str]:
    """Return what the models of a gate, and the quantizers that make its candidates, will stumble over.

    The built-in quantizer cuts blocks across rows, and stumbles over no width.
    """
    lines = []
    for spec in dict.fromkeys((*settings.models, *settings.candidates)):
        with suppress(SwcheckError, OSError):  # an error is reported when the model is loaded
            made = engines.needs_reference(spec)
            directory = engines.directory_of(settings.models[0] if made else spec)
            if directory is None or spec.startswith("rtn:"):
                continue
            known = None if made else _known_where_half(settings, directory)
            found = remarks(directory, spec if made else "", settings.dtype, known)
            lines += [f"{spec}: {remark}" for remark in found if remark.blocks]
    return lines


def _known_where_half(settings: Settings, directory: Path) -> float | None:
    """Return the largest known super activation of the reference for a model that is loaded in float16, and it is not."""
    half, stored = "float16", engines.directory_of(settings.models[0])
    if (settings.dtype or outline_of(directory).dtype) != half:
        return None
    own = settings.dtype is None and stored is not None and outline_of(stored).dtype == half
    return None if own else known_activation(settings, settings.models[0])


def machine_memory() -> int | None:
    """Return the main memory of this machine in bytes; None where the system does not say."""
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _named(names: Sequence[str]) -> str:
    """Return names without the number of their layer, each once, with how many there are."""
    short = list(dict.fromkeys(LAYER.sub(".*.", name).removesuffix(".weight") for name in names))
    more = f" and {len(short) - MOST_NAMED} more" if len(short) > MOST_NAMED else ""
    return f"{', '.join(short[:MOST_NAMED])}{more} ({len(names)} tensor{'s' * (len(names) > 1)})"


def quantization_of(directory: Path) -> str:
    """Return words for the scheme that a checkpoint says it has already; empty if it says none."""
    with suppress(CheckpointError):
        found = read_config(directory).get("quantization_config")
        if isinstance(found, Mapping):
            return f"already quantized: {found.get('quant_method', 'by an unnamed method')}"
    return ""
