"""The key-value cache that a model generates with, as its generation config names it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from swcheck.base.errors import OptionError


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
