"""The key-value cache that a model generates with, as its generation config names it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from swcheck.base.errors import OptionError

if TYPE_CHECKING:
    import torch

BACKENDS: Final = {"quanto": "optimum.quanto", "hqq": "hqq"}
"""What quantizes a cache in transformers, and the package of each."""

STATIC: Final = ", static KV cache"
"""What a cache of a fixed size is called in reports."""


def cache_name(model: Any) -> str:
    """Return what the forward pass of ``model`` calls its cache: ``cache`` in newer transformers, before ``past_key_values``."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def kv_cache(model: Any) -> Callable[[], Any]:
    """Return a function that makes an empty key-value cache of the kind that the model's generation config names.

    That is a ``QuantizedCache`` or, by default, a ``DynamicCache``. Raises ``OptionError`` if the package that
    quantizes the cache is not installed or its options are invalid.
    """
    from transformers.cache_utils import DynamicCache, QuantizedCache

    config, generation = model.config.get_text_config(decoder=True), getattr(model, "generation_config", None)
    if getattr(generation, "cache_implementation", None) != "quantized":
        return lambda: DynamicCache(config=config)
    cache_config: Any = getattr(generation, "cache_config", None) or {}
    options = {**(cache_config if isinstance(cache_config, Mapping) else cache_config.to_dict())}
    options.pop("config", None)
    backend = str(options.pop("backend", "quanto"))
    try:
        QuantizedCache(backend, config, **options)
    except (ImportError, TypeError, ValueError) as error:
        found = " ".join(str(error).split())
        raise OptionError(f"the {backend} cache of this checkpoint", found, f"pip install {backend.lower()}") from error
    return lambda: QuantizedCache(backend, config, **options)


def cache_of(past: Sequence[torch.Tensor]) -> Any:
    """Return a cache of transformers that holds the keys and values of each layer in turn."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer = DynamicLayer()
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def cache_types(model: Any, length: int) -> dict[str, Callable[[], Any]]:
    """Return functions that make an empty cache for ``length`` tokens, by the words for its type; empty for the model's own.

    A quantized one has 4 bits, and is there where a package for it is installed. They may raise what transformers does for
    a model that takes no such cache.
    """
    found: dict[str, Callable[[], Any]] = {
        "": partial(_own, model),
        STATIC: partial(_static, model, length),
    }
    backend = next((name for name, package in BACKENDS.items() if _is_installed(package)), None)
    if backend is not None:
        found[f", {backend} KV cache"] = partial(_quantized, model, backend)
    return found


def _own(model: Any) -> Any:
    try:
        return kv_cache(model)()
    except OptionError:  # its package is missing: then the numbers are kept as they are
        from transformers.cache_utils import DynamicCache

        return DynamicCache(config=model.config.get_text_config(decoder=True))


def _static(model: Any, length: int) -> Any:
    from transformers.cache_utils import StaticCache

    return StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)


def _quantized(model: Any, backend: str) -> Any:
    from transformers.cache_utils import QuantizedCache

    return QuantizedCache(backend, model.config.get_text_config(decoder=True))


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False
