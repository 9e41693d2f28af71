"""swcheck: tests that a quantized or fine-tuned language model keeps its super weights, and still hangs on them.

The front door is lazy: a name is imported when it is first used, so that an installed swcheck costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from swcheck.checks import (
        assert_collapses_when_zeroed,
        assert_perplexity_within,
        assert_predictions_preserved,
        assert_super_activations_preserved,
        assert_super_weights_located,
        assert_super_weights_preserved,
        assert_survives_pruning,
    )
    from swcheck.engines import load
    from swcheck.errors import RobustnessError, SwcheckError
    from swcheck.index import known_super_weights
    from swcheck.intervene import scaled, zeroed
    from swcheck.location import locate
    from swcheck.measure import perplexity
    from swcheck.outlier import assert_outlier_survives
    from swcheck.records import Loaded, Outcome, Prompt, SuperActivation, SuperWeight, Verdict

_ROOMS: Final = {
    "Loaded": "records",
    "Outcome": "records",
    "Prompt": "records",
    "RobustnessError": "errors",
    "SuperActivation": "records",
    "SuperWeight": "records",
    "SwcheckError": "errors",
    "Verdict": "records",
    "assert_collapses_when_zeroed": "checks",
    "assert_outlier_survives": "outlier",
    "assert_perplexity_within": "checks",
    "assert_predictions_preserved": "checks",
    "assert_super_activations_preserved": "checks",
    "assert_super_weights_located": "checks",
    "assert_super_weights_preserved": "checks",
    "assert_survives_pruning": "checks",
    "known_super_weights": "index",
    "load": "engines",
    "locate": "location",
    "perplexity": "measure",
    "scaled": "intervene",
    "zeroed": "intervene",
}

__all__ = [
    "Loaded",
    "Outcome",
    "Prompt",
    "RobustnessError",
    "SuperActivation",
    "SuperWeight",
    "SwcheckError",
    "Verdict",
    "assert_collapses_when_zeroed",
    "assert_outlier_survives",
    "assert_perplexity_within",
    "assert_predictions_preserved",
    "assert_super_activations_preserved",
    "assert_super_weights_located",
    "assert_super_weights_preserved",
    "assert_survives_pruning",
    "known_super_weights",
    "load",
    "locate",
    "perplexity",
    "scaled",
    "zeroed",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("swcheck")
    if name not in _ROOMS:
        raise AttributeError(f"module 'swcheck' has no attribute {name!r}")
    return getattr(import_module(f"swcheck.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
