"""The configuration of a subject, and the fields in which two configurations differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from swcheck.superweights.subject.measurement import measurement
from swcheck.superweights.subject.memory import Cost
from swcheck.superweights.subject.subject import Subject

WITHOUT_EFFECT: Final = frozenset(
    {
        "_name_or_path", "architectures", "attn_implementation", "auto_map", "chunk_size_feed_forward", "dtype",
        "experts_implementation", "finetuning_task", "id2label", "initializer_range", "is_decoder",
        "is_encoder_decoder", "keys_to_ignore_at_inference", "label2id", "layer_types", "model_type",
        "output_attentions", "output_hidden_states", "output_router_logits", "prefix", "pretraining_tp",
        "problem_type", "quantization_config", "return_dict", "tokenizer_class", "torch_dtype", "torchscript",
        "transformers_version", "use_bfloat16", "use_cache", "vocab_size",
    }
)  # fmt: skip
"""Fields that change no number of a forward pass, or that are compared elsewhere (``vocab_size``, by the tensors)."""

NO_EFFECT_ENDINGS: Final = ("dropout", "_pdrop", "token_id", "_init_std", "_aux_loss_coef", "jitter_noise")
"""Endings of the names of such fields. Token ids are read by generation alone."""

FOLLOWERS: Final[Mapping[str, tuple[str, ...]]] = {"num_hidden_layers": ("layer_types",)}
"""Fields that have to change together with another one."""


@measurement("configuration", Cost.WEIGHTS, of_weights=True)
def configuration(subject: Subject) -> str:
    """Return every field of the model's configuration as JSON; an empty object where it has none."""
    config = getattr(subject.module, "config", None)
    return "{}" if config is None else str(config.to_json_string(use_diff=False))


@measurement("generation", Cost.WEIGHTS, of_weights=True)
def generation_settings(subject: Subject) -> tuple[str, str]:
    """Return what generation alone reads: the ids that end a text, and a hash of the chat template; empty without one."""
    module = subject.module
    config = getattr(module, "generation_config", None) or getattr(module, "config", None)
    template = str(getattr(subject.tokenizer, "chat_template", None) or "")
    digest = hashlib.sha256(template.encode()).hexdigest()[:10] if template else ""
    return str(getattr(config, "eos_token_id", None)), digest


def differing_fields(ours: str, theirs: str) -> dict[str, tuple[Any, Any]]:
    """Return by name the values, ours and theirs, of the fields that can change a number and differ.

    Both are configurations as JSON. Nested fields have dots in their names. Empty for two types of model.
    """
    one, other = json.loads(ours), json.loads(theirs)
    if one.get("model_type") != other.get("model_type"):
        return {}
    left, right = dict(_leaves(one)), dict(_leaves(other))
    return {
        name: (left.get(name), right.get(name))
        for name in dict.fromkeys((*left, *right))
        if left.get(name) != right.get(name) and _has_effect(name)
    }


def with_field(values: dict[str, Any], name: str, value: Any) -> None:
    """Set a field of a configuration, whose name may have dots, to ``value``."""
    *parents, last = name.split(".")
    for parent in parents:
        found = values.get(parent)
        values[parent] = dict(found) if isinstance(found, Mapping) else {}
        values = values[parent]
    values[last] = value


def field_words(name: str, ours: Any, theirs: Any) -> str:
    """Return a difference in words: ``rope_theta 50 for 10,000``."""
    return f"{name.rpartition('.')[2]} {_value_words(ours)} for {_value_words(theirs)}"


def _leaves(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value and name not in WITHOUT_EFFECT:
            yield from _leaves(value, f"{start}{name}.")
        else:
            yield f"{start}{name}", value


def _has_effect(name: str) -> bool:
    parts = name.split(".")
    return not any(part in WITHOUT_EFFECT or part.startswith("_") for part in parts) and not parts[-1].endswith(
        NO_EFFECT_ENDINGS
    )


def _value_words(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"
