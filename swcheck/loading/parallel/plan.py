"""Which linear maps of a model the processes of torchrun share, and how.

transformers' own plan pairs maps: a first one gives each process some of its outputs, a second one adds up what the
processes make of theirs. What lies between is never whole anywhere, and it is what super weights are found in. So every
map that the plan shares is given transformers' style ``colwise_gather_output`` here: each process keeps some rows of the
weight, and all get the whole output. The memory for weights and the products are shared as in the plan of transformers;
attention and what is computed between two maps run in every process. No sum is split, so that the numbers are those of one process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from swcheck.base.errors import EngineError, OptionError

WHOLE_OUTPUTS: Final = "colwise_gather_output"
"""transformers' name for the style that gives each process rows of a weight, and all of them the whole output."""

SHARED: Final = frozenset({
    "colwise", "rowwise", "colwise_rep", "rowwise_rep", "colwise_gather_output", "rowwise_split_input",
})  # fmt: skip
"""The styles of linear maps in transformers' plans."""

IN_EVERY_PROCESS: Final = frozenset({
    "embedding_rowwise", "replicated_with_grad_allreduce", "mla_kv_a_proj", "all_reduce",
})  # fmt: skip
"""The styles of modules that are kept whole in every process here: embeddings, norms, and sums of shares."""


def shared_maps(model: Any, count: int, name: str) -> dict[str, str]:
    """Return the plan for ``model``, on the ``meta`` device, among ``count`` processes: styles by pattern of module names.

    Raises ``EngineError`` for a model without a plan, or whose plan shares experts, ``OptionError`` where ``count``
    does not divide the outputs of a map. ``name`` is the model's in messages.
    """
    from torch import nn

    plan: dict[str, str] = dict(getattr(model, "tp_plan", None) or {})
    other = sorted({style for style in plan.values() if style not in SHARED | IN_EVERY_PROCESS})
    if other:
        found = f"transformers' plan for {model.config.model_type} has parts that swcheck does not share: {', '.join(other)}"
        raise EngineError(
            f"tensor parallel, {name}", found, "one process, with --swcheck-stream or --swcheck-device-map"
        )
    patterns = {pattern: _expression(pattern) for pattern, style in plan.items() if style in SHARED}
    tied = model.get_output_embeddings() if getattr(model.config, "tie_word_embeddings", False) else None
    shared: dict[str, str] = {}
    widths: dict[str, int] = {}
    for path, module in model.named_modules():
        pattern = next((one for one, wanted in patterns.items() if wanted.fullmatch(path)), None)
        if pattern is not None and isinstance(module, nn.Linear) and module is not tied:
            shared[pattern], widths[path] = WHOLE_OUTPUTS, module.out_features
    if not shared:
        raise EngineError(
            f"tensor parallel, {name}",
            f"transformers has no plan for {model.config.model_type} that shares its linear maps",
            "one process, with --swcheck-stream or --swcheck-device-map",
        )
    _check_widths(widths, count, name)
    return shared


def _check_widths(widths: Mapping[str, int], count: int, name: str) -> None:
    """Raise ``OptionError`` unless ``count`` divides the number of outputs of every map."""
    odd = next((path for path, width in widths.items() if width % count), None)
    if odd is None:
        return
    fitting = max(number for number in range(1, count) if not any(width % number for width in widths.values()))
    raise OptionError(
        f"tensor parallel among {count} processes, {name}",
        f"{odd} has {widths[odd]} outputs, which {count} processes cannot share evenly",
        f"torchrun --nproc-per-node={fitting}" if fitting > 1 else "one process, without --swcheck-tensor-parallel",
    )


def _expression(pattern: str) -> re.Pattern[str]:
    """Return the expression for a pattern of transformers, in which ``*`` is the number of a layer."""
    return re.compile(r"\d+".join(map(re.escape, pattern.split("*"))))
