"""The shipped checks: short, readable tests that use only the public fixtures and assertions.

``reference`` runs with ``--model`` alone, ``candidate`` with ``--candidate`` beside it.
"""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings

from swcheck.records import Outcome, Verdict

FEW: Final = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
"""Few examples, each a list of prompts scored in one pass; no shrinking, a pass of a large model is not cheap."""


def applicable(verdict: Verdict) -> None:
    """Skip the test, with the verdict's words, where it does not apply to this model."""
    if verdict.outcome is Outcome.NOT_APPLICABLE:
        pytest.skip(verdict.summary)
