"""swcheck: tests that a quantized or fine-tuned language model keeps its super weights, and still depends on them.

Each public name is imported on first use, so ``import swcheck`` is cheap: it loads neither torch nor transformers. The
names serve three tasks: testing models (the assertions, ``load``, ``locate``, ``zeroed``), writing engines (``Loaded``,
``Scheme``, ``read_request``, the errors), and testing (``check_engine``, ``assert_outlier_survives``,
``plant_super_weights``, ``all_verdicts``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from swcheck.base.errors import (
        CheckpointError,
        EngineError,
        OptionError,
        RobustnessError,
        SwcheckError,
        UnsafeCheckpointError,
    )
    from swcheck.base.evaluation_text import evaluation_text
    from swcheck.base.isolation import captured_output, restored_environment
    from swcheck.base.records import Engine, Loaded, Outcome, Prompt, Scheme, SuperActivation, SuperWeight, Verdict
    from swcheck.gate.assertions import (
        assert_collapses_when_zeroed,
        assert_perplexity_within,
        assert_predictions_preserved,
        assert_super_activations_preserved,
        assert_super_weights_located,
        assert_super_weights_preserved,
        assert_survives_pruning,
    )
    from swcheck.gate.training.trainer_callback import SuperWeightCallback
    from swcheck.gate.training.watch import SuperWeightWatch
    from swcheck.lens.architecture.anatomy import anatomy
    from swcheck.lens.architecture.storage import plain_weight
    from swcheck.lens.intervene import scaled, zeroed
    from swcheck.lens.likelihood import perplexity
    from swcheck.lens.linear_maps import contributions, effective_weight
    from swcheck.lens.observe import observe
    from swcheck.lens.tokens import token_windows
    from swcheck.loading.engine_request import EngineRequest, check_packages, read_request
    from swcheck.loading.engines import installed_engines, load
    from swcheck.loading.files.adapter_files import AdapterFiles, check_adapter_patterns, read_adapter
    from swcheck.loading.files.gguf_header import read_gguf_header
    from swcheck.loading.graphs.exporting import exportable, exportable_with_cache
    from swcheck.loading.graphs.graph_runtime import GraphRuntime
    from swcheck.loading.published_index import known_super_weights
    from swcheck.loading.runtime import Capability, Runtime
    from swcheck.loading.skip_option import linear_maps_outside, read_skip
    from swcheck.superweights.locating.locate import locate
    from swcheck.testing.conformance import check_engine
    from swcheck.testing.outlier import assert_outlier_survives
    from swcheck.testing.planting import Planting, plant_super_weights
    from swcheck.testing.verdicts import all_verdicts

_MODULES: Final = {
    "AdapterFiles": "loading.files.adapter_files",
    "Capability": "loading.runtime",
    "CheckpointError": "base.errors",
    "Engine": "base.records",
    "EngineError": "base.errors",
    "EngineRequest": "loading.engine_request",
    "GraphRuntime": "loading.graphs.graph_runtime",
    "Loaded": "base.records",
    "OptionError": "base.errors",
    "Outcome": "base.records",
    "Planting": "testing.planting",
    "Prompt": "base.records",
    "RobustnessError": "base.errors",
    "Runtime": "loading.runtime",
    "Scheme": "base.records",
    "SuperActivation": "base.records",
    "SuperWeight": "base.records",
    "SuperWeightCallback": "gate.training.trainer_callback",
    "SuperWeightWatch": "gate.training.watch",
    "SwcheckError": "base.errors",
    "UnsafeCheckpointError": "base.errors",
    "Verdict": "base.records",
    "all_verdicts": "testing.verdicts",
    "anatomy": "lens.architecture.anatomy",
    "assert_collapses_when_zeroed": "gate.assertions",
    "assert_outlier_survives": "testing.outlier",
    "assert_perplexity_within": "gate.assertions",
    "assert_predictions_preserved": "gate.assertions",
    "assert_super_activations_preserved": "gate.assertions",
    "assert_super_weights_located": "gate.assertions",
    "assert_super_weights_preserved": "gate.assertions",
    "assert_survives_pruning": "gate.assertions",
    "captured_output": "base.isolation",
    "check_adapter_patterns": "loading.files.adapter_files",
    "check_engine": "testing.conformance",
    "check_packages": "loading.engine_request",
    "contributions": "lens.linear_maps",
    "effective_weight": "lens.linear_maps",
    "evaluation_text": "base.evaluation_text",
    "exportable": "loading.graphs.exporting",
    "exportable_with_cache": "loading.graphs.exporting",
    "installed_engines": "loading.engines",
    "known_super_weights": "loading.published_index",
    "linear_maps_outside": "loading.skip_option",
    "load": "loading.engines",
    "locate": "superweights.locating.locate",
    "observe": "lens.observe",
    "perplexity": "lens.likelihood",
    "plain_weight": "lens.architecture.storage",
    "plant_super_weights": "testing.planting",
    "read_adapter": "loading.files.adapter_files",
    "read_gguf_header": "loading.files.gguf_header",
    "read_request": "loading.engine_request",
    "read_skip": "loading.skip_option",
    "restored_environment": "base.isolation",
    "scaled": "lens.intervene",
    "token_windows": "lens.tokens",
    "zeroed": "lens.intervene",
}
"""Each public name with the module that defines it, relative to ``swcheck``."""

__all__ = [
    "AdapterFiles",
    "Capability",
    "CheckpointError",
    "Engine",
    "EngineError",
    "EngineRequest",
    "GraphRuntime",
    "Loaded",
    "OptionError",
    "Outcome",
    "Planting",
    "Prompt",
    "RobustnessError",
    "Runtime",
    "Scheme",
    "SuperActivation",
    "SuperWeight",
    "SuperWeightCallback",
    "SuperWeightWatch",
    "SwcheckError",
    "UnsafeCheckpointError",
    "Verdict",
    "all_verdicts",
    "anatomy",
    "assert_collapses_when_zeroed",
    "assert_outlier_survives",
    "assert_perplexity_within",
    "assert_predictions_preserved",
    "assert_super_activations_preserved",
    "assert_super_weights_located",
    "assert_super_weights_preserved",
    "assert_survives_pruning",
    "captured_output",
    "check_adapter_patterns",
    "check_engine",
    "check_packages",
    "contributions",
    "effective_weight",
    "evaluation_text",
    "exportable",
    "exportable_with_cache",
    "installed_engines",
    "known_super_weights",
    "linear_maps_outside",
    "load",
    "locate",
    "observe",
    "perplexity",
    "plain_weight",
    "plant_super_weights",
    "read_adapter",
    "read_gguf_header",
    "read_request",
    "read_skip",
    "restored_environment",
    "scaled",
    "token_windows",
    "zeroed",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("swcheck")
    if name not in _MODULES:
        raise AttributeError(f"module 'swcheck' has no attribute {name!r}")
    return getattr(import_module(f"swcheck.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
